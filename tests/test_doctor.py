import io
import itertools
from collections import Counter
from types import SimpleNamespace

import cv2
import jax
import numpy as np
import pytest
from rich.console import Console

from ggcf_jax import data, doctor
from ggcf_jax.data.scan import Scan
from ggcf_jax.display.console import Progress
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.training import state as state_lib


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(doctor, 'SECONDS', 0.1)


@pytest.mark.slow
def test_a_good_setup_is_ready(tiny_config, tmp_path, capsys, quick):
    assert doctor.examine(tiny_config, tmp_path / 'run')
    text = capsys.readouterr().out
    assert 'train: 6 images: 6 of 40 x 56; 5.0% of the pixels have no class' in text
    assert 'validation: 3 images' in text
    assert '2 of 11 classes are in no training image and cannot be learned: pedestrian, bic' in text
    assert 'the training step needs' in text and ' GiB on each device, as compiled' in text
    assert 'the evaluation of 40 x 56 pixels beside the state of the training needs' in text
    assert 's for the 3 images of validation, 2 times in training' in text
    assert 'ready to train' in text
    assert (tmp_path / 'run' / 'doctor' / 'report.txt').read_text().rstrip().endswith('warnings')
    samples = cv2.imread(str(tmp_path / 'run' / 'doctor' / 'samples.png'))
    assert samples.shape == (2 * 2 * 24, 4 * 24, 3)
    assert not (tmp_path / 'run' / 'config.json').exists()


@pytest.fixture
def found():
    """Findings that are kept."""
    output = Console(file=io.StringIO(), width=200)
    return doctor.Findings(Progress(console=output)), lambda: output.file.getvalue()


def _scan(split, images):
    counts = np.array(images)
    return Scan(split, len(images), Counter(), 100 * counts, counts, ignored=0, problems=())


def test_many_classes_are_one_line_and_a_file(found, tmp_path):
    names = tuple(f'class {i}' for i in range(150))
    dataset = SimpleNamespace(classes=names, num_classes=150)
    scans = {
        'train': _scan('train', [1] * 16 + [0] * 134),
        'validation': _scan('validation', [1] * 15 + [0] * 135),
    }
    findings, text = found
    doctor._tell_classes(dataset, list(scans.values()), tmp_path, findings)
    doctor._judge_classes(dataset, scans, findings)
    assert text().splitlines() == [
        f'classes: the table of all 150 is in {tmp_path / "classes.txt"}',
        'warning: 134 of 150 classes are in no training image and cannot be learned: class 16, '
        'class 17, class 18, class 19, class 20 and 129 more',
        'warning: 1 of 150 classes is in no validation image and not measured: class 15',
    ]
    assert findings.warnings == 2
    table = (tmp_path / 'classes.txt').read_text()
    assert all(f'class {i} ' in table for i in range(150))


@pytest.mark.parametrize(
    ('pixels', 'verdict'),
    [
        ([0, 0], 'error: no pixel of the training images has a class, so that nothing can be lear'),
        ([9, 0], "error: all labelled pixels of the training images are of the class 'background'"),
        ([0, 9], "error: all labelled pixels of the training images are of the class 'object'"),
        ([9, 9], None),
    ],
)
def test_labels_that_teach_nothing_are_an_error(found, pixels, verdict):
    findings, text = found
    dataset = SimpleNamespace(classes=('background', 'object'), num_classes=2)
    scans = {split: _scan(split, pixels) for split in ('train', 'validation')}
    doctor._judge_classes(dataset, scans, findings)
    assert findings.errors == (verdict is not None)
    assert text().startswith(verdict or '') and bool(text()) == bool(verdict)


@pytest.mark.parametrize(
    ('ignore', 'classes', 'cause', 'cure'),
    [
        # Masks of 0 and 255 as many programs write them, with the default of config.data.ignore.
        ((255,), 'background\nobject\n', "are of the class 'background'", 'ids in the class file'),
        ((0, 255), 'background\nobject\n', 'no pixel of the training images has', 'data.ignore'),
    ],
)
def test_masks_of_0_and_255_are_not_ready(
    tiny_config, camvid_folder, tmp_path, capsys, ignore, classes, cause, cure
):
    for path in camvid_folder.glob('*annot/*.png'):
        ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.where(ids > 4, 255, 0).astype(np.uint8))
    tiny_config.data.update(_folder(camvid_folder))
    (camvid_folder / 'classes.txt').write_text(classes)
    tiny_config.data.ignore = ignore
    assert not doctor.examine(tiny_config, tmp_path / 'run')
    text = ' '.join(capsys.readouterr().out.split())
    assert 'these are masks of 0 and 255, but 255 is ignored: write the lines' in text
    assert cause in text and cure in text
    assert 'the pipeline and the training step are not tried with such data' in text
    assert 'not ready: 1 error' in text


def test_throughput_is_measured_over_whole_bursts_until_stable(monkeypatch):
    """A pipeline of 16 threads, each of which needs 16 s for a batch of 8: 8 images/s."""
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(doctor, 'time', clock)

    def bursts():
        while True:
            yield from range(16)  # ready at once
            clock.now += 16

    rate = doctor._pipeline_rate(bursts(), 8, 16)
    assert rate.stable and rate.images_per_sec == pytest.approx(8)

    def slowing():
        for i in itertools.count():
            clock.now += 1 + i / 16
            yield i

    clock.now = 0.0
    rate = doctor._pipeline_rate(slowing(), 8, 4)
    assert not rate.stable and clock.now < doctor.LONGEST + 60


@pytest.mark.slow
def test_an_evaluation_that_does_not_fit_is_an_error(tiny_config, tmp_path, monkeypatch, found):
    findings, text = found
    monkeypatch.setattr(doctor.memory, 'limit', lambda devices: 2**17)
    state = jax.eval_shape(state_lib.creator(tiny_config, 11, mesh_lib.make_mesh()))
    dataset = data.build(tiny_config.data)
    doctor._try_evaluation(
        tiny_config, dataset, state, findings, Progress(console=Console(quiet=True))
    )
    assert findings.errors == 1
    assert 'the evaluation of 40 x 56 pixels does not fit the device' in text()


def test_unusable_records_are_listed(tiny_config, camvid_folder, tmp_path, capsys):
    data.build(tiny_config.data)  # prepared; what follows is found in the folder data set only
    tiny_config.data.update(_folder(camvid_folder))
    (camvid_folder / 'train' / 'train_0.png').write_bytes(b'')
    cv2.imwrite(str(camvid_folder / 'trainannot' / 'train_2.png'), np.full((40, 56), 77, np.uint8))
    assert not doctor.examine(tiny_config, tmp_path / 'run')
    text = capsys.readouterr().out
    assert '2 of train cannot be used' in text
    unwrapped = ''.join(text.split())  # long paths are wrapped anywhere
    assert 'train/train_0.png:theimagecannotbedecoded' in unwrapped
    assert 'trainannot/train_2.png:labelvalues77(2,240pixels)areoutside' in unwrapped
    assert 'not ready: 1 error,' in text


def _folder(root):
    (root / 'classes.txt').write_text('\n'.join('abcdefghijk'))
    return {
        'name': 'folder',
        'classes': 'classes.txt',
        'ignore': (11,),
        'splits': {'train': 'train,trainannot', 'validation': 'val,valannot', 'test': ''},
    }


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('data.manual_dir', None, 'manual_dir is not set'),
        ('model.context', 'gcgf', "config.model.context='gcgf' is not one of"),
        ('train.batch_size', 9, 'batch_size=9 is not divisible'),
        ('data.train_split', 'trian', "no split 'trian'"),
        ('train.class_weights', '1.0', "class_weights='1.0' has 1 value, but"),
    ],
)
def test_mistakes_are_errors(tiny_config, tmp_path, capsys, quick, field, value, message):
    tiny_config.update_from_flattened_dict({field: value})
    assert not doctor.examine(tiny_config, tmp_path / 'run')
    text = capsys.readouterr().out.replace('\n', ' ')
    assert message in text and 'not ready' in text
