"""A whole run in a bucket equals the one on the disk, and every mode works from there."""

import functools
import json
import pathlib
import types
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

import ggcf_jax
from ggcf_jax import buckets, evaluate, export, models, places, predict, score, train
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.serving import viewer
from ggcf_jax.workdir import checkpoints
from ggcf_jax.workdir.metrics_log import read_rows


def _rows(workdir):
    """The rows of metrics.jsonl without times and rates."""
    return [
        {k: v for k, v in row.items() if not k.endswith(('_sec', 'per_sec'))}
        for row in read_rows(workdir)
    ]


def _latest(workdir, config):
    _, params, stats = models.abstract(config, 11)
    sharding = mesh_lib.replicated(mesh_lib.make_mesh())
    found = checkpoints.restore(workdir, params, stats, sharding, 'latest')
    return found.step, jax.device_get((found.params, found.stats))


class _Killed(Exception):
    pass


def _killed_at(monkeypatch, method: str, call: int) -> None:
    """Ends the next run at a call of the checkpointer, as if the process had gone."""
    original = getattr(checkpoints.Checkpointer, method)
    calls = []

    @functools.wraps(original)
    def patched(*arguments, **options):
        calls.append(method)
        if len(calls) == call:
            raise _Killed
        return original(*arguments, **options)

    monkeypatch.setattr(checkpoints.Checkpointer, method, patched)


@pytest.mark.slow
def test_a_run_in_a_bucket_is_that_on_the_disk(tiny_run, bucket, tmp_path, monkeypatch):
    config, local, evaluation = tiny_run
    config = config.copy_and_resolve_references()
    url = f'{bucket.scheme}://bucket/run'
    workdir = places.expand(url)
    with monkeypatch.context() as patch:
        _killed_at(patch, 'score', 1)
        with pytest.raises(_Killed):
            train.train_and_evaluate(config, url)
    assert list(checkpoints.steps(workdir)) == [3, 6]
    config.train.profile = '9:10'
    train.train_and_evaluate(config, url)
    assert _rows(workdir) == _rows(local)
    (step, found), (_, expected) = _latest(workdir, config), _latest(local, config)
    assert step == 12
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)
    assert checkpoints.steps(workdir) == checkpoints.steps(local)

    names = {pathlib.PurePosixPath(name) for name in buckets.tree(workdir)}
    there = {path.relative_to(local) for path in local.rglob('*') if path.is_file()}
    ours = {str(name) for name in names if name.parts[0] not in ('checkpoints', 'profile')}
    theirs = {str(name) for name in there if name.parts[0] not in ('checkpoints', 'profile')}
    is_event = lambda name: name.startswith('events.')  # noqa: E731
    # What tests evaluated in the local run since is no part of it.
    assert {n for n in ours if not is_event(n)} <= theirs
    assert len([n for n in ours if is_event(n)]) == 2
    assert any(str(name).endswith('.xplane.pb') for name in names)

    again = evaluate.evaluate_workdir(config, url, 'validation', 'latest')
    np.testing.assert_array_equal(again.matrix, evaluation.matrix)
    assert '<html' in (workdir / 'report.html').read_text()

    output = workdir / 'predicted'
    images = pathlib.Path(config.data.manual_dir) / 'val'
    for path in images.iterdir():
        buckets.upload(path, workdir.parent / 'images' / path.name)
    monkeypatch.setenv('GGCF_JAX_CACHE', str(tmp_path / 'cache'))
    assert predict.predict(config, url, 'latest', f'{bucket.scheme}://bucket/images', str(output))
    assert predict.predict(config, url, 'latest', str(images), str(tmp_path / 'predicted'))
    for path in sorted((tmp_path / 'predicted' / 'labels').iterdir()):
        assert (output / 'labels' / path.name).read_bytes() == path.read_bytes()
    before = len(bucket.requests)
    assert predict.predict(config, url, 'latest', f'{bucket.scheme}://bucket/images', str(output))
    written = [url for method, url in bucket.requests[before:] if method in ('PUT', 'POST')]
    assert not any('/labels/' in url for url in written), 'nothing was to be computed'

    export.export_workdir(config, url, 'latest', f'{url}/model.zip', ((40, 56),))
    with zipfile.ZipFile((workdir / 'model.zip').open('rb')) as file:
        assert '40x56.jax_export' in file.namelist()

    there = f'{url}/predicted/labels'
    flags = types.SimpleNamespace(
        input=there,
        labels=there,
        classes=f'{url}/predicted/classes.csv',
        output=f'{url}/score.json',
    )
    assert score.run(config, workdir, flags) == 0
    assert json.loads((workdir / 'score.json').read_bytes())['metrics']['miou'] == 1

    export.export_folder(config, url, 'latest', f'{url}/released')
    export.export_backbone(config, url, 'latest', f'{url}/backbone.safetensors')
    assert 'backbone.safetensors' in {path.name for path in workdir.iterdir()}
    served = viewer.load(config, url, 'latest')
    assert served.step == ggcf_jax.load(f'{url}/released').step == 12
    image = np.asarray(Image.open(images / 'val_0.png'))
    labels = np.asarray(Image.open(tmp_path / 'predicted' / 'labels' / 'val_0.png'))
    np.testing.assert_array_equal(served.segment(image), labels)
