"""Paths that users name: one rule for `~`, and places that cannot be written are found at once."""

import ast
import contextlib
import errno
import os
import pathlib
import pwd
import re
import resource
import shutil
import stat
import tempfile

import pytest

from ggcf_jax import config as config_lib
from ggcf_jax import data, doctor, evaluate, export, places, predict, train
from ggcf_jax.data import class_uniform, class_weights
from ggcf_jax.data.records import prepare
from ggcf_jax.errors import InputError
from ggcf_jax.training import warm_start
from ggcf_jax.workdir import claim, lease
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir import model as model_lib
from ggcf_jax.workdir.metrics_log import Writer
from tests.helpers import ROOT, load_config, make_tiny_config, name_called, parsed, write_camvid

SOURCES = [
    ROOT / 'main.py',
    *(
        path
        for folder in ('ggcf_jax', 'configs', 'experiments')
        for path in (ROOT / folder).rglob('*.py')
    ),
]
CALLS = [
    (name_called(node), f'{path.relative_to(ROOT)}:{node.lineno}', node)
    for path in SOURCES
    for node in ast.walk(parsed(path))
    if isinstance(node, ast.Call)
]

# Text fields and flags that hold no path.
WORDS = {
    'data.name', 'data.train_split', 'data.storage', 'data.label_form', 'data.image_endings',
    'data.label_endings', 'model.input', 'model.activation', 'model.norm', 'model.context',
    'model.attention', 'model.heads', 'model.dropout_of', 'train.ema_statistics',
    'model.backbone.name', 'model.backbone.stem',
    'model.backbone.first_dilation', 'model.backbone.multi_grid_kind',
    'model.backbone.expected_weights', 'model.backbone.activation', 'model.backbone.statistics',
    'train.loss_average', 'train.schedule', 'train.multipliers', 'train.frozen',
    'train.optimizer', 'train.decay', 'train.loss', 'train.class_weights', 'train.dtype',
    'train.remat', 'train.profile', 'eval.average', 'eval.pruning', 'eval.metrics',
    'predict.label_ids',
}  # fmt: skip
WORD_FLAGS = {'split', 'sizes', 'license', 'host', 'coordinator'}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home directory; the current one is another, in which no `~` may appear."""
    folder = tmp_path / 'home'
    folder.mkdir()
    monkeypatch.setenv('HOME', str(folder))
    here = tmp_path / 'here'
    here.mkdir()
    monkeypatch.chdir(here)
    yield folder
    assert not list(here.iterdir())


@pytest.fixture
def homeless(monkeypatch):
    """A user id that the system does not know, as in containers, and no HOME."""

    def getpwuid(uid):
        raise KeyError(f'getpwuid(): uid not found: {uid}')

    monkeypatch.delenv('HOME')
    monkeypatch.setattr(pwd, 'getpwuid', getpwuid)


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond a kilobyte, whatever is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_home_directories(home):
    assert places.expand('~') == home
    assert places.expand('~/a/~') == home / 'a' / '~'
    assert places.expand(pathlib.Path('~/a')) == home / 'a'
    assert places.expand('a/~/b') == pathlib.Path('a/~/b')


def test_unknown_homes_are_named(homeless):
    with pytest.raises(InputError, match=r'^--output=~/a: there is no such home directory; .*HOME'):
        places.expand('~/a', '--output')
    with pytest.raises(InputError, match=r'~nobody-of-this-name/a: there is no such home'):
        places.expand('~nobody-of-this-name/a')


def _calls(name):
    """(file:line, node) of every call of a function or method of this name."""
    return [(place, node) for called, place, node in CALLS if called == name]


def test_one_place_expands():
    where = [place for place, _ in _calls('expanduser')]
    assert len(where) == 1 and where[0].startswith('ggcf_jax/places.py')


def test_arguments_that_may_be_texts_are_expanded():
    """A parameter `str | pathlib.Path` becomes a path by the rule, never by `pathlib.Path`."""
    texts = r'(\w+): str \| (?:pathlib\.Path|os\.PathLike)\b'
    found = [
        (path.relative_to(ROOT).as_posix(), name)
        for path in SOURCES
        for name in re.findall(texts, path.read_text())
    ]
    assert len(found) > 12
    for file, name in found:
        if file not in ('ggcf_jax/atomic.py', 'ggcf_jax/buckets.py', 'ggcf_jax/places.py'):
            assert f'pathlib.Path({name})' not in (ROOT / file).read_text(), (file, name)


def test_every_flag_of_text_is_a_path_or_a_word():
    texts = {node.args[0].value for _, node in _calls('DEFINE_string')}
    assert texts == WORD_FLAGS
    paths = {
        node.args[1].value
        for _, node in _calls('DEFINE')
        if ast.unparse(node.args[0]) in ('_PathParser()', '_PathOrNoneParser()')
    }
    assert paths == {'workdir', 'input', 'labels', 'classes', 'output', 'compile_cache'}


def test_no_argument_of_an_experiment_is_a_path_by_itself():
    types = [
        (place, ast.unparse(each.value))
        for place, node in _calls('add_argument')
        for each in node.keywords
        if each.arg == 'type'
    ]
    assert not [place for place, kind in types if kind.endswith('Path')]
    assert sum(kind in ('cli.path', 'path') for _, kind in types) >= 14


def test_every_field_of_text_is_a_path_or_a_word():
    config = config_lib.default()
    texts = {
        name
        for name in config_lib.fields(config)
        if isinstance(config_lib.get(config, name), str | None)
    }
    assert texts - WORDS == {*config_lib.PLACES, *config_lib.FILES_OF_DATA}


def test_fields_of_data_sets(home, rng):
    """`manual_dir` and `data_dir` of a data set that is prepared, and of those from zips."""
    write_camvid(home / 'camvid', rng)
    (home / 'empty').mkdir()
    config = make_tiny_config('~/camvid', pathlib.Path('~'))
    assert len(data.build(config.data).source('train')) == 6
    assert (home / 'prepared' / 'camvid').is_dir()
    for name in ('cityscapes', 'ade20k'):
        config = load_config(name)
        config.data.update({'manual_dir': '~/empty', 'data_dir': '~/prepared'})
        with pytest.raises(InputError, match=r'the zips there are none'):
            data.build(config.data)


def test_fields_of_a_folder(home, rng):
    write_camvid(home / 'camvid', rng)
    (home / 'names.csv').write_text(''.join(f'class {i}\n' for i in range(11)))
    config = load_config('folder')
    config.update_from_flattened_dict(
        {
            'data.manual_dir': '~/camvid',
            'data.classes': '~/names.csv',
            'data.ignore': (11,),
            'data.splits.train': '~/camvid/train,~/camvid/trainannot,~/lists/train.txt',
            'data.splits.validation': '~/lists/validation.txt',
            'data.splits.test': '~/camvid/val/*.png,~/camvid/valannot/*.png',
        }
    )
    (home / 'lists').mkdir()
    (home / 'lists' / 'train.txt').write_text('train_0\ntrain_3\n')
    (home / 'lists' / 'validation.txt').write_text(
        '~/camvid/val/val_0.png ~/camvid/valannot/val_0.png\n'
    )
    dataset = data.build(config.data)
    assert [len(dataset.source(split)) for split in ('train', 'validation', 'test')] == [2, 1, 3]


def test_fields_of_weights(home, camvid_folder, tmp_path):
    for field, message in {
        'model.backbone.weights': f'{home}/none.safetensors.* no such file',
        'train.start_from': f'{home}/none.safetensors.* no such folder',
    }.items():
        config = make_tiny_config(camvid_folder, tmp_path)
        config.update_from_flattened_dict({field: '~/none.safetensors'})
        with pytest.raises(InputError, match=message):
            warm_start.check(config)


def test_doors(home, untrained_run):
    """Arguments of the Python API: none of them makes a folder `~`."""
    config = workdir_config.load(untrained_run)
    (home / 'run').symlink_to(untrained_run)
    assert model_lib.load('~/run').workdir == home / 'run'
    (home / 'file').write_text('')
    with pytest.raises(InputError, match=f'{home}/file already exists; --overwrite'):
        export.export_workdir(config, '~/run', 'best', '~/file', ())
    for call in (
        lambda: evaluate.evaluate_workdir(config, '~/none', 'validation', 'best'),
        lambda: predict.predict(config, '~/none', 'best', 'test', '~/out'),
        lambda: export.export_workdir(config, '~/none', 'best', '~/out.zip', ((64, 64),)),
    ):
        with pytest.raises(InputError, match=f'{home}/none is not the workdir of a run'):
            call()


def test_what_no_home_is_needed_for_works_without(homeless, monkeypatch, tiny_config):
    monkeypatch.setattr(prepare.tfds.core.constants, 'DATA_DIR', '~/tensorflow_datasets')
    dataset = data.build(tiny_config.data)
    tiny_config.data.data_dir = None
    assert data.class_weights_of(tiny_config, dataset)
    data.check_writable(tiny_config, dataset)
    tiny_config.train.class_weights = 'data'
    for check in (data.check_writable, data.class_weights_of):
        with pytest.raises(InputError, match=r'data_dir=~/tensorflow_datasets: there is no such'):
            check(tiny_config, dataset)


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    places.check_writable(tmp_path, '--output')
    places.check_writable(tmp_path / 'new' / 'folder', '--output')
    assert not list(tmp_path.iterdir())


def _below_a_file(folder):
    (folder / 'file').write_text('')
    return folder / 'file' / 'run'


@contextlib.contextmanager
def _as_somebody():
    """Permissions hold for this process, whoever runs it."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r'file/run cannot be written \(.*Not a directory.*give '):
        places.check_writable(_below_a_file(tmp_path), '--output')
    locked = tmp_path / 'locked'
    locked.mkdir(mode=0o555)
    message = r'locked/new cannot be written \(.*Permission denied.*give another --config\.data'
    with _as_somebody(), pytest.raises(InputError, match=message):
        places.check_writable(locked / 'new', 'config.data.data_dir')


def test_full_places(tmp_path):
    message = r'cannot be written \(.*File too large.*make room there, or give another --output'
    with full_disk(), pytest.raises(InputError, match=message):
        places.check_writable(tmp_path, '--output')
    with pytest.raises(InputError, match=r': 1,000.* MB are going to be written there, where'):
        places.check_writable(tmp_path, '--output', needed=10**18)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def unwritable(monkeypatch):
    """Nothing can be written, not even by root; the work must not begin."""

    def deny(**unused):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def begin(*unused, **unused_too):
        raise AssertionError('the work has begun')

    monkeypatch.setattr(tempfile, 'TemporaryFile', deny)
    monkeypatch.setattr(model_lib, 'load', begin)
    monkeypatch.setattr(class_weights, 'scan', begin)
    monkeypatch.setattr(class_uniform, 'build', begin)
    return pytest.raises(InputError, match=r'cannot be written \(.*Permission denied.*give another')


def test_doors_try_their_places_before_the_work(unwritable, untrained_run, tmp_path):
    config = workdir_config.load(untrained_run)
    for call in (
        lambda: evaluate.evaluate_workdir(config, untrained_run, 'validation', 'best'),
        lambda: predict.predict(config, untrained_run, 'best', 'test', tmp_path / 'out'),
        lambda: export.export_workdir(
            config, untrained_run, 'best', tmp_path / 'out.zip', ((64, 64),)
        ),
        lambda: train.train_and_evaluate(config, tmp_path / 'run'),
    ):
        with unwritable:
            call()
    assert not list(tmp_path.iterdir())


def test_the_doctor_says_so(unwritable, untrained_run, tmp_path, capsys):
    assert not doctor.examine(workdir_config.load(untrained_run), tmp_path / 'run')
    assert 'cannot be written' in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('train.class_weights', 'data'),
        ('data.class_uniform', 0.5),
        ('data.storage', 'compact'),
        ('data.data_dir', None),
    ],
)
def test_what_is_made_from_data(unwritable, untrained_run, tmp_path, field, value):
    """Counts, index and copy; and a data set that is to be prepared."""
    config = workdir_config.load(untrained_run)
    config.update_from_flattened_dict({field: value})
    if value is None:
        config.data.data_dir = str(tmp_path / 'prepared')
        with unwritable:
            data.build(config.data)
        return
    dataset = data.build(config.data)
    with unwritable:
        data.check_writable(config, dataset)
    if field != 'train.class_weights':
        config.train.class_weights = 'none'
    with unwritable:
        if field == 'train.class_weights':
            data.class_weights_of(config, dataset)
        else:
            data.training_batches(config, dataset, 0, data.pipeline.Shard())


@pytest.mark.parametrize('name', ['camvid', 'folder'])
def test_read_only_places_with_everything_in_them(name, tiny_config, camvid_folder, monkeypatch):
    """A data directory that colleagues share needs to be written by the first of them only."""
    (camvid_folder / 'classes.txt').write_text('\n'.join('abcdefghijk'))
    tiny_config.data.update(name=name, classes='classes.txt', ignore=(11,))
    tiny_config.data.splits.update(train='train,trainannot', validation='val,valannot')
    tiny_config.update_from_flattened_dict(
        {'train.class_weights': 'data', 'data.class_uniform': 0.5, 'data.storage': 'compact'}
    )
    dataset = data.build(tiny_config.data)
    weights = data.class_weights_of(tiny_config, dataset)
    with contextlib.closing(data.training_batches(tiny_config, dataset, 0, data.pipeline.Shard())):
        pass

    def deny(**unused):
        raise PermissionError

    monkeypatch.setattr(tempfile, 'TemporaryFile', deny)
    data.check_writable(tiny_config, dataset)
    assert data.class_weights_of(tiny_config, dataset) == weights


def test_a_full_disk_does_not_replace_what_was_said_first(tmp_path, capfd):
    def fill(writer):
        for step in range(1000):
            writer.scalars(step, {'x': 0.5})

    with (
        full_disk(),
        pytest.raises(InputError, match='the checkpoint'),
        Writer(tmp_path / 'a', 0) as writer,
    ):
        with pytest.raises(InputError, match=r'a cannot be written .* make room there, or'):
            fill(writer)
        raise InputError('the checkpoint could not be written')
    writer = Writer(tmp_path / 'b', 0)
    for step in range(100):  # into the buffer of the event file
        writer._events.scalar(step, 'x', 0.5)
    with full_disk(), pytest.raises(InputError, match='b cannot be written'):
        writer.close()
    assert capfd.readouterr().err == ''


def test_leases_and_claims_name_the_flag(tmp_path, tiny_config):
    place = _below_a_file(tmp_path)
    message = r'file/run cannot be written \(.*another --workdir'
    with pytest.raises(InputError, match=message):
        claim.check(tiny_config, data.build(tiny_config.data), place)
    with pytest.raises(InputError, match=message), lease.taken(place):
        pass


@pytest.mark.slow
def test_room_for_checkpoints_is_looked_for_before_the_first_step(tiny_run, tmp_path, monkeypatch):
    config, _, _ = tiny_run
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=100_000))
    message = r'run: 0\.\d MB are going to be written there, where 0\.1 MB are free; make room, or'
    with pytest.raises(InputError, match=message):
        train.train_and_evaluate(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_files_have_the_mode_that_the_umask_gives(tiny_run):
    """Everything that a run leaves; `tiny_run` was made under an umask of 002."""
    _, workdir, _ = tiny_run
    wrong = [
        f'{stat.filemode(path.stat().st_mode)} {path}'
        for path in (*workdir.rglob('*'), *(workdir.parent / 'prepared' / 'camvid').rglob('*'))
        if stat.S_IMODE(path.stat().st_mode) != (0o775 if path.is_dir() else 0o664)
    ]
    assert not wrong
    assert len(list((workdir.parent / 'prepared' / 'camvid').rglob('*.array_record*'))) == 2


def test_nothing_that_is_kept_comes_from_tempfile():
    """Its files are for their owner alone, whatever the umask is."""
    for name in ('mkstemp', 'mkdtemp', 'NamedTemporaryFile', 'TemporaryFile'):
        assert not [w for w, _ in _calls(name) if not w.startswith('ggcf_jax/places.py')]
