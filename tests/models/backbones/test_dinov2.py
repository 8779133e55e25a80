"""What DINOv2 promises the segmenter. Values: tests/models/pretrained/test_dinov2.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from ggcf_jax import config as config_lib
from ggcf_jax import models, train
from ggcf_jax.attention import target
from ggcf_jax.errors import InputError
from ggcf_jax.models.backbones import dinov2
from ggcf_jax.models.layers import extent as extent_lib
from ggcf_jax.models.layers.positions import interpolated
from ggcf_jax.models.pretrained import writing
from ggcf_jax.workdir import checkpoints
from ggcf_jax.workdir.metrics_log import read_rows
from tests.helpers import load_config
from tests.models.backbones import tiny

FIELDS = {
    'model.backbone.name': f'{tiny.__name__}:dinov2',
    'model.backbone.width': 4,
    'model.backbone.stride': 14,
}
TINY = tiny.dinov2.args[0]


@functools.cache
def _network(**options):
    """Structure and parameters, drawn here: compiling the network's own draws takes long."""
    make = functools.partial(dinov2.DINOv2, TINY, width=4, **{'dtype': jnp.float32} | options)
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def draw(x):
        return jnp.float32(rng.normal(size=x.shape, scale=max(1, np.prod(x.shape[1:-1])) ** -0.5))

    return graphdef, jax.tree.map(draw, nnx.as_pure(shapes))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _run(graphdef, state, x, train=False, key=None):
    return nnx.merge(graphdef, state)(x, train=train, key=key)


def _gradient(options, x):
    graphdef, state = _network(**options)
    total = lambda state: sum((y**2).sum() for y in _run(graphdef, state, x, True))  # noqa: E731
    return jax.jit(jax.grad(total))(state)


@pytest.fixture
def x(rng):
    return jnp.float32(rng.normal(size=(2, 33, 50, 3)))


@pytest.mark.parametrize(
    ('size', 'map_size'), [((28, 42), (2, 3)), ((29, 43), (3, 4)), ((1, 1),) * 2]
)
def test_four_maps_of_one_size(size, map_size):
    graphdef, state = _network()
    model = nnx.merge(graphdef, state)
    assert (model.stride, model.strides, model.first) == (14, (14,) * 4, (6.5,) * 4)
    found = jax.eval_shape(
        functools.partial(_run, graphdef), state, jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    )
    assert [y.shape for y in found] == [(2, *map_size, 8)] * 4 and model.features == (8,) * 4


@pytest.mark.slow
def test_rematerialised_gradients_are_equal(x):
    x = x[:1, :14]
    plain, *others = (_gradient({'remat': remat}, x) for remat in ('none', 'inplace_abn', 'block'))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(plain))
    for other in others:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), plain, other
        )


def test_bfloat16(x):
    wide, narrow = (_run(*_network(dtype=dtype), x) for dtype in (jnp.float32, jnp.bfloat16))
    for a, b in zip(wide, narrow):
        assert b.dtype == jnp.bfloat16
        np.testing.assert_allclose(b.astype(jnp.float32), a, atol=0.2)
    assert {leaf.dtype for leaf in jax.tree.leaves(_network()[1])} == {jnp.dtype('float32')}


def test_the_attention_that_is_named_computes_it(x):
    for a, b in zip(_run(*_network(), x), _run(*_network(implementation='reference'), x)):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('padded', [False, True])
def test_tokens_in_a_row_are_those_of_two_arrays(x, padded):
    """The form of CPUs beside that of accelerators, with branches left out at random."""
    graphdef, state = _network(drop_rate=0.5, implementation='reference')
    extent = extent_lib.of_sizes(jnp.array([(33, 50), (20, 14)])) if padded else None
    key = jax.random.key(0)

    def loss(state, x):
        outputs = nnx.merge(graphdef, state)(x, train=True, key=key, extent=extent)
        seen = 1 if extent is None else extent_lib.strided(extent, 14).mask(3, 4)[..., None]
        outputs = [jnp.where(seen, y, 0) for y in outputs]
        return sum((y**2).sum() for y in outputs), outputs

    found = []
    for platform in ('cpu', 'gpu'):
        with target.tracing_for(platform):
            found.append(jax.jit(jax.grad(lambda *a: loss(*a), (0, 1), has_aux=True))(state, x))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_branches_are_left_out_when_training(x):
    graphdef, state = _network(drop_rate=0.9)
    first, again, other = (_run(graphdef, state, x, True, jax.random.key(i)) for i in (0, 0, 1))
    still = _run(graphdef, state, x)
    for a, b, c, d in zip(first, again, other, still):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any() and (a != d).any()
    with pytest.raises(ValueError, match='need a key'):
        _run(graphdef, state, x, True)


def test_equal_blocks_are_stacked_and_differ():
    graphdef, shapes = nnx.split(
        nnx.eval_shape(lambda: dinov2.DINOv2(TINY, width=4, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    )
    del graphdef
    lengths = [stack['blocks']['fc1']['kernel'].shape for stack in shapes['stages'][0].values()]
    assert lengths == [(2, 8, 32)] + [(1, 8, 32)] * 3


@pytest.mark.parametrize('size', [(3, 3), (1, 2), (7, 4)])
def test_positions_of_padded_maps_are_those_of_each_alone(rng, size):
    table = jnp.float32(rng.normal(size=(3, 3, 2)))
    extent = extent_lib.of_sizes(jnp.array([size, (2, 2)]))
    found = interpolated(table, (8, 5), extent)
    alone = interpolated(table, size)[0]
    np.testing.assert_allclose(found[0, : size[0], : size[1]], alone, atol=1e-6)
    if size == (3, 3):
        np.testing.assert_array_equal(alone, table)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'stride': 16}, r'stride=16 is not supported by dinov2_small; use 14'),
        ({'multi_grid': (1, 2)}, r'multi_grid=\(1, 2\) is not supported by dinov2_small'),
        ({'activation': 'relu'}, "activation='relu' is not supported by dinov2_small; use 'gelu'"),
    ],
)
def test_fields_that_it_does_not_have(tiny_config, change, message):
    tiny_config.model.backbone.update({'name': 'dinov2_small', 'stride': 14, **change})
    with pytest.raises(InputError, match=message):
        models.abstract(tiny_config, 5)


@pytest.mark.slow
def test_a_step_with_the_backbone_frozen_and_an_evaluation(tiny_config, tmp_path):
    """The recipe configs/folder.py:dinov2_s in small: the backbone stays equal to its file."""
    recipe = load_config('folder', 'dinov2_s')
    tiny_config.model = recipe.model
    tiny_config.update_from_flattened_dict(FIELDS)
    names = ('frozen', 'optimizer', 'aux_weight', 'learning_rate', 'weight_decay')
    tiny_config.train.update({name: recipe.train[name] for name in names})
    tiny_config.train.update(steps=1, log_every=1, eval_every=1, checkpoint_every=1)
    tiny_config.eval.update(window=(20, 20), stride=(13, 13))
    _, state = _network()
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator='.'): x
        for path, x in jax.tree_util.tree_leaves_with_path(state)
    }
    weights = tmp_path / 'dinov2.safetensors'
    safetensors.numpy.save_file(
        writing.tensors(arrays, load_config('folder', 'dinov2_s').model), weights
    )
    tiny_config.model.backbone.weights = str(weights)

    evaluation = train.train_and_evaluate(tiny_config, tmp_path / 'run')
    assert 0 <= evaluation.miou <= 1
    (loss,) = (row['train/loss'] for row in read_rows(tmp_path / 'run') if 'train/loss' in row)
    assert 0 < loss < 10
    params = checkpoints.restore_as_saved(tmp_path / 'run').params
    for path, x in arrays.items():
        found = functools.reduce(lambda tree, name: tree[name], path.split('.'), params['backbone'])
        np.testing.assert_array_equal(found, x, err_msg=path)


@pytest.mark.parametrize('name', ['folder', 'ade20k'])
def test_the_recipes_need_weights(tmp_path, name):
    recipe = load_config(name, 'dinov2_s')
    with pytest.raises(InputError, match="frozen='backbone' keeps parameters as they start"):
        config_lib.check(recipe, devices=1)
    recipe.model.backbone.weights = str(tmp_path / 'dinov2.pth')
    config_lib.check(recipe, devices=1)
    model = nnx.eval_shape(lambda: models.build(recipe, 3))
    assert (model.stride, model.first, model.context.features) == (14, 6.5, 384)
