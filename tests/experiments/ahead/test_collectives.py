"""Collectives, and how often they run, from compiled programs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.ahead import collectives, cost

# As libtpu 0.0.42 writes them, shortened: no trip counts, and one asynchronous all-gather in each
# fusion that overlaps with it.
TPU = """HloModule jit_f

%fused.1 (p: bf16[16,256]) -> bf16[256,256] {
  %p = bf16[16,256]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[256,256]{1,0} all-gather(%p), channel_id=7, dimensions={0}
}

%fused.2 (p.1: bf16[16,256]) -> bf16[256,256] {
  %p.1 = bf16[16,256]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[256,256]{1,0} all-gather(%p.1), channel_id=7, dimensions={0}
}

%body.1 (t: (s32[], bf16[16,256])) -> (s32[], bf16[16,256]) {
  %t = (s32[]{:T(128)}, bf16[16,256]{1,0}) parameter(0)
  %a = bf16[256,256]{1,0} fusion(%t), kind=kLoop, calls=%fused.1, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %b = bf16[256,256]{1,0} fusion(%t), kind=kLoop, calls=%fused.2, \
backend_config={"window_config":{"estimated_cycles":"20"}}
  %all-reduce.3 = (f32[2,3]{1,0:T(8,128)}, /*index=1*/f32[]) all-reduce(%a, %b), channel_id=3
  ROOT %r = (s32[]{:T(128)}, bf16[16,256]{1,0}) tuple(%t)
}

%condition.1 (t.1: (s32[], bf16[16,256])) -> pred[] {
  %t.1 = (s32[]{:T(128)}, bf16[16,256]{1,0}) parameter(0)
  %constant.5 = s32[]{:T(128)} constant(23)
  %i = s32[]{:T(128)} get-tuple-element(%t.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.5), direction=LT
}

ENTRY %main (x: bf16[16,256]) -> bf16[16,256] {
  %x = bf16[16,256]{1,0} parameter(0)
  %w = (s32[]{:T(128)}, bf16[16,256]{1,0}) while(%x), condition=%condition.1, body=%body.1
  %s = bf16[16,256]{1,0} fusion(%w), calls=%none, backend_config={"estimated_cycles":"5"}
  ROOT %y = bf16[16,256]{1,0} collective-permute(%s), channel_id=9, metadata={op_name="jit(f)/p"}
}
"""


def test_program_for_a_tpu():
    found = collectives.of_program(TPU)
    assert [(c.kind, c.arrays, c.bytes, c.times, c.source) for c in found] == [
        ('all-gather', ('bf16[256,256]',), 2 * 256 * 256, 23, ''),
        ('all-reduce', ('f32[2,3]', 'f32[]'), 28, 23, ''),
        ('collective-permute', ('bf16[16,256]',), 2 * 16 * 256, 1, 'jit(f)/p'),
    ]
    assert collectives.totals(found)['all-reduce'] == collectives.Total(23, 23 * 28)
    assert cost.estimated_cycles(TPU) == 23 * 120 + 5


def test_unknown_number_of_rounds_is_refused():
    with pytest.raises(ValueError, match=r'the trip count of loop condition\.1 is not in the text'):
        collectives.of_program(TPU.replace('constant(23)', 'add(%a, %b)'))


def test_compiled_scan():
    """On 8 devices: a sum over devices in each of 5 rounds, and one after them."""
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    x = jax.ShapeDtypeStruct(
        (16, 32), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec('data'))
    )

    def f(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(x + x.sum(0)), None), x, length=5)[0].max()

    compiled = jax.jit(f, out_shardings=NamedSharding(mesh, PartitionSpec())).lower(x).compile()
    text = compiled.as_text()
    assert collectives.totals(collectives.of_program(text)) == {
        'all-reduce': collectives.Total(6, 5 * 32 * 4 + 4)
    }
    assert cost.estimated_cycles(text) == 0
