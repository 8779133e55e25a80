"""What a device does, from the text of a compiled program."""

from experiments.ahead import cost

# As XLA:GPU writes them, shortened. A round reads one of 10 rows of %s, adds %x and writes one row
# of the result; at the end comes an operation of its own.
GPU = """HloModule jit_g

%fused (p0: f32[10,64], p1: s32[], p2: f32[64], p3: f32[10,64]) -> f32[10,64] {
  %p0 = f32[10,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[64]{0} parameter(2)
  %p3 = f32[10,64]{1,0} parameter(3)
  %zero = s32[] constant(0)
  %row = f32[1,64]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,64}
  %flat = f32[64]{0} bitcast(%row)
  %sum = f32[64]{0} add(%flat, %p2)
  %new = f32[1,64]{1,0} bitcast(%sum)
  ROOT %put = f32[10,64]{1,0} dynamic-update-slice(%p3, %new, %p1, %zero)
}

%body (t: (s32[], f32[10,64], f32[64], f32[10,64])) -> (s32[], f32[10,64], f32[64], f32[10,64]) {
  %t = (s32[], f32[10,64]{1,0}, f32[64]{0}, f32[10,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %s = f32[10,64]{1,0} get-tuple-element(%t), index=1
  %x = f32[64]{0} get-tuple-element(%t), index=2
  %o = f32[10,64]{1,0} get-tuple-element(%t), index=3
  %f = f32[10,64]{1,0} fusion(%s, %i, %x, %o), kind=kLoop, calls=%fused
  ROOT %r = (s32[], f32[10,64]{1,0}, f32[64]{0}, f32[10,64]{1,0}) tuple(%i, %s, %x, %f)
}

ENTRY %main (s.1: f32[10,64]) -> f32[64,10] {
  %s.1 = f32[10,64]{1,0} parameter(0)
  %b = f32[10,64]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %w = (s32[], f32[10,64]{1,0}, f32[64]{0}, /*index=3*/f32[10,64]{1,0}) while(%s.1), body=%body, \
condition=%cond, backend_config={"known_trip_count":{"n":"10"}}
  %e = f32[10,64]{1,0} get-tuple-element(%w), index=3
  ROOT %y = f32[64,10]{1,0} transpose(%e), dimensions={1,0}
}
"""


def test_memory_traffic():
    round_trip = 256 + 4 + 256 + 256  # a row read, its index, %x, a row written
    assert cost.traffic(GPU) == 10 * round_trip + 2 * 2560
    assert cost.operations(GPU) == 11
    # What lies in a TPU's on-chip memory is not counted: the loop's %x here.
    assert cost.traffic(GPU.replace('f32[64]{0}', 'f32[64]{0:T(256)S(1)}')) == (
        10 * (round_trip - 256) + 2 * 2560
    )
