"""Equal blocks: a loop where loops are fast. Values: tests/models/backbones/test_resnet.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ggcf_jax import models
from ggcf_jax.attention import target
from ggcf_jax.models.backbones.resnet import Bottleneck
from ggcf_jax.models.layers.repeat import Repeated, _is_kernel, scan
from tests.attention.cases import slow_cases


@pytest.mark.parametrize(('platform', 'unrolled'), [('tpu', False), ('gpu', False), ('cpu', True)])
def test_only_cpus_get_the_steps_one_after_the_other(platform, unrolled):
    device = jax.sharding.AbstractDevice('any', None, platform)
    mesh = jax.sharding.AbstractMesh(
        (1,), ('data',), (jax.sharding.AxisType.Auto,), abstract_device=device
    )

    def doubled(x):
        return scan(lambda x, _: (x * 2, None), x, jnp.arange(3))[0]

    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr = str(jax.make_jaxpr(jax.jit(doubled))(1.0))
    assert ('unroll=3' in jaxpr or 'unroll=True' in jaxpr) == unrolled
    assert doubled(1.0) == 8.0


@pytest.mark.parametrize('steps', [1, 3])
def test_outputs_are_stacked(steps):
    carry, outputs = scan(lambda carry, x: (carry + x, (carry, 2 * x)), 1, jnp.arange(steps))
    expected = jax.lax.scan(lambda carry, x: (carry + x, (carry, 2 * x)), 1, jnp.arange(steps))
    assert jax.tree.map(lambda x: x.tolist(), (carry, outputs)) == jax.tree.map(
        lambda x: x.tolist(), expected
    )


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_training_without_a_loop_on_gpus(dtype):
    """Values, statistics and gradients are those of the loop, and what is kept is not copied."""

    def make(rngs):
        return Bottleneck(
            8, 2, 'relu', stride=1, first=2, dilation=2, norm='batch_norm', dtype=dtype, rngs=rngs
        )

    blocks = Repeated(make, 3, remat='inplace_abn', rngs=nnx.Rngs(0))
    graphdef, params, stats = nnx.split(blocks, nnx.Param, nnx.BatchStat)
    params = jax.tree.map(lambda p: p + 0.1, params)  # residual branches start at zero
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, 8), dtype)

    def loss(params, x):
        own = nnx.merge(graphdef, params, stats, copy=True)
        y = own(x, train=True)
        return (y.astype(jnp.float32) ** 2).mean(), nnx.state(own, nnx.BatchStat)

    found = {}
    for platform in ('tpu', 'gpu'):
        with target.tracing_for(platform):
            step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
            text = step.lower(params, x).as_text()
            assert ('stablehlo.while' in text) == (platform == 'tpu')
            found[platform] = step(params, x)
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    for a, b in zip(*map(jax.tree.leaves, found.values()), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        assert np.abs(a - b).max() <= tolerance * np.abs(a).max()


@pytest.mark.parametrize(
    ('name', 'stride'),  # one network of each family
    [
        *(('resnet50', 16), ('mobilenet_v2', 16), ('convnext_tiny', 16)),
        *(('dinov2_small', 14), ('mit_b0', 32)),
        *slow_cases([('wide_resnet38', 16), ('swin_tiny', 16)]),
    ],
)
def test_kernels_are_used_in_the_dtype_of_the_features(name, stride, tiny_config, monkeypatch):
    """Without a loop kernels are cast before the blocks: these must do nothing else to them."""
    tiny_config.model.backbone.name = name
    tiny_config.model.backbone.stride = stride
    tiny_config.train.dtype = 'bfloat16'
    stacks, run = [], Repeated.__call__

    def call(self, x, **options):
        block, state = nnx.split(self.blocks)
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), state)
        of_x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), x)
        stacks.append((block, one, of_x))
        return run(self, x, **options)

    monkeypatch.setattr(Repeated, '__call__', call)
    graphdef, *state = models.abstract(tiny_config, 3)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    with target.tracing_for('gpu'):
        jax.eval_shape(lambda state, x: nnx.merge(graphdef, *state, copy=True)(x), state, images)
        assert stacks
        for block, state, features in stacks:
            dtype = jax.tree.leaves(features)[0].dtype
            assert dtype == jnp.bfloat16
            paths, structure = jax.tree.flatten_with_path(state)

            def apply(leaves, x, block=block, structure=structure):
                own = nnx.merge(block, jax.tree.unflatten(structure, leaves))
                return own(x, train=False, extent=None)

            traced = jax.make_jaxpr(apply)([leaf for _, leaf in paths], features).jaxpr
            kernels = [v for v, (path, _) in zip(traced.invars, paths) if _is_kernel(path)]
            assert kernels
            for kernel in kernels:
                assert set(used_as(traced, kernel)) == {dtype}


MOVES = ('reshape', 'transpose', 'squeeze', 'broadcast_in_dim', 'copy', 'slice', 'rev')


def used_as(jaxpr, variable):
    """Dtypes in which a program computes with a variable: what it is cast to first."""
    for equation in jaxpr.eqns:
        for i, operand in enumerate(equation.invars):
            if operand is not variable:
                continue
            inner = equation.params.get('jaxpr', equation.params.get('call_jaxpr'))
            if equation.primitive.name == 'convert_element_type':
                yield equation.params['new_dtype']
            elif inner is not None:
                inner = getattr(inner, 'jaxpr', inner)
                yield from used_as(inner, inner.invars[i])
            elif equation.primitive.name in MOVES:
                yield from used_as(jaxpr, equation.outvars[0])
            else:
                yield variable.aval.dtype


def test_another_use_of_a_kernel_is_found():
    x, kernel = jnp.ones(2, jnp.bfloat16), jnp.ones((1, 2))
    cast = jax.make_jaxpr(jax.jit(lambda k, x: k[0].astype(x.dtype) * x))(kernel, x).jaxpr
    assert set(used_as(cast, cast.invars[0])) == {jnp.dtype(jnp.bfloat16)}
    scaled = jax.make_jaxpr(jax.jit(lambda k, x: (k * 2).astype(x.dtype) * x))(kernel, x).jaxpr
    assert set(used_as(scaled, scaled.invars[0])) == {jnp.dtype(jnp.float32)}
