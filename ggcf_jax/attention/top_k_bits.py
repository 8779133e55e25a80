"""The n largest of each row of a matrix, in a number of passes that is known beforehand.

The n-th value is found some bits at a time, from the highest on: a pass over the row counts how
many entries reach each of the thresholds that the next bits may make, fifteen for four bits. So no
value decides the number of kernels, and devices need not agree on when to end. Equal values are
told apart in the same way, by their places in the row. `top_k` takes fewer operations, and waits
between them for a flag that says whether all rows are settled.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import target, varying


def _bits() -> int:
    """Number of bits of the n-th value that a pass finds.

    On a GPU a pass takes the time of reading the row; on a TPU that of counting, which grows with
    the thresholds faster than the number of passes falls.
    """
    return 2 if target.current() == 'tpu' else 4


def largest(x: jax.Array, mask: jax.Array | None, n: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Marks the n largest entries of each row, of equal ones the first; as `top_k.largest`."""
    length = x.shape[-1]
    ordered = _ordered(x)
    neighbours = jnp.asarray(length, jnp.int32)
    if mask is not None:
        ordered = jnp.where(mask, ordered, 0)
        neighbours = jnp.broadcast_to(mask.sum(-1, dtype=jnp.int32), x.shape[:-1])
    wanted = jnp.broadcast_to(n(neighbours), x.shape[:-1])
    # Computed once, in memory; and where random priorities are constants, XLA does not try to carry
    # out the search while it compiles.
    ordered = lax.optimization_barrier(ordered)
    nth, above = _nth_largest(ordered, wanted, 32)
    nth = nth[..., None]
    equal = ordered == nth
    place = jnp.arange(length - 1, -1, -1, dtype=jnp.uint32)  # from the end of the row
    last, _ = _nth_largest(
        jnp.where(equal, place, 0), wanted - above, max(1, (length - 1).bit_length())
    )
    kept = (ordered > nth) | (equal & (place >= last[..., None]))
    return kept if mask is None else kept & mask


def _nth_largest(x: jax.Array, n: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """The n-th largest entry of each row.

    Args:
      x: uint32 [..., k], below 2^bits.
      n: int32 [...]; 0 where a row has no entry to be found.
      bits: number of bits that may be set.

    Returns:
      The largest threshold that n entries reach, uint32 [...]: 0 where fewer than n are above 0;
      and the number of entries above it, int32 [...], less than n.
    """
    of_pass = _bits()
    passes = -(-bits // of_pass)

    def find(done: jax.Array, state: tuple) -> tuple:
        low, above = state
        shift = (of_pass * (passes - 1 - done)).astype(jnp.uint32)
        thresholds = [low + (jnp.uint32(t) << shift) for t in range(1, 1 << of_pass)]
        reached = jnp.int32(0)
        for count in _counts(x, thresholds):
            enough = count >= n
            reached = reached + enough
            above = jnp.maximum(above, jnp.where(enough, 0, count))
        return low + (reached.astype(jnp.uint32) << shift), above

    start = tuple(varying.zeros(n.shape, dtype, x, n) for dtype in (jnp.uint32, jnp.int32))
    return lax.fori_loop(0, passes, find, start)


def _counts(x: jax.Array, thresholds: Sequence[jax.Array]) -> list[jax.Array]:
    """Number of entries of each row of x that reach each of some rising thresholds.

    Args:
      x: uint32 [..., k].
      thresholds: uint32 [...] each.

    Returns:
      int32 [...] each.
    """
    reached = [(x >= t[..., None]).astype(jnp.uint32) for t in thresholds]
    if x.shape[-1] >= 1 << 16:
        return [count.astype(jnp.int32) for count in _sums(reached)]
    # Two counts are the halves of one sum.
    half = -(-len(reached) // 2)
    pairs = [low + (high << 16) for low, high in zip(reached, reached[half:])]
    both = _sums([*pairs, *reached[len(pairs) : half]])
    counts = [*(x & 0xFFFF for x in both), *(x >> 16 for x in both[: len(pairs)])]
    return [x.astype(jnp.int32) for x in counts]


def _sums(arrays: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """Sums along the last axis, as one operation: what they are computed from is read once."""
    length = arrays[0].shape[-1]
    parts = _parts(length) if target.current() == 'gpu' else 1
    if parts > 1:
        arrays = _reduced([x.reshape(*x.shape[:-1], parts, length // parts) for x in arrays])
    return _reduced(arrays)


def _reduced(arrays: Sequence[jax.Array]) -> Sequence[jax.Array]:
    zeros = tuple(varying.match(jnp.uint32(0), x) for x in arrays)
    return lax.reduce(tuple(arrays), zeros, _add, (arrays[0].ndim - 1,))


def _add(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(x + y for x, y in zip(a, b))


def _parts(length: int) -> int:
    """Number of equal parts of a row that XLA:GPU sums without splitting them; 1 if it has none."""
    least = -(-length // (1 << 14))
    return next((n for n in range(least, 4 * least) if length % n == 0), 1)


def _ordered(x: jax.Array) -> jax.Array:
    """Float32 or int32 to uint32 of the same order, at least 1 but for NaN and the lowest int32."""
    if x.dtype == jnp.float32:
        bits = lax.bitcast_convert_type(jnp.where(x == 0, 0, x), jnp.int32)  # zeros are equal
        x = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return lax.bitcast_convert_type(x, jnp.uint32) ^ jnp.uint32(1 << 31)
