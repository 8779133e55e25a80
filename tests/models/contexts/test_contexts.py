import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax import config as config_lib
from ggcf_jax import models
from ggcf_jax.attention import attend, graphs
from ggcf_jax.errors import InputError
from ggcf_jax.models.contexts import pruning_rules
from ggcf_jax.models.contexts.aspp import ASPP
from ggcf_jax.models.contexts.ggcf import GGCF
from tests.helpers import compiled


def _ggcf(heads, seed=0, scale=1.0):
    return compiled(
        lambda: GGCF(
            6,
            graphs.parse(heads),
            channels=5,
            key_channels=3,
            value_channels=4,
            scale=scale,
            activation='relu',
            dtype=jnp.float32,
            rngs=nnx.Rngs(seed),
        )
    )


def _run(module, f, *arguments):
    """f(module, *arguments), compiled."""
    graphdef, state = nnx.split(module)
    return jax.jit(lambda state, *x: f(nnx.merge(graphdef, state, copy=True), *x))(
        state, *arguments
    )


def _pointwise(layer, x):
    return x @ np.asarray(layer.kernel[...])[0, 0] + np.asarray(layer.bias[...])


def _equation_3(module, x, scale):
    """Eq. 3 position by position, with a kernel W_k of its own for each head."""
    n, channels = x.shape[1] * x.shape[2], x.shape[3]
    _, h, w, _ = x.shape
    heads = len(module.heads)
    x = np.asarray(x, np.float64).reshape(-1, n, channels)
    theta = _pointwise(module.theta, x).reshape(-1, n, heads, 3)
    phi = _pointwise(module.phi, x).reshape(-1, n, heads, 3)
    g = _pointwise(module.g, x)
    w_k = np.asarray(module.w.kernel[...])[0, 0].reshape(heads, 4, channels)
    y = np.zeros_like(x) + np.asarray(module.w.bias[...])
    for k, graph in enumerate(module.heads):
        if graph.trainable:
            graph = graph.bind({name: p[...] for name, p in module.graph_params[k].items()})
        edges = np.asarray(graph.adjacency(h, w), np.float64)
        for b in range(len(x)):
            for i in range(n):
                weights = edges[i] * np.exp(scale * phi[b, :, k] @ theta[b, i, k])
                y[b, i] += (weights @ g[b] / weights.sum()) @ w_k[k]
    return y.reshape(-1, h, w, channels)


@pytest.mark.parametrize(
    'heads', ['full', 'local:1,grid:2', 'local:2,full,grid:3,local:2', 'learned']
)
@pytest.mark.parametrize('scale', [1.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_ggcf_is_equation_3_joined_with_its_input(rng, heads, scale):
    module = _ggcf(heads, scale=scale)
    x = jnp.float32(rng.normal(size=(2, 5, 4, 6)))
    reduced, output = _run(
        module, lambda module, x: (module.reduce(x, train=False), module(x, train=False)), x
    )
    assert output.shape == (2, 5, 4, module.features)
    np.testing.assert_allclose(
        output[..., :5], _equation_3(module, reduced, scale), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(output[..., 5:], reduced)


@pytest.mark.parametrize(
    ('heads', 'rules', 'calls'),
    [
        ('local:1,grid:2,local:1,local:2,local:1', '', [3, 1, 1]),
        ('local:8,16,24,grid:8,16,24', '', [1] * 6),
        ('local:1,1,grid:2,2', 'local:keep=3,grid:keep=2:random', [2, 1, 1]),
        ('learned,learned,full,full', '', [1, 1, 2]),
    ],
)
def test_heads_of_one_kind_and_size_share_a_call(rng, heads, rules, calls, monkeypatch):
    module = pruning_rules.pruned(_ggcf(heads), pruning_rules.parse(rules))
    x = jnp.float32(rng.normal(size=(1, 3, 4, 6)))
    counts = []
    monkeypatch.setattr(
        'ggcf_jax.models.contexts.ggcf.attend',
        lambda q, *others, **options: counts.append(q.shape[3]) or attend(q, *others, **options),
    )
    jax.eval_shape(lambda x: module(x, train=False), x)
    assert counts == calls


@pytest.mark.slow
@pytest.mark.parametrize(
    ('heads', 'rules'),
    [('full', ''), ('local:2,2,grid:3', 'local:drop=0.5,grid:keep=1:random'), ('learned', '')],
)
def test_attention_of_ggcf_is_what_its_output_sums_with(rng, heads, rules):
    module = pruning_rules.pruned(_ggcf(heads, scale=0.5), pruning_rules.parse(rules))
    x = jnp.float32(rng.normal(size=(2, 5, 4, 6)))
    at = np.stack(np.divmod(np.arange(20), 4), axis=1)

    def everything(module, x, at):
        return (
            module.attention(x, at),
            module.g(module.reduce(x, train=False)),
            module(x, train=False),
        )

    rows, values, output = map(np.asarray, _run(module, everything, x, jnp.asarray(at)))
    rows = rows.reshape(2, 20, -1, 20)
    fused = np.einsum('bikj,bjc->bikc', rows, values.reshape(2, 20, 4)).reshape(2, 5, 4, -1)
    y = _run(module, lambda module, fused: module.w(fused), jnp.float32(fused))
    np.testing.assert_allclose(y, output[..., :5], rtol=1e-4, atol=1e-5)


def test_every_parameter_of_ggcf_gets_a_gradient(rng):
    module = _ggcf('local:1,grid:2,full,learned')
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    x = jnp.float32(rng.normal(size=(2, 5, 4, 6)))

    def loss(params):
        return (nnx.merge(graphdef, params, rest, copy=True)(x, train=True) ** 3).sum()

    gradients = jax.jit(jax.grad(loss))(params)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        # A constant added to phi or to the log of E changes no softmax.
        name = jax.tree_util.keystr(path)
        assert np.isfinite(gradient).all(), name
        if "'phi'" not in name or "'bias'" not in name:
            assert np.abs(gradient).max() > 1e-7, name


def test_aspp_shapes_and_image_pooling(rng):
    module = ASPP(
        6, channels=4, rates=(2, 3), activation='relu', dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    x = jnp.float32(rng.normal(size=(2, 9, 7, 6)))
    output = module(x, train=False)
    assert output.shape == (2, 9, 7, 4) and module.features == 4
    # The dilated branches reach 3 positions; only image pooling carries a change further.
    moved = module(x.at[:, 0, 0].add(10.0), train=False)
    assert (np.abs(moved - output)[:, 8, 6] > 1e-6).any()


@pytest.mark.parametrize('context', ['ggcf', 'nonlocal', 'ccnet', 'isa'])
def test_an_implementation_that_cannot_is_refused(context):
    config = config_lib.default()
    config.model.backbone.name = 'resnet10'
    config.model.context = context
    config.model.attention = 'cudnn'
    with pytest.raises(InputError, match=r'config\.model\.attention=cudnn: .* NVIDIA GPUs, not on'):
        models.abstract(config, 5)
