"""Files of ONNX: onnxruntime, in a process without jax, computes what evaluation does."""

import functools
import importlib
import json
import os
import pathlib
import pkgutil
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
reference = pytest.importorskip('onnx.reference', reason='the onnx extra is not installed')
onnxruntime = pytest.importorskip('onnxruntime', reason='the onnx extra is not installed')

import ggcf_jax  # noqa: E402  (after what is skipped)
from experiments.benchmark import onnx_files  # noqa: E402
from ggcf_jax import export, models, places  # noqa: E402
from ggcf_jax.attention import KINDS, parse  # noqa: E402
from ggcf_jax.errors import InputError  # noqa: E402
from ggcf_jax.evaluation import inference  # noqa: E402
from ggcf_jax.exporting import onnx_file, onnx_program  # noqa: E402
from ggcf_jax.models import contexts as contexts_lib  # noqa: E402
from ggcf_jax.models.contexts import pruning_rules  # noqa: E402
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


# Inputs that must be constants in TensorRT's list.
_CONSTANT = {
    'CumSum': 1, 'Pad': 3, 'ReduceSum': 1, 'Slice': 3, 'Squeeze': 1, 'TopK': 1, 'Unsqueeze': 1,
}  # fmt: skip


def _undocumented(content):
    """What TensorRT's list does not have: types of an operator, arrays for constants, options."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content), data_prop=True)
    found = set()
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
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
        attributes = {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}
        if node.op_type == 'Constant' and 'value' in attributes:
            constants[node.output[0]] = attributes['value']
        for x in attributes.values():
            if isinstance(x, onnx.GraphProto):
                constants |= {tensor.name: tensor for tensor in x.initializer}
        at = _CONSTANT.get(node.op_type)
        if at is not None and at < len(node.input) and node.input[at]:
            if node.input[at] not in constants:
                found.add((node.op_type, f'input {at} is computed'))
            elif node.op_type == 'TopK':
                count = int(onnx.numpy_helper.to_array(constants[node.input[at]]).item())
                assert count < 3840 and attributes.get('sorted', 1) == 1
        assert node.op_type != 'MaxPool' or set(attributes.get('dilations', [1])) == {1}
        assert node.op_type != 'ScatterND' or attributes.get('reduction', b'none') == b'none'
    return found


_PATCHES = {'model.backbone.name': f'{tiny.__name__}:Patches', 'model.backbone.width': 8}
# Heads of every kind, and rules that keep fewer neighbours than there are, also where borders or an
# intersection leave few. One network each: the converter takes longer for two at once.
_HEADS = (
    'full', 'local:1:shift', 'local:1|row', 'block:2+1', 'learned', 'row', 'column', 'grid:2',
    'cross', 'local:1@2', 'local:3&grid:2',
)  # fmt: skip
_PRUNED = {
    'local:1': 'local:keep=5',
    'local:1|row': 'union:drop=0.5',
    'full': 'full:drop=0.5',
    'learned': 'learned:drop=0.5',
    'row': 'row:drop=0.5',
    'column': 'column:drop=0.5',
    'grid:2': 'grid:drop=0.5',
    'cross': 'cross:drop=0.5',
    'block:2': 'block:drop=0.5',
    'local:3&grid:2': 'intersection:drop=0.3',
}
_FAMILIES = {
    'resnet18': 8,
    'wide_resnet38': 8,
    'mobilenet_v2': 8,
    **{f'{tiny.__name__}:{name}': 8 for name in ('convnext', 'swin')},
    f'{tiny.__name__}:dinov2': 14,
    f'{tiny.__name__}:mit': 32,
}
NETWORKS = {
    **{heads: _PATCHES | {'model.heads': heads} for heads in _HEADS},
    **{
        rule: _PATCHES | {'model.heads': heads, 'eval.pruning': rule}
        for heads, rule in _PRUNED.items()
    },
    **{
        context: _PATCHES | {'model.context': context}
        for context in ('aspp', 'psp', 'nonlocal', 'ccnet', 'isa', 'linear')
    },
    **{
        name.rpartition(':')[2]: {
            'model.context': 'none',
            'model.backbone.name': name,
            'model.backbone.width': 8,
            'model.backbone.stride': stride,
        }
        for name, stride in _FAMILIES.items()
    },
    'windows': _PATCHES | {'model.context': 'none', 'eval.flip': True, 'eval.window': (16, 24)},
}
# A loop, a search for the largest affinities, a gather, a resize, a depthwise convolution: what
# every run of the tests converts. Two minutes of the converter are left to `pytest -m soak`.
_ALWAYS = {
    'full', 'local:1:shift', 'local:1|row', 'block:2+1', 'learned', 'local:keep=5',
    'full:drop=0.5', 'psp', 'linear', 'mobilenet_v2', 'dinov2', 'windows',
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=() if name in _ALWAYS else pytest.mark.soak, id=name)
        for name in NETWORKS
    ],
)
def test_labels_are_those_of_the_network_in_every_batch(name, rng):
    program = _forward(NETWORKS[name])
    size = (96, 160) if name == 'mit' else (24, 40)  # at stride 32 a map of few positions otherwise
    content = onnx_file.convert(program(converted=True), size, {'a': 'b'})
    assert _undocumented(content) == set()
    images = rng.integers(0, 256, (6, *size, 3), dtype=np.uint8)
    labels, probabilities = map(np.asarray, jax.jit(program(converted=False))(images))
    assert len(np.unique(labels)) > 3
    assert onnx_file.check(content, images, labels, probabilities, (1, 2, 3), largest_logit=0) <= 3


def test_the_networks_have_every_kind_of_head_and_every_context_module():
    assert {parse(heads)[0].kind() for heads in _HEADS} | {'local'} == set(KINDS)
    for heads, rule in _PRUNED.items():
        assert pruning_rules.assign(pruning_rules.parse(rule), parse(heads)) != (None,)
    assert {parse(heads)[0].kind() for heads in _PRUNED} == set(KINDS)
    assert set(NETWORKS) >= _ALWAYS
    known = {
        name
        for info in pkgutil.iter_modules(contexts_lib.__path__)
        for name in getattr(
            importlib.import_module(f'{contexts_lib.__name__}.{info.name}'), 'CONTEXTS', ()
        )
    }
    assert {changes.get('model.context', 'ggcf') for changes in NETWORKS.values()} == known


@pytest.mark.slow
def test_the_experiment_compares_labels_and_times(rng, tmp_path):
    for name in 'ab':
        cv2.imwrite(str(tmp_path / f'{name}.png'), rng.integers(0, 256, (30, 50, 3), np.uint8))
    with pytest.raises(InputError, match='2 images, --count=3 are wanted'):
        onnx_files.read(tmp_path, 3, (24, 40))
    images = onnx_files.read(tmp_path, 2, (24, 40))
    assert [image.shape for image in images] == [(1, 24, 40, 3)] * 2
    assert list(onnx_files.measure('^`(none|linear)`$', images, tmp_path)) == ['`linear`', '`none`']
    *_, line, _ = lines = onnx_files.table(tmp_path).splitlines()
    assert len(lines) == 4
    name, other, _, margin, *_, ratio = line.strip('| ').split(' | ')
    assert (name, int(other) <= 2) == ('`linear`', True)
    assert float(margin) > 0 and float(ratio) > 0
    assert not list(onnx_files.measure('^`none`$', images, tmp_path))  # what is there is kept


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


def test_quotients_are_those_of_jax_where_a_runtime_rounds_them_down():
    """OpenVINO rounds quotients of constant integers down, onnxruntime towards zero."""

    class Div(reference.op_run.OpRun):
        op_domain = ''

        def _run(self, a, b):
            return (a // b if a.dtype.kind == 'i' else a / b,)

    dividends = np.array([[-7, -6, -1, 0, 1, 7]], np.int32)

    def run(images):
        quotients = jnp.asarray(dividends) // 3 + jax.lax.div(jnp.asarray(dividends), -2)
        labels = jax.lax.fori_loop(
            0, 2, lambda i, x: x + jnp.asarray(dividends) // (i - 3), quotients + images[..., 0]
        )
        return labels, images / 255.0

    content = onnx_file.convert(run, dividends.shape, {}, batch=1)
    images = np.ones((1, *dividends.shape, 3), np.uint8)
    expected = dividends // 3 + np.array([3, 3, 0, 0, 0, -3]) + dividends // -3 + dividends // -2
    rounds_down = reference.ReferenceEvaluator(onnx.load_from_string(content), new_ops=[Div])
    for found in (onnx_file.load(content)(images), rounds_down.run(None, {'images': images})):
        np.testing.assert_array_equal(found[0][0], expected + 1)


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
