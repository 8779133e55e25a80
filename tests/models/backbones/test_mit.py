"""What MiT promises the segmenter. Values: tests/models/pretrained/test_mit.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax import models
from ggcf_jax.errors import InputError
from ggcf_jax.models.backbones import mit
from tests.models.backbones import tiny

TINY = mit.Architecture(tiny.mit.args[0].depths, 4)
SHALLOW = mit.Architecture(tiny.mit_shallow.args[0].depths, 4)


@functools.cache
def _network(architecture=TINY, **options):
    """Structure and parameters, drawn here: compiling the network's own draws takes long."""
    make = functools.partial(mit.MiT, architecture, **{'dtype': jnp.float32} | options)
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def draw(x):
        return jnp.float32(rng.normal(size=x.shape, scale=max(1, np.prod(x.shape[1:-1])) ** -0.5))

    return graphdef, jax.tree.map(draw, nnx.as_pure(shapes))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _run(graphdef, state, x, train=False, key=None):
    return nnx.merge(graphdef, state)(x, train=train, key=key)


def _gradient(options, x):
    graphdef, state = _network(SHALLOW, **options)
    total = lambda state: sum((y**2).sum() for y in _run(graphdef, state, x, True))  # noqa: E731
    return jax.jit(jax.grad(total))(state)


@pytest.fixture
def x(rng):
    return jnp.float32(rng.normal(size=(2, 33, 40, 3)))


@pytest.mark.parametrize('size', [(64, 96), (33, 50), (1, 1)])
def test_maps_at_four_strides(size):
    graphdef, state = _network()
    model = nnx.merge(graphdef, state)
    assert (model.stride, model.strides) == (32, (4, 8, 16, 32))
    found = jax.eval_shape(
        functools.partial(_run, graphdef), state, jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    )
    assert model.features == (4, 8, 20, 32)
    assert [y.shape for y in found] == [
        (2, *(-(-length // stride) for length in size), features)
        for stride, features in zip(model.strides, model.features)
    ]


@pytest.mark.slow
def test_rematerialised_gradients_are_equal(rng):
    x = jnp.float32(rng.normal(size=(1, 64, 96, 3)))  # more than one key in every stage
    plain, *others = (_gradient({'remat': remat}, x) for remat in ('none', 'inplace_abn', 'block'))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(plain))
    for other in others:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2), plain, other
        )


def test_bfloat16(x):
    wide, narrow = (_run(*_network(dtype=dtype), x) for dtype in (jnp.float32, jnp.bfloat16))
    for a, b in zip(wide, narrow):
        assert b.dtype == jnp.bfloat16
        difference = np.abs(b.astype(jnp.float32) - a)
        assert difference.mean() < 0.05 * np.abs(a).mean()


def test_the_attention_that_is_named_computes_it(x):
    for a, b in zip(_run(*_network(), x), _run(*_network(implementation='reference'), x)):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_branches_are_left_out_when_training(x):
    graphdef, state = _network(drop_rate=0.9)
    first, again, other = (_run(graphdef, state, x, True, jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first[3], again[3])
    assert (first[3] != other[3]).any() and (first[3] != _run(graphdef, state, x)[3]).any()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'stride': 16}, r'stride=16 is not supported by mit_b2; use 32'),
        ({'first_dilation': 'half'}, r"first_dilation='half' is not supported by mit_b2"),
        ({'activation': 'relu'}, "activation='relu' is not supported by mit_b2; use 'gelu'"),
    ],
)
def test_fields_that_it_does_not_have(tiny_config, change, message):
    tiny_config.model.backbone.update({'name': 'mit_b2', 'stride': 32, **change})
    with pytest.raises(InputError, match=message):
        models.abstract(tiny_config, 5)
