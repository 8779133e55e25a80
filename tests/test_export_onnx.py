"""Files of ONNX: onnxruntime, in a process without jax, computes what evaluation does."""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('jax2onnx', reason='the onnx extra is not installed')
onnx = pytest.importorskip('onnx', reason='the onnx extra is not installed')
onnxruntime = pytest.importorskip('onnxruntime', reason='the onnx extra is not installed')

import ggcf_jax  # noqa: E402  (after what is skipped)
from experiments.benchmark import onnx_files  # noqa: E402
from ggcf_jax import export, models, places  # noqa: E402
from ggcf_jax.errors import InputError  # noqa: E402
from ggcf_jax.evaluation import inference  # noqa: E402
from ggcf_jax.exporting import onnx_file, onnx_program  # noqa: E402
from ggcf_jax.workdir import config as workdir_config  # noqa: E402
from tests.helpers import ROOT, TINY_MODEL, load_config, save_untrained  # noqa: E402
from tests.models.backbones import tiny  # noqa: E402

# Packages without jax: site-packages of numpy and onnxruntime alone, by links.
_READER = """
import sys
sys.path.insert(0, 'packages')
{loader}
assert not [name for name in sys.modules if name.split('.')[0] in ('jax', 'jaxlib', 'ggcf_jax')]
import importlib.util
assert importlib.util.find_spec('jax') is None
about, predict = load('model.onnx')
images = np.load('images.npy')
labels, probabilities = map(np.concatenate, zip(predict(images[:1]), predict(images[1:])))
np.savez('results.npz', labels=labels, probabilities=probabilities)
"""


def _loader() -> str:
    """The loader of the docs."""
    text = (ROOT / 'docs' / 'export.md').read_text()
    return re.search(r'```python no-run\n(.*?)```', text, re.S)[1]


@pytest.mark.slow
def test_a_process_without_jax_computes_what_evaluation_does(untrained_run, tmp_path, rng):
    config = workdir_config.load(untrained_run)
    export.export_onnx(
        config, untrained_run, 'best', tmp_path / 'model.onnx', ((40, 56),), license_='mit'
    )
    content = (tmp_path / 'model.onnx').read_bytes()
    for place in (
        ROOT,
        pathlib.Path.home(),
        untrained_run.parent,
        pathlib.Path(jax.__file__).parent,
    ):
        assert str(place).encode() not in content
    images = rng.integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)
    np.save(tmp_path / 'images.npy', images)
    (tmp_path / 'packages').mkdir()
    for module in (np, onnxruntime):
        folder = pathlib.Path(module.__file__).parent
        for path in (folder, folder.with_name(f'{folder.name}.libs')):
            if path.exists():
                (tmp_path / 'packages' / path.name).symlink_to(path)
    script = _READER.format(loader=_loader())
    environment = {'PATH': os.environ['PATH']}
    subprocess.run(
        [sys.executable, '-I', '-S', '-c', script], cwd=tmp_path, check=True, env=environment
    )
    with np.load(tmp_path / 'results.npz') as results:
        labels, probabilities = results['labels'], results['probabilities']
    config.train.dtype = 'float32'
    model = ggcf_jax.load(untrained_run, config=config)
    for i, image in enumerate(images):
        np.testing.assert_allclose(probabilities[i], model.probabilities(image), atol=1e-4)
        np.testing.assert_array_equal(labels[i], model.predict(image))


@pytest.mark.slow
def test_a_run_in_a_bucket_and_a_file_there(tiny_config, bucket, rng):
    url = f'{bucket.scheme}://bucket/run'
    tiny_config.train.dtype = 'float32'
    save_untrained(tiny_config, 11, places.expand(url))
    file = f'{url}/model.onnx'
    export.export_onnx(tiny_config, url, 'best', file, ((40, 56),), license_='mit')
    session = onnxruntime.InferenceSession(places.expand(file).read_bytes())
    image = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    results = session.run(None, {session.get_inputs()[0].name: image[None]})
    expected = ggcf_jax.load(url).predict(image)
    assert len(np.unique(expected)) > 1
    [labels] = [x for x in results if x.ndim == 3]
    np.testing.assert_array_equal(labels[0], expected)


def _forward(changes):
    """`onnx_program.of_plan` of a tiny network with drawn parameters and of the plan of `eval`."""
    config = load_config('camvid')
    config.update_from_flattened_dict(TINY_MODEL | {'train.dtype': 'float32'} | changes)
    graphdef, params, stats = models.abstract(config, 11)
    plan = inference.build(config)
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        name = jax.tree_util.keystr(path)
        if 'var' in name or 'scale' in name:
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        fan = np.prod(leaf.shape[-4:-1]) if 'kernel' in name else 16  # keeps scores small
        return rng.normal(0, np.sqrt(2 / fan), leaf.shape).astype(leaf.dtype)

    params, stats = (jax.tree_util.tree_map_with_path(drawn, tree) for tree in (params, stats))

    return functools.partial(onnx_program.of_plan, graphdef, params, stats, plan)


def _undocumented(content):
    """Operators with the types of their arrays that TensorRT does not document."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content), data_prop=True)
    found = set()
    for node, types in onnx_file.nodes(model.graph):
        allowed = onnx_file.OPERATORS[node.op_type]
        at = {'Where': 1, 'Loop': 2, 'If': None, 'Constant': None}.get(node.op_type, 0)
        name = None if at is None or at >= len(node.input) else node.input[at]
        kind = types.get(name) if name else None
        if node.op_type == 'Cast':
            assert types.get(node.output[0]) != 'uint8'
            kind = None if name == 'images' else kind
        if kind is not None and kind not in allowed:
            found.add((node.op_type, kind))
    return found


_WIDE = {'model.context': 'none', 'model.backbone.width': 8}


@pytest.mark.slow
@pytest.mark.parametrize(
    'changes',
    [
        *(
            {'model.heads': heads}
            for heads in (
                'full', 'learned', 'local:1:shift', 'grid:2', 'cross', 'block:2', 'local:1@2',
                'local:1|row',
            )
        ),
        # Fewer are kept than there are, where borders and an intersection leave few as well.
        {'model.heads': 'local:1', 'eval.pruning': 'local:keep=5'},
        {'model.heads': 'local:3&grid:2', 'eval.pruning': 'intersection:drop=0.3'},
        *({'model.context': context} for context in ('aspp', 'psp', 'nonlocal', 'ccnet', 'isa')),
        *(
            _WIDE | {'model.backbone.name': name}
            for name in ('resnet18', 'wide_resnet38', 'mobilenet_v2', 'convnext_tiny', 'swin_tiny')
        ),
        *(
            _WIDE | {'model.backbone.name': f'{tiny.__name__}:{name}', 'model.backbone.stride': n}
            for name, n in (('dinov2', 14), ('mit', 32))
        ),
        {'eval.flip': True, 'eval.window': (16, 24)},
    ],
    ids=lambda changes: ','.join(map(str, changes.values())),
)  # fmt: skip
def test_labels_are_those_of_the_network_in_every_batch(changes, rng):
    program = _forward(changes)
    content = onnx_file.convert(program(converted=True), (24, 40), {'a': 'b'})
    assert _undocumented(content) == set()
    images = rng.integers(0, 256, (5, 24, 40, 3), dtype=np.uint8)
    labels, probabilities = map(np.asarray, jax.jit(program(converted=False))(images))
    for batch in (1, 2, 5):
        part = (images[:batch], labels[:batch], probabilities[:batch], [batch])
        assert onnx_file.check(content, *part, largest_logit=0) <= 2


@pytest.mark.slow
def test_the_experiment_compares_labels_and_times(rng, tmp_path):
    for name in 'ab':
        cv2.imwrite(str(tmp_path / f'{name}.png'), rng.integers(0, 256, (30, 50, 3), np.uint8))
    with pytest.raises(InputError, match='2 images, --count=3 are wanted'):
        onnx_files.read(tmp_path, 3, (24, 40))
    images = onnx_files.read(tmp_path, 2, (24, 40))
    assert [image.shape for image in images] == [(1, 24, 40, 3)] * 2
    _, line = list(onnx_files.rows('^`none`$', images))[1:]
    name, other, _, _, _, _, ratio = line.strip('| ').split(' | ')
    assert (name, int(other) <= 2, float(ratio) > 0) == ('`none`', True, True)


def test_random_pruning_is_refused_before_the_work(untrained_run, tmp_path):
    config = workdir_config.load(untrained_run)
    config.eval.pruning = 'local:keep=4:random=3'
    with pytest.raises(InputError, match=r"has 'local:keep=4:random=3', .* \('local:keep=4'\), or"):
        export.export_onnx(config, untrained_run, 'best', tmp_path / 'a.onnx', ((40, 56),))
    assert not (tmp_path / 'a.onnx').exists()


def test_wrong_labels_and_unknown_operators_are_refused(rng, monkeypatch):
    def run(images):
        probabilities = jax.nn.softmax(images.astype(jnp.float32))
        return probabilities.argmax(-1).astype(jnp.int32), probabilities

    content = onnx_file.convert(run, (3, 4), {'classes': json.dumps(['a'])})
    images = rng.integers(0, 256, (3, 3, 4, 3), dtype=np.uint8)
    labels, probabilities = map(np.asarray, run(images))
    assert onnx_file.check(content, images, labels, probabilities, (1, 2), 255) == 0
    with pytest.raises(InputError, match=r'gives \d+ of 36 pixels another class .*nothing was wri'):
        onnx_file.check(content, images, labels, probabilities[..., ::-1], (1, 2), 255)
    monkeypatch.setattr(onnx_file, 'OPERATORS', {'Cast': frozenset({'float32'})})
    with pytest.raises(InputError, match=r'needs the operators ArgMax, .*do not document'):
        onnx_file.convert(run, (3, 4), {}, batch=1)


def test_ties_are_measured_by_what_float32_can_tell_apart():
    """Logits 0.01 apart: rounding of logits of 10,000, but a difference among those of 10."""
    images = np.zeros((1, 1, 1, 3), np.uint8)
    content = onnx_file.convert(lambda x: (x[..., 0].astype(jnp.int32), x / 255.0), (1, 1), {})
    logits = np.array([0, 0.01, -3], np.float32)
    probabilities = (np.exp(logits) / np.exp(logits).sum()).reshape(1, 1, 1, 3)
    part = (content, images, np.ones((1, 1, 1), np.int32), probabilities, [1])
    assert onnx_file.check(*part, largest_logit=10_000) == 1
    with pytest.raises(InputError, match='gives 1 of 1 pixels another class'):
        onnx_file.check(*part, largest_logit=10)
    assert onnx_file.check(*part, largest_logit=10, rescaled=True) == 1


def test_one_size_is_asked_for(untrained_run, tmp_path):
    config = workdir_config.load(untrained_run)
    for sizes in ((), ((8, 8), (9, 9))):
        with pytest.raises(InputError, match='for images of one size; pass --sizes=HEIGHTxWIDTH'):
            export.export_onnx(config, untrained_run, 'best', tmp_path / 'a.onnx', sizes)
    assert not (tmp_path / 'a.onnx').exists()
