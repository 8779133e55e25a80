"""Chunked dense attention: query chunks, online softmax over key chunks, recomputed backward.

One pair of chunks has its scores alive at a time, forward and backward (FlashAttention, Dao et al.,
2022). FULL graphs, the groups of GRID graphs and LEARNED graphs share these loops; the bias of a
learned graph comes in as a table and is made one pair of chunks at a time.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import softmax, varying
from ggcf_jax.attention.block_sizes import Options, even
from ggcf_jax.attention.softmax import OnlineSoftmax, QueryTile


class Bias(Protocol):
    """Makes the bias of a pair of chunks from a table; hashable."""

    def cut(self, table: jax.Array, i: jax.Array | int, t: jax.Array | int) -> jax.Array:
        """The piece of the table that query chunk i and key chunk t need."""

    def add(
        self, table: jax.Array, piece: jax.Array, i: jax.Array | int, t: jax.Array | int
    ) -> jax.Array:
        """The table with `piece` added where `cut` took it."""

    def expand(self, piece: jax.Array) -> jax.Array:
        """The bias [heads or 1, queries, keys] of a piece."""


class Skip(Protocol):
    """Says which keys do not take part although they stand in the sequence; hashable."""

    def __call__(self, i: jax.Array, j: jax.Array, ends: jax.Array | None) -> jax.Array:
        """Whether the i-th query does not see the j-th key.

        Args:
          i, j: numbers that broadcast.
          ends: int32 [..., 2, 1], first of the sequence that belongs to an image and that behind
            the last; None where all do.
        """


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Lengths of the chunks of queries and of keys of a sequence, in positions."""

    queries: int
    keys: int


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the loops go over a sequence; static under `jax.jit`.

    Attributes:
      chunks: lengths of the chunks.
      options: scale and block sizes.
      bias: maker of the bias added to the scores, or None.
      skip: which keys do not take part, or None.
    """

    chunks: Chunks
    options: Options
    bias: Bias | None = None
    skip: Skip | None = None


def choose_chunks(n: int, batch: int, options: Options, keys: int | None = None) -> Chunks:
    """Chunk lengths that keep the scores of one pair of chunks small.

    Args:
      n: number of queries.
      batch: number of sequences, batch elements times heads, over all devices.
      options: scale and block sizes.
      keys: number of keys; n if None.
    """
    sizes = options.sizes
    keys = n if keys is None else keys
    # For a symbolic batch the number of scores is not known.
    if isinstance(batch, int) and sizes.per_device(batch) * n * keys <= sizes.whole_scores:
        return Chunks(n, keys)
    together = 4 * sizes.queries // sizes.per_device(batch)
    queries = max(min(sizes.queries, 64), min(sizes.queries, together))
    most = keys if keys <= sizes.whole_keys else sizes.keys
    return Chunks(even(n, queries, 8), even(keys, most, 8))


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None,
    table: jax.Array | None,
    schedule: Schedule,
    ends: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Chunked attention.

    Args:
      q: queries [..., heads, n, dk].
      k: keys [..., heads, m, dk].
      v: values [..., heads or 1, m, dv].
      valid: which keys take part, bool [..., heads or 1, m, 1]; None for all.
      table: what `schedule.bias` makes the bias from; None without one.
      schedule: chunk lengths, scale and bias.
      ends: for `schedule.skip`, int32 [..., heads or 1, 2, 1]; or None.

    Returns:
      Output [..., heads, n, dv] in the dtype of v, log-sum-exp [..., heads, n, 1] float32. Zeros
      and minus infinity for a query without keys.
    """
    n, m = q.shape[-2], k.shape[-2]
    size = schedule.chunks
    seen = None if valid is None else valid.any(-2, keepdims=True)
    q = _pad(q, size.queries)
    k, v, valid = _padded_keys(k, v, valid, schedule)
    steps, rest = divmod(k.shape[-2], size.keys)
    padding = m if k.shape[-2] > m else None
    inputs = [x for x in (q, k, v, valid, table, ends) if x is not None]

    def chunk(i: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        qt = _cut(q, i * size.queries, size.queries)

        def scores(t: jax.Array | int, length: int) -> tuple[jax.Array, jax.Array | None]:
            s = softmax.scores(qt, _cut(k, t * size.keys, length), schedule.options.scale)
            masks = _masks((i, t), length, padding, valid, ends, schedule)
            s = _finish_scores(s, masks, _piece(table, i, t, schedule), schedule)
            return s, None if schedule.skip is None else _any_key(masks, qt)

        def step(carry: tuple, t: jax.Array | int, length: int = size.keys) -> tuple[tuple, None]:
            state, own = carry
            s, more = scores(t, length)
            state = softmax.accumulate(state, s, _cut(v, t * size.keys, length))
            return (state, None if own is None else own | more), None

        if steps == 1 and not rest:
            s, own = scores(0, size.keys)
            o, lse = softmax.normalise(s, v)
        else:
            start = OnlineSoftmax(*(varying.match(x, *inputs) for x in softmax.start(qt, v)))
            none = None
            if schedule.skip is not None:
                none = varying.zeros(start.total.shape, jnp.dtype(bool), *inputs)
            carry, _ = lax.scan(step, (start, none), jnp.arange(steps))
            if rest:
                carry, _ = step(carry, steps, rest)
            state, own = carry
            o, lse = softmax.finish(state)
        return softmax.where_seen(o.astype(v.dtype), lse[..., None], own)

    if q.shape[-2] == size.queries:
        o, lse = (x[..., :n, :] for x in chunk(0))
        return softmax.where_seen(o, lse, seen)

    def write(carry: tuple, i: jax.Array) -> tuple[tuple, None]:
        return tuple(
            lax.dynamic_update_slice_in_dim(x, new, i * size.queries, axis=x.ndim - 2)
            for x, new in zip(carry, chunk(i))
        ), None

    carry = (
        varying.zeros((*q.shape[:-1], v.shape[-1]), v.dtype, *inputs),
        varying.zeros((*q.shape[:-1], 1), softmax.accumulator(q, k), *inputs),
    )
    (o, lse), _ = lax.scan(write, carry, jnp.arange(q.shape[-2] // size.queries))
    return softmax.where_seen(o[..., :n, :], lse[..., :n, :], seen)


def backward(
    queries: QueryTile,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None,
    table: jax.Array | None,
    schedule: Schedule,
    ends: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Gradients of `forward` with respect to q, k, v and table.

    Args:
      queries: all queries, the gradients of their outputs, and their sums.
      k: keys [..., heads, m, dk].
      v: values [..., heads or 1, m, dv].
      valid: as for `forward`.
      table: as for `forward`.
      schedule: as for `forward`.
      ends: as for `forward`.

    Returns:
      dq, dk, dv in the dtypes of q, k, v; dtable, or None without a table.
    """
    lengths = [x.shape[-2] for x in (queries.q, k, v)]
    m = lengths[1]
    dtypes = (queries.q.dtype, k.dtype, v.dtype)
    size, bias = schedule.chunks, schedule.bias
    queries = QueryTile(*(_pad(x, size.queries) for x in queries))
    k, v, valid = _padded_keys(k, v, valid, schedule)
    padding = m if k.shape[-2] > m else None
    rows, (columns, rest) = queries.q.shape[-2] // size.queries, divmod(k.shape[-2], size.keys)

    def step(carry: tuple, i: jax.Array | int, t: jax.Array | int, length: int) -> tuple:
        dq, dk, dv, dtable = carry
        tile = QueryTile(*(_cut(x, i * size.queries, size.queries) for x in queries))
        kt, vt = (_cut(x, t * size.keys, length) for x in (k, v))
        s = softmax.scores(tile.q, kt, schedule.options.scale)
        piece = _piece(table, i, t, schedule)
        masks = _masks((i, t), length, padding, valid, ends, schedule)
        s = _finish_scores(s, masks, piece, schedule)
        dqt, dkt, dvt, ds = softmax.backward(tile, kt, vt, s, schedule.options)
        if bias is not None and piece is not None:
            shared = tuple(range(ds.ndim - 2 if piece.shape[0] == 1 else ds.ndim - 3))
            ds = ds.sum(shared).astype(dtable.dtype).reshape(-1, *ds.shape[-2:])
            (dpiece,) = jax.vjp(bias.expand, varying.match(piece, ds))[1](ds)
            dtable = bias.add(dtable, dpiece, i, t)
        return (
            _add(dq, dqt, i * size.queries),
            _add(dk, dkt, t * size.keys),
            _add(dv, dvt, t * size.keys),
            dtable,
        )

    inputs = [x for x in (*queries, k, v, valid, table, ends) if x is not None]
    carry: tuple = (
        *(varying.zeros(x.shape, softmax.accumulator(x), *inputs) for x in (queries.q, k, v)),
        None if table is None else varying.zeros(table.shape, table.dtype, *inputs),
    )
    parts = [(columns, 0, size.keys)] + [(1, columns, rest)] * (rest > 0)
    for count, first, length in parts:
        carry = _each_pair(functools.partial(step, length=length), carry, rows, count, first)
    dq, dk, dv = (x[..., :n, :].astype(t) for x, n, t in zip(carry[:3], lengths, dtypes))
    return dq, dk, dv, carry[3]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend_rows(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None,
    table: jax.Array | None,
    schedule: Schedule,
) -> tuple[jax.Array, jax.Array]:
    """`forward`, with gradients of linear memory."""
    return forward(q, k, v, valid, table, schedule)


def _attend_forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None,
    table: jax.Array | None,
    schedule: Schedule,
) -> tuple[tuple[jax.Array, jax.Array], tuple]:
    o, lse = forward(q, k, v, valid, table, schedule)
    return (o, lse), (q, k, v, valid, table, o, lse)


def _attend_backward(
    schedule: Schedule, saved: tuple, gradients: tuple[jax.Array, jax.Array]
) -> tuple:
    q, k, v, valid, table, o, lse = saved
    queries = softmax.query_tile(q, o, lse, *gradients)
    dq, dk, dv, dtable = backward(queries, k, v, valid, table, schedule)
    if table is not None and dtable is not None:
        dtable = varying.gradient(dtable, table)
    dq, dk, dv = (varying.gradient(x, y) for x, y in zip((dq, dk, dv), (q, k, v)))
    return dq, dk, dv, None, dtable


attend_rows.defvjp(_attend_forward, _attend_backward)


def _piece(
    table: jax.Array | None, i: jax.Array | int, t: jax.Array | int, schedule: Schedule
) -> jax.Array | None:
    """The piece of the table for query chunk i and key chunk t; None without a bias."""
    if schedule.bias is None or table is None:
        return None
    return schedule.bias.cut(table, i, t)


def _masks(
    pair: tuple[jax.Array | int, jax.Array | int],
    length: int,
    padding: int | None,
    valid: jax.Array | None,
    ends: jax.Array | None,
    schedule: Schedule,
) -> list[jax.Array]:
    """Which keys of a pair of chunks take part: those for which all of these are true.

    Args:
      pair: number of the chunk of queries and of that of keys.
      length: length of the chunk of keys.
      padding: number of the first key that is padding; None without any.
      valid: which keys take part, padded as the keys are.
      ends: for `schedule.skip`.
      schedule: chunk lengths and skip.
    """
    (i, t), size, masks = pair, schedule.chunks, []
    if valid is not None:
        masks.append(jnp.swapaxes(_cut(valid, t * size.keys, length), -1, -2))
    elif padding is not None:
        masks.append(t * size.keys + jnp.arange(length) < padding)
    if schedule.skip is not None:
        queries = i * size.queries + jnp.arange(size.queries)
        keys = t * size.keys + jnp.arange(length)
        masks.append(~schedule.skip(queries[:, None], keys, ends))
    return masks


def _any_key(masks: list[jax.Array], q: jax.Array) -> jax.Array:
    """Which queries any key takes part for: bool [..., queries, 1]."""
    seen = functools.reduce(operator.and_, masks).any(-1, keepdims=True)
    return jnp.broadcast_to(seen, (*q.shape[:-1], 1))


def _finish_scores(
    s: jax.Array, masks: list[jax.Array], piece: jax.Array | None, schedule: Schedule
) -> jax.Array:
    """Adds the bias of a pair of chunks, and hides the keys that do not take part.

    Args:
      s: scores [..., heads, queries, keys].
      masks: which take part, from `_masks`.
      piece: piece of the table.
      schedule: maker of the bias.
    """
    if schedule.bias is not None and piece is not None:
        s = s + schedule.bias.expand(piece)
    for mask in masks:
        s = jnp.where(mask, s, softmax.HIDDEN)
    return s


def _pad(x: jax.Array, multiple: int) -> jax.Array:
    """Zeros behind axis -2 up to a multiple."""
    short = -x.shape[-2] % multiple
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, short), (0, 0)]) if short else x


def _padded_keys(
    k: jax.Array, v: jax.Array, valid: jax.Array | None, schedule: Schedule
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Keys, values and `valid` for chunks of keys, padded where all of these have one length.

    Biases and skips are made for chunks of one length. Padding does not take part.
    """
    whole = schedule.bias is not None or schedule.skip is not None
    if not whole and not schedule.options.sizes.pad_keys:
        return k, v, valid
    length = schedule.chunks.keys
    return _pad(k, length), _pad(v, length), None if valid is None else _pad(valid, length)


def _each_pair(
    step: Callable[[tuple, jax.Array | int, jax.Array | int], tuple],
    carry: tuple,
    rows: int,
    columns: int,
    first: int,
) -> tuple:
    """What `step` makes of `carry` for all chunks of queries and some of keys.

    Args:
      step: called with what it made before and the numbers of the chunks.
      carry: what the first call gets.
      rows: number of chunks of queries.
      columns: number of chunks of keys.
      first: number of the first of these.
    """
    if rows * columns == 1:
        return step(carry, 0, first)

    def scanned(carry: tuple, pair: jax.Array) -> tuple[tuple, None]:
        return step(carry, pair // columns, first + pair % columns), None

    return lax.scan(scanned, carry, jnp.arange(rows * columns))[0]


def _cut(x: jax.Array, start: jax.Array | int, length: int) -> jax.Array:
    """`length` positions of axis -2 from `start` on."""
    return lax.dynamic_slice_in_dim(x, start, length, axis=x.ndim - 2)


def _add(x: jax.Array, piece: jax.Array, start: jax.Array | int) -> jax.Array:
    """x with `piece` added on axis -2 from `start` on."""
    piece = piece + _cut(x, start, piece.shape[-2])
    return lax.dynamic_update_slice_in_dim(x, piece, start, axis=x.ndim - 2)
