"""The n largest of each row of a matrix, by a search for the n-th value: no sort, no top_k.

The search keeps a bracket of thresholds per row and counts how many entries reach two candidates in
it, both counts in one sum. Thresholds are ordered int32 keys of the values, so that it ends after
finitely many steps whatever the values; candidates are interpolated on the counts. Only a program
for ONNX sorts, whose operators do not know the bits of numbers.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import target, varying

# The first guess of the n-th value takes a row for normally distributed. The standard error of its
# sample quantile is sqrt(share (1 - share) / count) / density; rows that are not normal need more.
_STANDARD_ERRORS = 2.0  # half width of the guess in standard errors
_LEAST_MARGIN = 0.05  # and at least this, in standard deviations of the row


def largest(x: jax.Array, mask: jax.Array | None, n: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Marks the n largest entries of each row, of equal ones the first.

    Args:
      x: values, float32 or int32 [..., m, k]; int32 ones keep a distance of two from both ends of
        the range.
      mask: which entries take part, bool that broadcasts to x; None for all.
      n: function from the numbers of entries per row, int32, to the numbers of entries to mark, at
        least 1 and at most those.

    Returns:
      Bool, shaped like x, exactly n entries true in each row (none in a row without entries).
    """
    if target.is_onnx():
        return _by_rank(x, mask, n)
    neighbours = jnp.asarray(x.shape[-1], jnp.int32)
    inside = least = x
    if mask is not None:
        ends = (-jnp.inf, jnp.inf) if x.dtype == jnp.float32 else (-(2**31) + 1, 2**31 - 2)
        neighbours = jnp.broadcast_to(mask.sum(-1, dtype=jnp.int32), x.shape[:-1])
        inside, least = (jnp.where(mask, x, jnp.asarray(end, x.dtype)) for end in ends)
    wanted = jnp.broadcast_to(n(neighbours), x.shape[:-1])
    low, high = _encode(least.min(-1)), _encode(inside.max(-1)) + 1
    at_low = varying.match(jnp.broadcast_to(neighbours, wanted.shape), x)
    at_high = varying.zeros(wanted.shape, wanted.dtype, x)
    guess = (low, high)
    if x.dtype == jnp.float32:
        guess = _first_guess(x, mask, neighbours, wanted)

    def settled(low: jax.Array, high: jax.Array, at_low: jax.Array) -> jax.Array:
        return (at_low <= wanted) | (low + 1 >= high)

    def candidates(
        step: jax.Array, low: jax.Array, high: jax.Array, at_low: jax.Array, at_high: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        within = jnp.maximum(at_low - at_high, 1).astype(jnp.float32)
        middle = (at_low - wanted + 0.5) / within
        margin = 1.5 * jnp.sqrt(jnp.clip(middle * (1 - middle), 0.0) / within) + 0.5 / within
        a = _between(low, high, jnp.clip(middle - margin, 0, 1), x.dtype)
        b = _between(low, high, jnp.clip(middle + margin, 0, 1), x.dtype)
        half = (low >> 1) + (high >> 1) + (low & high & 1)
        a, b = (jnp.where(step % 3 == 2, half, key) for key in (a, b))
        if x.dtype == jnp.float32:
            a, b = (jnp.where(step == 0, g, key) for g, key in zip(guess, (a, b)))
        # Strictly inside the bracket, or nothing is learned.
        a = jnp.clip(a, low + 1, high - 1)
        return a, jnp.clip(b, a, high - 1)

    def body(state: tuple) -> tuple:
        step, low, high, at_low, at_high = state
        a, b = candidates(step, low, high, at_low, at_high)
        at_a, at_b = _counts(inside, _decode(a, x.dtype), _decode(b, x.dtype))
        active = ~settled(low, high, at_low)
        for key, count in ((a, at_a), (b, at_b)):
            up = active & (count >= wanted) & (key > low)
            down = active & (count < wanted) & (key < high)
            low, at_low = jnp.where(up, key, low), jnp.where(up, count, at_low)
            high, at_high = jnp.where(down, key, high), jnp.where(down, count, at_high)
        return step + 1, low, high, at_low, at_high

    def unsettled(state: tuple) -> jax.Array:
        return ~settled(state[1], state[2], state[3]).all()

    state = (jnp.int32(0), low, high, at_low, at_high)
    _, low, _, at_low, _ = lax.while_loop(unsettled, body, state)
    nth = _decode(low, x.dtype)[..., None]
    reach = inside >= nth
    if mask is not None:
        reach &= mask

    def first_of_equals() -> jax.Array:
        # Compared with the value itself: the next key may be a denormal that equals zero here.
        above = reach & (inside > nth)
        equal = reach & ~above
        order = jnp.cumsum(equal, axis=-1, dtype=jnp.int32)
        missing = wanted - above.sum(-1, dtype=jnp.int32)
        return above | (equal & (order <= missing[..., None]))

    return lax.cond((at_low > wanted).any(), first_of_equals, lambda: reach)


def _by_rank(
    x: jax.Array, mask: jax.Array | None, n: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """`largest` by a sort of each row, in operators that ONNX has: float32 values only."""
    length = x.shape[-1]
    neighbours = jnp.asarray(length, jnp.int32) if mask is None else mask.sum(-1, dtype=jnp.int32)
    wanted = jnp.broadcast_to(n(jnp.broadcast_to(neighbours, x.shape[:-1])), x.shape[:-1])[
        ..., None
    ]
    inside = x if mask is None else jnp.where(mask, x, -jnp.inf)
    ranked, _ = lax.top_k(inside, length)
    nth = jnp.where(jnp.arange(length) == wanted - 1, ranked, 0).sum(-1, keepdims=True)
    above, equal = inside > nth, inside == nth
    if mask is not None:
        equal &= mask
    # Floats, since TensorRT adds up no others; a row is shorter than 2^24.
    order = jnp.cumsum(equal.astype(jnp.float32), axis=-1)
    missing = wanted - above.sum(-1, keepdims=True, dtype=jnp.int32)
    return above | (equal & (order <= missing.astype(jnp.float32)))


def _encode(x: jax.Array) -> jax.Array:
    """Float32 or int32 to int32 keys of the same order."""
    if x.dtype == jnp.int32:
        return x
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _decode(key: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The values that `_encode` makes these keys of."""
    if dtype == jnp.int32:
        return key
    return lax.bitcast_convert_type(jnp.where(key < 0, key ^ 0x7FFFFFFF, key), jnp.float32)


def _counts(x: jax.Array, low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Number of entries of each row of x that reach the thresholds low <= high.

    Rows shorter than a base B are summed once, each entry counting B + 1 if it reaches both
    thresholds, 1 if it reaches the lower one and 0 otherwise; the sum is then (reach high) * B +
    (reach low). With B = 100 and the row 1 5 9 between thresholds 4 and 8 it is 0 + 1 + 101 = 102:
    one entry reaches 8, two reach 4.
    """
    low, high = low[..., None], high[..., None]
    # The largest bases for which every sum, at most B * B, is exact; floats sum faster.
    for number, base in ((jnp.float32, 1 << 12), (jnp.uint32, 1 << 16)):
        if x.shape[-1] < base:
            both, one, none = (jnp.asarray(value, number) for value in (base + 1, 1, 0))
            total = jnp.where(x >= high, both, jnp.where(x >= low, one, none)).sum(-1)
            total = total.astype(jnp.uint32)
            return (total % base).astype(jnp.int32), (total // base).astype(jnp.int32)
    return ((x >= low).sum(-1, dtype=jnp.int32), (x >= high).sum(-1, dtype=jnp.int32))


def _between(low: jax.Array, high: jax.Array, fraction: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The key of the value at this fraction of the way from key low to key high."""
    a, b = (_decode(key, dtype).astype(jnp.float32) for key in (low, high))
    value = a + (b - a) * fraction
    return _encode(value if dtype != jnp.int32 else value.astype(jnp.int32))


def _first_guess(
    x: jax.Array, mask: jax.Array | None, neighbours: jax.Array, n: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Two keys that are likely to lie around the n-th largest if the rows are normal."""
    inside = x if mask is None else jnp.where(mask, x, 0)
    count = jnp.maximum(neighbours, 1).astype(jnp.float32)
    mean = inside.sum(-1) / count
    variance = (inside * inside).sum(-1) / count - mean * mean
    share = (n - 0.5) / count
    z = -jax.scipy.special.ndtri(jnp.clip(share, 1e-6, 1 - 1e-6))
    density = jnp.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    standard_error = jnp.sqrt(share * (1 - share) / count) / density
    margin = _LEAST_MARGIN + _STANDARD_ERRORS * standard_error
    spread = jnp.sqrt(jnp.maximum(variance, 0))
    return _encode(mean + spread * (z - margin)), _encode(mean + spread * (z + margin))
