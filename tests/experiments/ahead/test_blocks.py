"""Three equal blocks of ResNet-101's third stage, trained: what compilers make of them.

One image of 769 x 769 in bfloat16, `inplace_abn`; only where the extra `aot` is installed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.ahead import accelerators, cost, kinds
from ggcf_jax.models.backbones.resnet import Bottleneck
from ggcf_jax.models.layers.repeat import Repeated
from tests.attention.cases import slow


def compiled(name: str) -> str:
    target = accelerators.TARGETS[name]
    chips = accelerators.devices(target)[:1]
    mesh = Mesh(np.array(chips), ('data',), axis_types=(AxisType.Auto,))

    def make(rngs):
        return Bottleneck(
            1024,
            256,
            'leaky_relu',
            stride=1,
            first=2,
            dilation=2,
            norm='batch_norm',
            dtype=jnp.bfloat16,
            rngs=rngs,
        )

    blocks = nnx.eval_shape(lambda: Repeated(make, 3, remat='inplace_abn', rngs=nnx.Rngs(0)))
    graphdef, params, stats = nnx.split(blocks, nnx.Param, nnx.BatchStat)

    def step(params, stats, x, dy):
        def loss(params, x):
            own = nnx.merge(graphdef, params, stats, copy=True)
            return (own(x, train=True) * dy).sum(), nnx.state(own, nnx.BatchStat)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    x = jax.ShapeDtypeStruct((1, 97, 97, 1024), jnp.bfloat16)
    sharding = NamedSharding(mesh, PartitionSpec())
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), (params, stats, x, x)
    )
    with jax.set_mesh(mesh), accelerators.tracing(chips):
        lowered = jax.jit(step).lower(*arguments)
    return lowered.compile(accelerators.COMPILER_OPTIONS[target.platform]).as_text()


@pytest.mark.parametrize('name', ['h100', *slow(['v5e'])])
def test_budgets(name):
    reason = accelerators.missing(accelerators.TARGETS[name])
    if reason is not None:
        pytest.skip(reason)
    text = compiled(name)
    if name == 'v5e':  # 18.6 M with convolutions of 1 x 1
        assert cost.estimated_cycles(text) <= 10e6
        return
    found = kinds.by_kind(text)
    assert sum(number for number, _ in found.values()) == cost.operations(text) <= 140  # of 320
    assert sum(moved for _, moved in found.values()) == cost.traffic(text) <= 1.7e9  # of 2.7e9
    # Two kernels for the statistics of each of nine norms, and two for their gradients.
    assert found['reductions'][0] <= 4 * 9 + 2


def test_kinds_of_kernels():
    text = """HloModule m

%fused (p: f32[4,8]) -> f32[8] {
  %p = f32[4,8]{1,0} parameter(0)
  %t = f32[4,8]{1,0} transpose(%p), dimensions={0,1}
  ROOT %r = f32[8]{0} reduce(%t, %p), dimensions={0}, to_apply=%add
}

ENTRY %main (a: f32[4,8]) -> f32[8] {
  %a = f32[4,8]{1,0} parameter(0)
  %c = f32[4,8]{1,0} copy(%a)
  %f = f32[8]{0} fusion(%c), kind=kInput, calls=%fused
  ROOT %b = f32[8]{0} custom-call(%f), custom_call_target="__cublas$gemm"
}
"""
    found = kinds.by_kind(text)
    assert found == {
        'convolutions and products': (1, 64),
        'copies': (1, 256),
        'reductions': (1, 160),
    }
    assert kinds.table(found)[-1] == '| all | 3 | 0.00 GB |'
