"""The n largest of each row of a matrix, by a search for the n-th value: no sort, no top_k.

The search keeps a bracket of thresholds a row and counts how many entries reach two candidates in
it, both counts in one sum. Thresholds are ordered int32 keys of the values, so that it ends after
finitely many steps whatever the values; candidates are interpolated on the counts.
"""

import jax
import jax.numpy as jnp
from jax import lax


def _encode(x):
    """Float32 or int32 to int32 keys of the same order."""
    if x.dtype == jnp.int32:
        return x
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _decode(key, dtype):
    if dtype == jnp.int32:
        return key
    return lax.bitcast_convert_type(jnp.where(key < 0, key ^ 0x7FFFFFFF, key), jnp.float32)


def _counts(x, low, high):
    """How many entries of each row of x reach the thresholds low <= high."""
    low, high = low[..., None], high[..., None]
    for number, most in ((jnp.float32, 1 << 12), (jnp.uint32, 1 << 16)):
        if x.shape[-1] < most:  # both counts fit one sum exactly; floats sum faster
            weights = [jnp.asarray(value, number) for value in (most + 1, 1, 0)]
            both = jnp.where(x >= high, weights[0], jnp.where(x >= low, *weights[1:])).sum(-1)
            both = both.astype(jnp.uint32)
            return (both % most).astype(jnp.int32), (both // most).astype(jnp.int32)
    return ((x >= low).sum(-1, dtype=jnp.int32), (x >= high).sum(-1, dtype=jnp.int32))


def _between(low, high, fraction, dtype):
    """The key of the value at this fraction of the way from key low to key high."""
    a, b = (_decode(key, dtype).astype(jnp.float32) for key in (low, high))
    value = a + (b - a) * fraction
    return _encode(value if dtype != jnp.int32 else value.astype(jnp.int32))


def _first_guess(x, mask, neighbours, n):
    """Two keys that are likely to lie around the n-th largest, were the rows normal."""
    inside = x if mask is None else jnp.where(mask, x, 0)
    count = jnp.maximum(neighbours, 1).astype(jnp.float32)
    mean = inside.sum(-1) / count
    variance = (inside * inside).sum(-1) / count - mean * mean
    share = (n - 0.5) / count
    z = -jax.scipy.special.ndtri(jnp.clip(share, 1e-6, 1 - 1e-6))
    # Standard error of a quantile of normal values, with a margin for rows that are not normal.
    margin = 0.05 + 2.0 * jnp.sqrt(share * (1 - share) / count) * jnp.exp(z * z / 2) * 2.507
    spread = jnp.sqrt(jnp.maximum(variance, 0))
    return _encode(mean + spread * (z - margin)), _encode(mean + spread * (z + margin))


def largest(x, mask, n):
    """Marks the n largest entries of each row, of equal ones the first.

    Args:
      x: float32 or int32 [..., m, k]; int32 values lie two above and two below the ends.
      mask: None, or bool that broadcasts to x: which entries take part.
      n: function of an int32 array of entries a row to the number to mark, from 1 to that number.

    Returns:
      Bool, shaped like x, exactly n entries true in each row (none in a row without entries).
    """
    neighbours = jnp.asarray(x.shape[-1], jnp.int32)
    inside = least = x
    if mask is not None:
        ends = (-jnp.inf, jnp.inf) if x.dtype == jnp.float32 else (-(2**31) + 1, 2**31 - 2)
        neighbours = jnp.broadcast_to(mask.sum(-1, dtype=jnp.int32), x.shape[:-1])
        inside, least = (jnp.where(mask, x, jnp.asarray(end, x.dtype)) for end in ends)
    n = jnp.broadcast_to(n(neighbours), x.shape[:-1])
    low, high = _encode(least.min(-1)), _encode(inside.max(-1)) + 1
    at_low = jnp.broadcast_to(neighbours, n.shape)
    at_high = jnp.zeros_like(n)
    guess = (low, high)
    if x.dtype == jnp.float32:
        guess = _first_guess(x, mask, neighbours, n)

    def settled(low, high, at_low):
        return (at_low <= n) | (low + 1 >= high)

    def candidates(step, low, high, at_low, at_high):
        within = jnp.maximum(at_low - at_high, 1).astype(jnp.float32)
        middle = (at_low - n + 0.5) / within
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

    def body(state):
        step, low, high, at_low, at_high = state
        a, b = candidates(step, low, high, at_low, at_high)
        at_a, at_b = _counts(inside, _decode(a, x.dtype), _decode(b, x.dtype))
        active = ~settled(low, high, at_low)
        for key, count in ((a, at_a), (b, at_b)):
            up = active & (count >= n) & (key > low)
            down = active & (count < n) & (key < high)
            low, at_low = jnp.where(up, key, low), jnp.where(up, count, at_low)
            high, at_high = jnp.where(down, key, high), jnp.where(down, count, at_high)
        return step + 1, low, high, at_low, at_high

    def unsettled(state):
        return ~settled(state[1], state[2], state[3]).all()

    state = (0, low, high, at_low, at_high)
    _, low, _, at_low, _ = lax.while_loop(unsettled, body, state)
    nth = _decode(low, x.dtype)[..., None]
    reach = inside >= nth
    if mask is not None:
        reach &= mask

    def first_of_equals():
        # Compared with the value itself: the next key may be a denormal that equals zero here.
        above = reach & (inside > nth)
        equal = reach & ~above
        order = jnp.cumsum(equal, axis=-1, dtype=jnp.int32)
        missing = n - above.sum(-1, dtype=jnp.int32)
        return above | (equal & (order <= missing[..., None]))

    return lax.cond((at_low > n).any(), first_of_equals, lambda: reach)
