"""Predictions as files: equal to the scores, any size, bad images, interruptions, the server."""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
import zipfile

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from ggcf_jax import data, evaluate, models, predict
from ggcf_jax.data.datasets import camvid, cityscapes, class_file
from ggcf_jax.data.records.codec import FileDecoder
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference
from ggcf_jax.prediction import code, inputs, large_images, ledger, outputs
from ggcf_jax.prediction.batches import Job, Prediction
from ggcf_jax.workdir import checkpoints, classes
from tests.helpers import ROOT, make_tiny_config, one_device, save_untrained, write_camvid

SIDE = 64  # of the parts of large images


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
    """Configuration and workdir of a run with a checkpoint; its data set is gone."""
    root = tmp_path_factory.mktemp('predict')
    config = make_tiny_config(write_camvid(root / 'camvid', np.random.default_rng(0)), root)
    config.update_from_flattened_dict(
        {
            'eval.flip': True,
            'eval.max_sizes': 2,
            'predict.max_side': SIDE,
            'predict.probabilities': True,
        }
    )
    save_untrained(config, 11, root / 'run')
    classes.save(data.build(config.data), root / 'run')
    config.data.manual_dir = config.data.data_dir = None
    return config, root / 'run'


@pytest.fixture(scope='module')
def scores(setting):
    """The scores of one image [h, w, 3], as evaluation finds them."""
    config, workdir = setting
    graphdef, params, stats = models.abstract(config, 11)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    restored = checkpoints.restore(workdir, params, stats, device, 'latest')
    plan = inference.build(config)
    run = jax.jit(
        lambda x: inference.scores(models.merge(graphdef, restored.params, restored.stats), x, plan)
    )
    return lambda image: np.asarray(run(image[None]))[0]


def _picture(rng, size):
    coarse = rng.integers(0, 255, (size[0] // 6 + 1, size[1] // 6 + 1, 3), dtype=np.uint8)
    return cv2.resize(coarse, size[::-1])


def _write(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), rgb[..., ::-1])


def _labels(path):
    return np.asarray(Image.open(path))  # OpenCV would give the colours of the palette


@pytest.fixture(scope='module')
def album(setting, tmp_path_factory):
    """A folder with all that users bring, and what was predicted of it."""
    config, workdir = setting
    root = tmp_path_factory.mktemp('album')
    rng = np.random.default_rng(5)
    images = {
        'one': _picture(rng, (40, 56)),
        'deep/er/two': _picture(rng, (40, 56)),
        'three': _picture(rng, (31, 50)),
        'pixel': _picture(rng, (1, 1)),
        'large': _picture(rng, (150, 100)),
        'wide': _picture(rng, (20, 200)),
    }
    for name, image in images.items():
        _write(root / 'in' / f'{name}.png', image)
    grey = _picture(rng, (40, 56))[..., 0]
    cv2.imwrite(str(root / 'in' / 'grey.png'), grey)
    cv2.imwrite(str(root / 'in' / 'deep16.png'), images['one'][..., ::-1].astype(np.uint16) * 257)
    alpha = np.dstack([images['one'], grey])
    Image.fromarray(alpha).save(root / 'in' / 'alpha.png')
    Image.fromarray(images['one']).convert('CMYK').save(root / 'in' / 'cmyk.jpg')
    (root / 'in' / 'text.png').write_text('not an image')
    (root / 'in' / 'empty.jpg').write_bytes(b'')
    whole = (root / 'in' / 'one.png').read_bytes()
    (root / 'in' / 'cut.png').write_bytes(whole[: len(whole) // 2])
    (root / 'in' / 'notes.txt').write_text('ignored')
    complete = predict.predict(config, workdir, 'latest', str(root / 'in'), str(root / 'out'))
    images |= {'grey': np.repeat(grey[..., None], 3, -1), 'deep16': images['one']}
    images |= {'alpha': images['one'], 'cmyk': None}
    return root, images, complete


@pytest.mark.slow
def test_results_of_an_image(album, scores):
    root, images, _ = album
    for name in ('one', 'deep16', 'alpha', 'three', 'grey', 'pixel'):  # whatever is beside them
        expected = scores(images[name])
        found = np.load(root / 'out' / 'probabilities' / f'{name}.npy')
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, expected, atol=6e-4)  # half a unit of float16
        labels = _labels(root / 'out' / 'labels' / f'{name}.png')
        assert labels.dtype == np.uint8 and labels.shape == images[name].shape[:2]
        assert (labels == expected.argmax(-1)).mean() > 0.9995
    assert len(np.unique(_labels(root / 'out' / 'labels' / 'one.png'))) > 2
    overlay = cv2.imread(str(root / 'out' / 'overlays' / 'one.png'))[..., ::-1]
    colors = np.asarray(camvid.COLORS, float)[_labels(root / 'out' / 'labels' / 'one.png')]
    np.testing.assert_allclose(overlay, (images['one'] + colors) / 2, atol=1.01)


@pytest.mark.slow
def test_all_usable_images_have_results(album):
    root, images, complete = album
    assert not complete
    for name, image in images.items():
        labels = _labels(root / 'out' / 'labels' / f'{name}.png')
        assert labels.shape == ((40, 56) if image is None else image.shape[:2]), name
        assert labels.max() < 11
    found = {p.relative_to(root / 'out') for p in (root / 'out').rglob('*') if p.is_file()}
    assert len(found) == 3 * len(images) + 3  # and no file of the bad ones
    assert {p.name for p in found if p.parent.name == ''} == {
        'predict.json',
        'inputs.jsonl',
        'classes.csv',
    }


@pytest.mark.slow
def test_what_failed_is_said_and_the_rest_is_not_done_again(album, setting, capsys):
    root, images, _ = album
    config, workdir = setting
    before = {p: p.stat().st_mtime_ns for p in (root / 'out').rglob('*')}
    assert not predict.predict(config, workdir, 'latest', str(root / 'in'), str(root / 'out'))
    assert {p: p.stat().st_mtime_ns for p in (root / 'out').rglob('*')} == before
    out, err = capsys.readouterr()
    assert f'{len(images)} of {len(images) + 3} images were there already, 3 failed' in out
    for name in ('text', 'empty', 'cut'):
        assert f'failed: {name}: the image cannot be decoded; is the file damaged?' in err


def _blended(run, image, side, classes, taper):
    """Probabilities of an image by the definition: a weighted mean over all parts."""
    total = np.zeros((*image.shape[:2], classes))
    weight = np.zeros((*image.shape[:2], 1))
    axes = [large_images.spans(length, side, taper) for length in image.shape[:2]]
    for row, column in itertools.product(*axes):
        part = image[row.start : row.start + side, column.start : column.start + side]
        weights = []
        for span, length in ((row, part.shape[0]), (column, part.shape[1])):
            at = span.start + np.arange(length) + 0.5
            rise = (at - span.first) / (span.rising or 1e-9)
            fall = (span.stop - at) / (span.falling or 1e-9)
            weights.append(np.clip(np.minimum(rise, fall), 0, 1))
        each = (weights[0][:, None] * weights[1])[..., None]
        place = (
            slice(row.start, row.start + len(part)),
            slice(column.start, column.start + part.shape[1]),
        )
        total[place] += each * run(part)
        weight[place] += each
    np.testing.assert_allclose(weight, 1, atol=1e-6)
    return total


@pytest.mark.slow
def test_a_large_image_is_that_of_its_parts(album, scores):
    root, images, _ = album
    expected = _blended(scores, images['large'], SIDE, 11, SIDE // 4)
    found = _labels(root / 'out' / 'labels' / 'large.png')
    assert (found == expected.argmax(-1)).mean() > 0.995
    probabilities = np.load(root / 'out' / 'probabilities' / 'large.npy', mmap_mode='r')
    assert probabilities.shape == (150, 100, 11)
    np.testing.assert_allclose(probabilities, expected, atol=3e-3)
    chosen = np.take_along_axis(probabilities, found[..., None], -1)[..., 0]
    np.testing.assert_allclose(chosen, probabilities.max(-1), atol=1e-3)  # float16 has ties


def _opinionated(rng, classes):
    """A network of which each call finds other scores for the whole part, as global heads do."""

    def run(images, sizes):
        shift = rng.normal(size=(len(images), 1, 1, classes)) * 2
        scores = np.stack([np.roll(images[..., 0], c, 1) for c in range(classes)], -1) / 40
        scores = np.exp(scores + shift)
        probabilities = (scores / scores.sum(-1, keepdims=True)).astype(np.float32)
        return Prediction(probabilities.argmax(-1).astype(np.uint8), probabilities)

    return run


@pytest.mark.parametrize('size', [(150, 100), (64, 65), (20, 300), (130, 40), (64, 64), (10, 7)])
@pytest.mark.parametrize(('batch_size', 'taper'), [(1, 16), (3, 5), (2, 0)])
def test_parts_are_blended(rng, monkeypatch, size, batch_size, taper):
    image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
    monkeypatch.setattr(large_images, '_STRIP_BYTES', 4 * 5 * size[1] * taper)
    job = Job((0,), (64, 64), batch_size, in_parts=True)
    into = Prediction(np.full(size, 9, np.uint8), np.zeros((*size, 5), np.float32))
    run = _opinionated(np.random.default_rng(3), 5)
    calls = []

    def recorded(images, sizes):
        found = run(images, sizes)
        calls.extend(zip(images, found.probabilities))
        return found

    shares = []
    large_images.predict(recorded, image, into, job, shares.append)
    parts = (probabilities for _, probabilities in calls)

    def again(part):
        return next(parts)[: part.shape[0], : part.shape[1]]

    expected = _blended(again, image, 64, 5, taper)
    np.testing.assert_allclose(into.probabilities, expected, atol=1e-5)
    clear = np.diff(np.sort(expected, -1)[..., -2:])[..., 0] > 1e-4
    assert (into.labels == expected.argmax(-1))[clear].all() and clear.mean() > 0.9
    assert sum(shares) == pytest.approx(1)


def test_no_row_is_a_cut(rng):
    """Classes change from row to row at a cut as often as elsewhere, though parts disagree."""
    image = cv2.resize(rng.integers(0, 255, (25, 25, 3), dtype=np.uint8), (400, 400))
    job = Job((0,), (128, 128), 1, in_parts=True)

    def changes(labels):
        rows = (labels[1:] != labels[:-1]).mean(1)
        columns = (labels[:, 1:] != labels[:, :-1]).mean(0)
        middles = [span.stop - span.falling // 2 - 1 for span in large_images.spans(400, 128, 32)]
        return [
            (axis[middles[:-1]].max(), np.delete(axis, middles[:-1]).max())
            for axis in (rows, columns)
        ]

    into = Prediction(np.zeros((400, 400), np.uint8), None)
    large_images.predict(_opinionated(np.random.default_rng(1), 6), image, into, job)
    for cut, elsewhere in changes(into.labels):
        assert cut <= elsewhere
    # Without the blending a third of the pixels changes there.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_images, '_STRIP_BYTES', 0)
        large_images.predict(_opinionated(np.random.default_rng(1), 6), image, into, job)
    for cut, elsewhere in changes(into.labels):
        assert cut > 2 * elsewhere


@pytest.mark.parametrize('length', [1, 63, 64, 65, 100, 112, 113, 1000])
@pytest.mark.parametrize('taper', [0, 1, 7, 16])
def test_spans_cover_an_axis(length, taper):
    found = large_images.spans(length, 64, taper)
    pixels = [i for span in found for i in range(length)[span.settled]]
    assert pixels == list(range(length))
    for before, after in itertools.pairwise(found):
        assert before.stop - after.first == before.falling == after.rising == taper
        assert before.stop <= before.start + 64 and after.first >= after.start
        assert before.first + before.rising <= before.stop - before.falling
    assert (found[0].rising, found[-1].falling) == (0, 0)


@pytest.mark.slow
def test_another_plan_or_model_is_refused(album, setting, tmp_path):
    root, _, _ = album
    config, workdir = setting
    other = config.copy_and_resolve_references()
    other.eval.flip = False
    before = sorted((root / 'out').rglob('*'))
    with pytest.raises(InputError, match=r"inference: 'whole image, flip.*' there, 'whole image'"):
        predict.predict(other, workdir, 'latest', str(root / 'in'), str(root / 'out'))
    assert sorted((root / 'out').rglob('*')) == before
    other.model.heads = 'local:1,grid:3'  # every array has the shape of local:1,grid:2
    for run in (
        lambda: predict.predict(other, workdir, 'latest', str(root / 'in'), str(tmp_path / 'new')),
        lambda: evaluate.evaluate_workdir(other, workdir, 'validation', 'latest'),
    ):
        with pytest.raises(
            InputError, match=r"model\.heads: 'local:1,grid:2' there, 'local:1,grid:3' now"
        ):
            run()
    assert not (tmp_path / 'new').exists()


def test_output_folders(tmp_path):
    key = {'checkpoint': 'step 1'}
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='file is a file; give a folder'):
        outputs.claim(tmp_path / 'file', key)
    with pytest.raises(InputError, match='holds files that are not results'):
        outputs.claim(tmp_path, key)
    (tmp_path / 'empty').mkdir()
    outputs.claim(tmp_path / 'empty', key)
    outputs.claim(tmp_path / 'empty', key)
    with pytest.raises(InputError, match="checkpoint: 'step 1' there, 'step 2' now"):
        outputs.claim(tmp_path / 'empty', {'checkpoint': 'step 2'})
    (tmp_path / 'empty' / 'predict.json').write_text('{')
    with pytest.raises(InputError, match='is damaged'):
        outputs.claim(tmp_path / 'empty', key)


def test_inputs(tmp_path, rng, capsys):
    with pytest.raises(InputError, match='no images found; supported extensions: '):
        inputs.of_path(tmp_path, tmp_path / 'out', bits=16)
    for name in ('a.png', 'b/a.png', 'b/out/labels/a.png'):
        _write(tmp_path / name, _picture(rng, (5, 7)))
    found = inputs.of_path(tmp_path, tmp_path / 'b' / 'out', bits=16)
    assert [each.name for each in found] == ['a', 'b/a']
    assert [each.size() for each in found] == [(5, 7)] * 2
    for name in ('._a.jpg', '.ipynb_checkpoints/a.png', 'Thumbs.db', os.fsdecode(b'd\xe4.JPG')):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    (tmp_path / 'e').symlink_to(tmp_path / 'b')
    capsys.readouterr()
    found = inputs.of_path(tmp_path, tmp_path / 'b' / 'out', bits=16)
    assert [each.name for each in found] == ['a', 'b/a', os.fsdecode(b'd\xe4')]
    notes = capsys.readouterr().err
    assert '--input: left out 2 hidden (' in notes and '1 leftovers of systems (Thumbs.db)' in notes
    assert '1 links to folders that are read already (e)' in notes
    cv2.imwrite(str(tmp_path / 'a.jpg'), np.zeros((2, 2), np.uint8))
    with pytest.raises(InputError, match='have the same name up to the extension'):
        inputs.of_path(tmp_path, tmp_path / 'out', bits=16)
    (tmp_path / 'c.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    assert inputs.of_path(tmp_path / 'c.png', tmp_path, bits=16)[0].size() is None


def test_neither_path_nor_split(setting, tmp_path):
    config, workdir = setting
    config = config.copy_and_resolve_references()
    config.data.manual_dir = str(write_camvid(tmp_path / 'c', np.random.default_rng(0)))
    config.data.data_dir = str(tmp_path / 'prepared')
    with pytest.raises(InputError, match='--input=tset is neither a file, nor a folder, nor a'):
        predict.predict(config, workdir, 'latest', 'tset', str(tmp_path / 'out'))
    config.predict.label_ids = 'server'
    with pytest.raises(InputError, match="'camvid' has no known evaluation server"):
        predict.predict(config, workdir, 'latest', 'validation', str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


@pytest.fixture
def city(rng):
    """A Cityscapes with a test split of small images."""
    names = [f'berlin_{i:06d}_000019' for i in range(3)]
    records = [
        {'name': name, 'image': cv2.imencode('.png', _picture(rng, (40, 56)))[1].tobytes()}
        for name in names
    ]
    return (
        names,
        Dataset(
            name='cityscapes',
            classes=cityscapes.CLASSES[:11],  # as many as the run has
            colors=cityscapes.COLORS[:11],
            sources={'test': records},
            decoder=FileDecoder(cityscapes.LABEL_MAP),
            identity='x',
            unlabeled=('test',),
            server_ids=cityscapes.SERVER_IDS[:11],
        ),
    )


@pytest.mark.slow
def test_files_for_the_server(setting, city, tmp_path, monkeypatch):
    config, workdir = setting
    names, dataset = city
    monkeypatch.setattr(data, 'build', lambda config: dataset)
    config = config.copy_and_resolve_references()
    config.predict.update(label_ids='server', probabilities=False)
    out = tmp_path / 'out'
    assert predict.predict(config, workdir, 'latest', 'test', str(out))
    with zipfile.ZipFile(out / 'submission.zip') as file:
        assert sorted(file.namelist()) == [f'{name}_labelIds.png' for name in names]
        content = file.read(f'{names[0]}_labelIds.png')
    ids = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert ids.ndim == 2 and set(np.unique(ids)) <= set(cityscapes.SERVER_IDS)
    # As train ids the same pixels are the same classes.
    config.predict.label_ids = 'train'
    assert predict.predict(config, workdir, 'latest', 'test', str(tmp_path / 'train'))
    train_ids = _labels(tmp_path / 'train' / 'labels' / f'{names[0]}.png')
    np.testing.assert_array_equal(cityscapes.LABEL_MAP[ids], train_ids)


def test_what_the_server_would_refuse(city, tmp_path):
    names, _ = city
    ids = np.array(cityscapes.SERVER_IDS, np.uint8)
    results = outputs.Results(tmp_path, cityscapes.COLORS, ids, False, '_x', False, False)
    sizes = {name: (4, 6) for name in names}
    for name, labels in zip(names, (np.full((4, 6), 7), np.full((6, 4), 7), np.full((4, 6), 255))):
        _write(results.label_path(name), np.zeros((1, 1, 3)))
        cv2.imwrite(str(results.label_path(name)), labels.astype(np.uint8))
    cv2.imwrite(str(tmp_path / 'labels' / 'other.png'), ids)
    sizes['bonn'] = (4, 6)
    with pytest.raises(InputError) as error:
        outputs.submit(results, sizes)
    text = str(error.value)
    assert 'Problems (4)' in text and 'bonn_x.png is missing' in text
    assert 'other.png is not expected' in text and 'holds the values [255]' in text
    assert f'{names[1]}_x.png is 6 x 4, its image 4 x 6' in text
    assert not (tmp_path / 'submission.zip').exists()


@pytest.mark.slow
def test_a_stop_leaves_whole_files(setting, tmp_path, monkeypatch, capsys):
    config, workdir = setting
    rng = np.random.default_rng(4)
    for i in range(10):
        _write(tmp_path / 'in' / f'{i}.png', _picture(rng, (40, 56)))
    _write(tmp_path / 'in' / 'large.png', _picture(rng, (300, 200)))
    arguments = (config, workdir, 'latest', str(tmp_path / 'in'), str(tmp_path / 'out'))

    @contextlib.contextmanager
    def stop_after(runs):
        asked = itertools.count(1)
        yield lambda: 'SIGTERM' if next(asked) > runs else None

    for runs, labels in (
        (1, 8),
        (2, 10),
    ):  # a batch of 8; the other two, and parts of the large one
        monkeypatch.setattr(predict, 'stop_requests', lambda runs=runs: stop_after(runs))
        assert not predict.predict(*arguments)
        assert 'stopped by SIGTERM; the same command goes on' in capsys.readouterr().out
        assert len(list((tmp_path / 'out' / 'labels').iterdir())) == labels
        assert not list((tmp_path / 'out').rglob('*.part'))
    monkeypatch.undo()
    assert predict.predict(*arguments)
    assert _labels(tmp_path / 'out' / 'labels' / 'large.png').shape == (300, 200)


@pytest.mark.slow
def test_a_killed_prediction_is_resumed(setting, tmp_path, capsys):
    config, workdir = setting
    rng = np.random.default_rng(2)
    for i in range(60):
        _write(tmp_path / 'in' / f'{i:02d}.png', _picture(rng, (40, 56)))
    command = [
        sys.executable, str(ROOT / 'main.py'), '--mode=predict', f'--workdir={workdir}',
        '--checkpoint=latest', f'--input={tmp_path / "in"}', f'--output={tmp_path / "out"}',
        '--config.eval.batch_size=1',
    ]  # fmt: skip
    environment = one_device()
    with subprocess.Popen(command, env=environment) as process:
        while process.poll() is None and not list((tmp_path / 'out').rglob('03.npy')):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = {p: p.read_bytes() for p in (tmp_path / 'out' / 'labels').glob('*.png')}
    assert 3 <= len(done) < 60
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert 'of 60 images were there already, 0 failed' in again.stdout
    labels = {p: p.read_bytes() for p in (tmp_path / 'out' / 'labels').glob('*.png')}
    assert len(labels) == 60 and done.items() <= labels.items()
    (tmp_path / 'in' / 'bad.png').write_bytes(b'')
    given = {'checkpoint': 'latest', 'input': str(tmp_path / 'in'), 'output': str(tmp_path / 'out')}
    assert predict.run(config, workdir, types.SimpleNamespace(**given)) == 1  # the exit code
    told = capsys.readouterr()
    assert 'failed: bad: ' in told.err and '60 of 61 images were there already' in told.out


def test_results_follow_their_images(tmp_path):
    """By content, wherever it lies: place, size and times only spare the reading."""
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'x.png').write_bytes(folder.encode() * 9)
    (first,), (second,) = (inputs.of_path(tmp_path / f, tmp_path / 'out', bits=16) for f in 'ab')
    (tmp_path / 'out').mkdir()
    book = ledger.Ledger(tmp_path / 'out', 'code 1')
    assert book.outdated(first) == ledger.UNKNOWN
    book.add('x', book.entry(first.read()))

    def reason(image, code='code 1'):
        return ledger.Ledger(tmp_path / 'out', code).outdated(image)

    assert reason(first) is None
    assert reason(second) == ledger.CHANGED
    assert reason(first, 'code 2') == ledger.OTHER_CODE
    # The same file elsewhere, or touched, has the same result.
    os.utime(first.path, (1, 1))
    assert reason(first) is None
    shutil.copy(first.path, second.path)
    assert reason(second) is None
    # Another content of equal size and times is another image.
    times = second.path.stat()
    second.path.write_bytes(b'c' * 9)
    os.utime(second.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert reason(second) == ledger.CHANGED
    # As stored it is another picture than upright.
    assert reason(dataclasses.replace(first, upright=False)) == ledger.CHANGED


@pytest.mark.parametrize(
    'damage',
    [b'{"name": "x", "dig', b'[]\n', b'\xff\n', b'{"name": "x", "digest": 1}\n', b'[' * 10**5],
)
def test_a_damaged_ledger_costs_time_only(tmp_path, damage):
    (tmp_path / 'x.png').write_bytes(b'x')
    (tmp_path / 'y.png').write_bytes(b'y')
    x, y = inputs.of_path(tmp_path, tmp_path / 'out', bits=16)
    (tmp_path / 'out').mkdir()
    book = ledger.Ledger(tmp_path / 'out', 'code')
    book.add('y', book.entry(y.read()))
    with (tmp_path / 'out' / ledger.FILE_NAME).open('ab') as file:
        file.write(damage)
    book = ledger.Ledger(tmp_path / 'out', 'code')
    assert book.outdated(x) == ledger.UNKNOWN and book.outdated(y) is None
    book.add('x', book.entry(x.read()))
    assert ledger.Ledger(tmp_path / 'out', 'code').outdated(x) is None


@pytest.mark.slow
def test_replaced_images_are_predicted_again(setting, scores, tmp_path, monkeypatch, capsys):
    config, workdir = setting
    rng = np.random.default_rng(8)
    pictures = {folder: _picture(rng, (40, 56)) for folder in 'ab'}
    for folder, image in pictures.items():
        _write(tmp_path / folder / 'x.png', image)
    tag = Image.Exif()
    tag[274] = 6
    Image.fromarray(pictures['a']).rotate(90, expand=True).save(tmp_path / 'turned.png', exif=tag)

    def run(source):
        found = predict.predict(config, workdir, 'latest', str(tmp_path / source), tmp_path / 'out')
        return found, capsys.readouterr().out

    complete, said = run('a')
    assert complete and '0 of 1 images were there already' in said and 'again' not in said
    complete, said = run('b')
    assert complete and 'computed again: 1 whose input changed' in said
    path = tmp_path / 'out' / 'labels' / 'x.png'
    assert (_labels(path) == scores(pictures['b']).argmax(-1)).mean() > 0.995
    complete, said = run('b')
    assert complete and '1 of 1 images were there already' in said and 'again' not in said
    monkeypatch.setattr(code, 'digest', lambda network: 'another version')
    assert 'computed again: 1 that other code or libraries computed' in run('b')[1]
    # What cannot be read any more has no results: those there are of another image.
    (tmp_path / 'b' / 'x.png').write_bytes(b'')
    assert not run('b')[0] and not path.exists()
    # A photograph is seen upright, and its labels have that size.
    assert run('turned.png')[0]
    turned = _labels(tmp_path / 'out' / 'labels' / 'turned.png')
    assert (turned == scores(pictures['a']).argmax(-1)).mean() > 0.995


@pytest.mark.slow
def test_label_files_show_the_classes(setting, tmp_path):
    """In the colours of the classes; with the ids of the data set's own files if asked to."""
    config, workdir = setting
    config = config.copy_and_resolve_references()
    config.predict.update(overlays=False, probabilities=False)
    _write(tmp_path / 'in' / 'x.png', _picture(np.random.default_rng(1), (40, 56)))
    own = tuple(range(100, 111))
    run = tmp_path / 'run'
    shutil.copytree(workdir, run)
    dataset = Dataset(
        name='x',
        classes=camvid.CLASSES,
        colors=camvid.COLORS,
        sources={},
        decoder=None,
        identity='x',
        ids=own,
    )
    classes.save(dataset, run)
    found = {}
    for kind in ('train', 'dataset'):
        config.predict.label_ids = kind
        out = tmp_path / kind
        assert predict.predict(config, run, 'latest', str(tmp_path / 'in'), out)
        picture = Image.open(out / 'labels' / 'x.png')
        found[kind] = np.asarray(picture)
        values = np.array(own)[found['train']] if kind == 'dataset' else found['train']
        np.testing.assert_array_equal(found[kind], values)
        np.testing.assert_array_equal(
            np.asarray(picture.convert('RGB')), np.asarray(camvid.COLORS)[found['train']]
        )
        # The sidecar is a class file that reads these labels.
        table = class_file.read(out / 'classes.csv', ignore=())
        assert (table.names, table.colors) == (camvid.CLASSES, camvid.COLORS)
        np.testing.assert_array_equal(table.label_map[found[kind]], found['train'])
    config.predict.label_ids = 'dataset'
    classes.save(dataclasses.replace(dataset, ids=(*range(10), 300)), run)
    assert predict.predict(config, run, 'latest', str(tmp_path / 'in'), tmp_path / 'deep')
    deep = _labels(tmp_path / 'deep' / 'labels' / 'x.png')
    np.testing.assert_array_equal(deep, np.array([*range(10), 300])[found['train']])


@pytest.mark.parametrize(
    'name',
    ['../x', '/etc/x', 'a/../../x', 'a//x', '', '.', 'a/.', 'a\\x', 'a\nx', 'a\0x', '..\\x'],
)
def test_names_of_records_stay_in_the_folder(name):
    sources = {'test': [{'name': 'good/one', 'image': b''}, {'name': name, 'image': b''}]}
    dataset = Dataset(
        name='x', classes=('a',), colors=((0, 0, 0),), sources=sources, decoder=None, identity='x'
    )
    with pytest.raises(InputError, match=r"record 1 of split 'test' is called .* rename"):
        inputs.of_split(dataset, 'test', bits=16)


def test_classes_are_kept(setting, tmp_path):
    config, workdir = setting
    assert classes.of_run(config, workdir) == classes.Classes(camvid.CLASSES, camvid.COLORS, ())
    (tmp_path / 'classes.json').write_text(json.dumps({'names': ['a']}))
    with pytest.raises(InputError, match='is damaged'):
        classes.of_run(config, tmp_path)
    # A run that did not keep them has those of its data set.
    with pytest.raises(InputError, match='manual_dir is not set'):
        classes.of_run(config, tmp_path / 'old')
