"""The published context modules against independent twins in torch, in both modes.

In float64: what differs is then a mistake, not the rounding of norms behind norms.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from ggcf_jax import config as config_lib
from ggcf_jax import registry
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.models import contexts
from ggcf_jax.models.contexts import PrunedContext
from ggcf_jax.models.layers import extent as extent_lib

torch = pytest.importorskip('torch', reason='the parity extra (torch) is not installed')

from tests.models.contexts.torch_contexts import TWINS  # noqa: E402  (these need torch)

FEATURES = 6
SMALL = {
    'model.psp.channels': 4,
    'model.non_local.channels': 6,
    'model.isa.channels': 4,
    'model.isa.key_channels': 3,
    'model.isa.partition': (2, 3),
    'model.ccnet.channels': 4,
    'model.ccnet.reduction': 2,
}
_NAMES = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}


def _model(changes):
    config = config_lib.default()
    config.update_from_flattened_dict(changes)
    return config.model


def _build(name, model, features=FEATURES, dtype=jnp.float32):
    """(graphdef, parameters, statistics) of a module, as shapes."""
    build = registry.find(contexts, 'CONTEXTS', name, 'model.context')
    module = nnx.eval_shape(lambda: build(model, features, dtype=dtype, rngs=nnx.Rngs(0)))
    graphdef, *state = nnx.split(module, nnx.Param, nnx.BatchStat)
    return graphdef, *map(nnx.as_pure, state)


def _theirs(path):
    """Name in torch of the array at a path of ours."""
    *parents, last = jax.tree_util.keystr(path, simple=True, separator='.').split('.')
    return re.sub(r'norm\.norm', 'norm', '.'.join([*parents, _NAMES.get(last, last)]))


def _to_ours(tree, tensors):
    """The tensors in the order and shapes of a tree of ours; each must be there and fit."""

    def convert(path, ours):
        array = tensors[_theirs(path)].detach().numpy()
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        assert array.shape == ours.shape, path
        return jnp.asarray(array)

    return jax.tree_util.tree_map_with_path(convert, tree)


def _image(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def _random_twin(name, model):
    torch.manual_seed(0)
    twin = TWINS[name](FEATURES, model).double()
    with torch.no_grad():
        for tensor_name, tensor in twin.state_dict().items():
            if 'running_var' in tensor_name:
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.5)
    return twin


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize('name', TWINS)
def test_parameters_at_the_published_size(name):
    model = _model({})
    with torch.device('meta'):
        twin = TWINS[name](2048, model)
    theirs = {n: t.shape for n, t in twin.state_dict().items() if 'num_batches' not in n}
    _, params, stats = _build(name, model, 2048)
    ours = jax.tree_util.tree_leaves_with_path((params, stats))
    shapes = {_theirs(path[1:]): array.shape for path, array in ours}
    assert shapes.keys() == theirs.keys()
    for key, shape in shapes.items():
        expected = tuple(theirs[key])
        expected = tuple(expected[i] for i in (2, 3, 1, 0)) if len(expected) == 4 else expected
        assert shape == expected, key


@pytest.mark.parametrize(
    ('name', 'changes', 'size'),
    [
        ('psp', {}, (7, 10)),  # no multiple of 6 bins
        pytest.param(
            'psp', {'model.psp.align_corners': False, 'model.psp.pool_scales': (2, 5)}, (4, 10),
            marks=pytest.mark.slow,
        ),
        ('nonlocal', {}, (5, 7)),
        pytest.param(
            'nonlocal',
            {'model.non_local.use_scale': False, 'model.non_local.concat_input': False,
             'model.non_local.reduction': 3}, (5, 7),
            marks=pytest.mark.slow,
        ),
        ('isa', {}, (5, 7)),  # blocks cut at both borders
        pytest.param('isa', {}, (4, 6), marks=pytest.mark.slow),
        pytest.param('isa', {'model.isa.partition': (3, 9)}, (7, 4), marks=pytest.mark.slow),
        ('ccnet', {}, (4, 5)),
        pytest.param('ccnet', {'model.ccnet.recurrence': 3}, (1, 5), marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_equals_the_twin_in_both_modes(x64, rng, name, changes, size):
    model = _model(SMALL | changes)
    twin = _random_twin(name, model)
    graphdef, *trees = _build(name, model, dtype=jnp.float64)
    params, stats = (_to_ours(tree, twin.state_dict()) for tree in trees)
    x = jnp.asarray(rng.normal(size=(2, *size, FEATURES)))
    features = nnx.merge(graphdef, params, stats).features
    cotangent = jnp.asarray(rng.normal(size=(2, *size, features)))
    at = np.stack(np.unravel_index(np.arange(size[0] * size[1]), size), 1)

    @jax.jit
    def run(params, stats, x):
        def trained(params, x):
            module = nnx.merge(graphdef, params, stats, copy=True)
            y = module(x, train=True)
            return (y * cotangent).sum(), (y, nnx.as_pure(nnx.state(module, nnx.BatchStat)))

        module = nnx.merge(graphdef, params, stats, copy=True)
        evaluated = module(x, train=False)
        maps = module.attention(x, at) if isinstance(module, PrunedContext) else None
        (_, (y, new)), gradients = jax.value_and_grad(trained, (0, 1), has_aux=True)(params, x)
        return evaluated, maps, y, new, gradients

    evaluated, maps, y, new, (of_params, of_x) = run(params, stats, x)

    with torch.no_grad():
        theirs = twin.eval()(_image(x))
    _assert_close(evaluated, theirs.permute(0, 2, 3, 1))
    if maps is not None:
        expected = torch.stack(twin.maps, 2).unflatten(3, size)  # [b, queries, heads, h, w]
        _assert_close(maps, expected)

    inputs = _image(x).requires_grad_()
    theirs = twin.train()(inputs)
    theirs.backward(_image(cotangent))
    _assert_close(y, theirs.permute(0, 2, 3, 1).detach())
    _assert_close(of_x, inputs.grad.permute(0, 2, 3, 1))
    gradients = _to_ours(trees[0], {n: p.grad for n, p in twin.named_parameters()})
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    for (path, ours), expected in zip(
        jax.tree_util.tree_leaves_with_path(of_params), jax.tree.leaves(gradients)
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-9 * largest, err_msg=str(path))
    # Variances differ by n / (n - 1) (tests/models/layers/test_norm.py has ours).
    _assert_means_equal(new, _to_ours(trees[1], twin.state_dict()))


def _assert_close(ours, theirs):
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())


def _assert_means_equal(ours, theirs):
    pairs = zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs))
    for (path, mean), expected in pairs:
        if jax.tree_util.keystr(path).endswith("['mean']"):
            np.testing.assert_allclose(mean, expected, atol=1e-9, err_msg=str(path))


@pytest.mark.slow
@pytest.mark.parametrize('name', TWINS)
def test_padding_is_neither_read_nor_attended_to(x64, rng, name):
    model = _model(SMALL)
    twin = _random_twin(name, model)
    graphdef, *trees = _build(name, model, dtype=jnp.float64)
    state = [_to_ours(tree, twin.state_dict()) for tree in trees]
    sizes = ((5, 7), (3, 9), (1, 1))
    extent = extent_lib.of_sizes(jnp.array(sizes, jnp.int32))
    maps = jnp.asarray(rng.normal(size=(3, 6, 9, FEATURES)))
    maps = jnp.where(extent.mask(6, 9)[..., None], maps, jnp.nan)
    at = np.array([[0, 0]])

    @jax.jit
    def run(x, extent=None):
        module = nnx.merge(graphdef, *state, copy=True)
        y = module(x, train=False, extent=extent)
        if not isinstance(module, PrunedContext):
            return y, None
        return y, module.attention(x, at, extent=extent)

    found, attended = run(maps, extent)
    for i, (h, w) in enumerate(sizes):
        alone, weights = run(maps[i : i + 1, :h, :w])
        _assert_close(found[i, :h, :w], alone[0])
        if weights is not None:
            _assert_close(attended[i, ..., :h, :w], weights[0])
            assert float(attended[i].sum()) == pytest.approx(attended.shape[2])


@pytest.mark.slow
@pytest.mark.parametrize('name', TWINS)
def test_devices_that_share_rows_compute_the_same(x64, rng, name):
    model = _model(SMALL)
    twin = _random_twin(name, model)
    graphdef, *trees = _build(name, model, dtype=jnp.float64)
    params, stats = (_to_ours(tree, twin.state_dict()) for tree in trees)
    x = jnp.asarray(rng.normal(size=(2, 8, 7, FEATURES)))

    @jax.jit
    @jax.grad
    def gradient(params, x):
        module = nnx.merge(graphdef, params, stats, copy=True)
        return (module(x, train=True) ** 3).sum()

    alone = gradient(params, x)
    mesh = mesh_lib.make_mesh(jax.devices()[:4], space=2)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec('data', 'space'))
        shared = gradient(
            jax.device_put(params, mesh_lib.replicated(mesh)), jax.device_put(x, rows)
        )
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(alone))
    for a, b in zip(jax.tree.leaves(shared), jax.tree.leaves(alone)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * largest)
