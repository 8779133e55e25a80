"""What may change when a run goes on, and that nothing is written before every check has passed."""

import dataclasses
import json
import shutil

import pytest

from ggcf_jax import data
from ggcf_jax.data.records.codec import FileDecoder
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import claim, classes
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir.config import Segment


@pytest.fixture
def run(tiny_config, tmp_path):
    """Configuration, data set and workdir of a run with a checkpoint, as far as claims look."""
    dataset = data.build(tiny_config.data)
    workdir = tmp_path / 'run'
    claim.check(tiny_config, dataset, workdir).save(0)
    (workdir / 'checkpoints' / '3').mkdir(parents=True)
    return tiny_config, dataset, workdir


def _files(workdir):
    return {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}


def test_a_check_alone_leaves_no_trace(tiny_config, tmp_path):
    claim.check(tiny_config, data.build(tiny_config.data), tmp_path / 'a' / 'run')
    assert not (tmp_path / 'a').exists()


def test_what_is_not_trained_may_differ(run):
    config, dataset, workdir = run
    config.update_from_flattened_dict(
        {
            'eval.batch_size': 1,
            'eval.max_sizes': 1,
            'eval.size_multiple': 16,
            'eval.scales': (0.5, 1.0),
            'train.remat': 'block',
            'train.log_every': 3,
            'train.eval_every': 5,
            'train.checkpoint_every': 7,
            'train.max_skipped': 9,
            'data.manual_dir': 'elsewhere',
            'model.backbone.weights': 'file',
        }
    )
    segments = claim.check(config, dataset, workdir).save(3)
    # The run is continued, and evaluated by the other modes, with the values given last.
    assert workdir_config.load(workdir).to_dict() == config.to_dict()
    assert segments == workdir_config.segments(workdir)
    assert segments[0].changes['train.log_every'] == (2, 3)
    assert 'data.manual_dir' not in segments[0].changes


def test_what_is_trained_is_named_with_the_flag_that_accepts_it(run):
    config, dataset, workdir = run
    config.train.learning_rate = 0.5
    config.data.storage = 'compact'
    before = _files(workdir)
    with pytest.raises(InputError) as refused:
        claim.check(config, dataset, workdir)
    for text in (
        "data.storage: 'original' there, 'compact' now",
        'train.learning_rate: 0.05 there, 0.5 now',
        '--accept_changes',
        'another --workdir',
    ):
        assert text in str(refused.value)
    accepted = claim.check(config, dataset, workdir, accept_changes=True)
    assert _files(workdir) == before
    changes = {'data.storage': ('original', 'compact'), 'train.learning_rate': (0.05, 0.5)}
    assert accepted.save(3) == (Segment(3, changes),)
    claim.check(config, dataset, workdir)  # which it is now

    config.train.learning_rate = 0.25
    first, second = claim.check(config, dataset, workdir, accept_changes=True).save(6)
    assert (first.step, second) == (3, Segment(6, {'train.learning_rate': (0.5, 0.25)}))
    # Checkpoint 6 was damaged: the run goes on from 3, with the values of the last segment.
    (only,) = claim.check(config, dataset, workdir).save(3)
    assert only == Segment(3, changes | {'train.learning_rate': (0.05, 0.25)})


@pytest.mark.parametrize(
    ('field', 'value'), [('model.heads', 'full'), ('model.backbone.stride', 16), ('seed', 1)]
)
def test_another_network_is_never_accepted(run, field, value):
    config, dataset, workdir = run
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=rf'{field} cannot change within a run.*start_from='):
        claim.check(config, dataset, workdir, accept_changes=True)


def test_before_the_first_checkpoint_everything_may_differ(run):
    config, dataset, workdir = run
    (workdir / 'checkpoints' / '3').rmdir()
    config.model.heads = 'full'
    assert claim.check(config, dataset, workdir).save(0) == ()
    assert workdir_config.load(workdir).model.heads == 'full'


def test_a_run_may_grow(run):
    config, dataset, workdir = run
    config.train.steps = 24
    with pytest.raises(InputError, match=r'train.steps: 12 there, 24 now'):
        claim.check(config, dataset, workdir)  # which stretches the schedule
    config.train.schedule_steps = 12
    assert not claim.check(config, dataset, workdir).changes


def _with_label_map(dataset, change):
    label_map = dataset.decoder.label_map.copy()
    change(label_map)
    return dataclasses.replace(dataset, decoder=FileDecoder(label_map))


def _swap(label_map):
    label_map[[0, 1]] = label_map[[1, 0]]


def _ignore(label_map):
    label_map[255] = label_map[11]


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        (
            lambda d: _with_label_map(d, _swap),
            r'label values of class 0 \(sky\): \[0\] there, \[1\] now\n.*class 1 \(building\)',
        ),
        (
            lambda d: dataclasses.replace(d, classes=('sky', 'House', *d.classes[2:])),
            r"name of class 1 \(House\): 'building' there, 'House' now",
        ),
        (
            lambda d: dataclasses.replace(d, colors=((1, 2, 3), *d.colors[1:])),
            r'color of class 0 \(sky\): \[.*\] there, \[1, 2, 3\] now',
        ),
        (
            lambda d: _with_label_map(d, _ignore),
            r'ignored label values: \[11\] there, \[11, 255\] now',
        ),
        (
            lambda d: dataclasses.replace(d, sources=d.sources | {'train': d.source('validation')}),
            r'number of images of train: 6 there, 3 now',
        ),
    ],
)
def test_the_data_belong_to_the_run(run, change, named):
    config, dataset, workdir = run
    before = _files(workdir)
    with pytest.raises(InputError, match=f'(?s){named}.*--accept_changes'):
        claim.check(config, change(dataset), workdir)
    assert _files(workdir) == before
    assert claim.check(config, change(dataset), workdir, accept_changes=True).save(3)
    claim.check(config, change(dataset), workdir)


def test_labels_that_were_replaced_are_noticed(run, camvid_folder, tmp_path):
    """One label under its old name, in the same folder or in a copy of it."""
    config, _, workdir = run
    moved = tmp_path / 'moved'
    shutil.copytree(camvid_folder, moved)
    config.data.manual_dir = str(moved)
    claim.check(config, data.build(config.data), workdir)  # the same data elsewhere
    label = moved / 'trainannot' / 'train_3.png'
    shutil.copy2(moved / 'trainannot' / 'train_4.png', label)
    before = _files(workdir)
    named = "content of the images and labels of train: '.*' there, '.*' now\n.*--accept_changes"
    with pytest.raises(InputError, match=f'(?s){named}'):
        claim.check(config, data.build(config.data), workdir)
    assert _files(workdir) == before
    assert claim.check(config, data.build(config.data), workdir, accept_changes=True).save(3)
    claim.check(config, data.build(config.data), workdir)


class _Many:
    """A hundred records, some with another label."""

    def __init__(self, made_from, other=()):
        self.made_from, self._other = made_from, other

    def __len__(self):
        return 100

    def __getitem__(self, index):
        label = b'other' if index in self._other else b'label'
        return {'name': str(index), 'image': b'image', 'label': label}


@pytest.mark.parametrize(
    ('before', 'after', 'is_noticed'),
    [
        (_Many('a:1'), _Many('a:1'), False),
        (_Many('a:1'), _Many('a:2'), True),
        (_Many('a:1'), _Many('b:2'), False),  # known in another way, and what is read is the same
        (_Many('a:1'), _Many('b:2', range(100)), True),
        (_Many(''), _Many('', range(100)), True),
        (_Many(''), _Many('', [0]), True),
    ],
)
def test_contents_are_compared_as_far_as_they_are_known(run, before, after, is_noticed):
    _, dataset, workdir = run
    trained, now = (
        dataclasses.replace(dataset, sources=dataset.sources | {'train': source})
        for source in (before, after)
    )
    classes.save(trained, workdir, ('train',))
    named = 'content of the images and labels of train'
    assert list(classes.changes(now, workdir, ('train',))) == [named] * is_noticed


def test_another_number_of_classes_is_never_accepted(run):
    config, dataset, workdir = run
    more = dataclasses.replace(
        dataset, classes=(*dataset.classes, 'more'), colors=(*dataset.colors, (0, 0, 0))
    )
    with pytest.raises(InputError, match='number of classes cannot change within a run'):
        claim.check(config, more, workdir, accept_changes=True)


def test_classes_of_an_older_run_have_names_and_colors_alone(run):
    config, dataset, workdir = run
    content = json.loads((workdir / 'classes.json').read_text())
    for name in ('label_values', 'ignored', 'images', 'contents'):
        del content[name]
    (workdir / 'classes.json').write_text(json.dumps(content))
    claim.check(config, _with_label_map(dataset, _swap), workdir)
    with pytest.raises(InputError, match='name of class 0'):
        claim.check(
            config, dataclasses.replace(dataset, classes=('Sky', *dataset.classes[1:])), workdir
        )


def test_labels_of_other_classes_are_not_evaluated(run):
    _, dataset, workdir = run
    swapped = _with_label_map(dataset, _swap)
    with pytest.raises(InputError, match=r'cannot be evaluated.*\n.*label values of class 0'):
        classes.check_meaning(swapped, workdir, same_files=True, purpose='evaluated')
    # Other files may have other values.
    classes.check_meaning(swapped, workdir, same_files=False, purpose='evaluated')
    renamed = dataclasses.replace(dataset, classes=('Sky', *dataset.classes[1:]))
    with pytest.raises(InputError, match=r'name of class 0'):
        classes.check_meaning(renamed, workdir, same_files=False, purpose='evaluated')


@pytest.mark.parametrize(
    'content',
    ['', '[]', '{}', '{"names": ["a"], "colors": []}', '{"names": ["a"], "colors": [[0, 0, 256]]}',
     '{"names": [1], "colors": [[0, 0, 0]]}', '{"names": "a", "colors": "b"}'],
)  # fmt: skip
def test_damaged_classes(run, content):
    config, dataset, workdir = run
    (workdir / 'classes.json').write_text(content)
    for read in (
        lambda: claim.check(config, dataset, workdir),
        lambda: classes.of_run(config, workdir),
    ):
        with pytest.raises(InputError, match=r'classes.json is damaged'):
            read()


def test_unwritable_workdir(tiny_config, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match=r'file/run.* cannot be written'):
        claim.check(tiny_config, data.build(tiny_config.data), tmp_path / 'file' / 'run')
