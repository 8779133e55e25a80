"""Attention over the FULL graph: query chunks, online softmax over key chunks.

One chunk pair's scores are alive at a time, forward and backward (flash attention). The same loops
serve GRID groups that are too large for one matrix, and LEARNED graphs, whose bias comes in as a
table and is made one chunk pair at a time.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import pruning, softmax
from ggcf_jax.attention.block_sizes import Tiles, even


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Lengths of the query and key chunks of a sequence."""

    queries: int
    keys: int


def chunks(n, batch, tiles, keys=None):
    """Chunk lengths for n queries, `keys` (n) keys and `batch` = batch elements times heads."""
    together = 4 * tiles.queries // tiles.share(batch)
    queries = max(min(tiles.queries, 64), min(tiles.queries, together))
    return Chunks(even(n, queries, 8), even(n if keys is None else keys, tiles.keys, 8))


def _pad(x, multiple):
    """Zeros behind axis -2 up to a multiple."""
    short = -x.shape[-2] % multiple
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, short), (0, 0)]) if short else x


def _cut(x, i, length):
    return lax.dynamic_slice_in_dim(x, i * length, length, axis=x.ndim - 2)


def _add(x, piece, i, length):
    piece = piece + _cut(x, i, length)
    return lax.dynamic_update_slice_in_dim(x, piece, i * length, axis=x.ndim - 2)


def _finish_scores(s, t, n, keys, piece, bias):
    """Adds the bias and hides the padded keys of chunk t."""
    if bias is not None:
        s = s + bias.expand(piece)
    if n % keys:
        s = jnp.where(t * keys + jnp.arange(keys) < n, s, softmax.LOWEST)
    return s


def forward(q, k, v, table, scale, size, bias):
    """Chunked attention.

    Args:
      q: [..., heads, n, dk]; k: [..., heads, m, dk]; v: [..., heads or 1, m, dv].
      table, bias: None, or an array and a `learned.OffsetBias` that makes the bias from it.
      scale: factor of the affinities; size: `Chunks`.

    Returns:
      Output [..., heads, n, dv] in the dtype of v, log-sum-exp [..., heads, n, 1] float32.
    """
    n, m = q.shape[-2], k.shape[-2]
    q, k, v = _pad(q, size.queries), _pad(k, size.keys), _pad(v, size.keys)
    steps = k.shape[-2] // size.keys

    def scores(qt, i, t):
        s = softmax.scores(qt, _cut(k, t, size.keys), scale)
        piece = None if bias is None else bias.cut(table, i, t)
        return _finish_scores(s, t, m, size.keys, piece, bias)

    def chunk(i):
        qt = _cut(q, i, size.queries)
        if steps == 1:
            o, lse = softmax.normalise(scores(qt, i, 0), v)
        else:

            def step(state, t):
                vt = _cut(v, t, size.keys)
                return softmax.accumulate(state, scores(qt, i, t), vt), None

            state, _ = lax.scan(step, softmax.start(qt, v), jnp.arange(steps))
            o, lse = softmax.finish(state)
        return o.astype(v.dtype), lse[..., None]

    if q.shape[-2] == size.queries:
        o, lse = chunk(0)
        return o[..., :n, :], lse[..., :n, :]

    def write(carry, i):
        return tuple(
            lax.dynamic_update_slice_in_dim(x, new, i * size.queries, axis=x.ndim - 2)
            for x, new in zip(carry, chunk(i))
        ), None

    carry = (
        jnp.zeros((*q.shape[:-1], v.shape[-1]), v.dtype),
        jnp.zeros((*q.shape[:-1], 1), jnp.float32),
    )
    (o, lse), _ = lax.scan(write, carry, jnp.arange(q.shape[-2] // size.queries))
    return o[..., :n, :], lse[..., :n, :]


def backward(q, k, v, table, delta, lse, do, scale, size, bias, tiles):
    """Gradients of `forward` with respect to q, k, v and table.

    Args:
      delta, lse: [..., heads, n, 1], `softmax.row_delta` of the output, log-sum-exp of `forward`.
      do: [..., heads, n, dv], gradient of the output; the others as for `forward`.

    Returns:
      dq, dk, dv in the dtypes of q, k, v; dtable, or None without a table.
    """
    lengths = [x.shape[-2] for x in (q, k, v)]
    dtypes = (q.dtype, k.dtype, v.dtype)
    q, do, lse, delta = (_pad(x, size.queries) for x in (q, do, lse, delta))
    k, v = _pad(k, size.keys), _pad(v, size.keys)
    columns = k.shape[-2] // size.keys

    def step(carry, pair):
        dq, dk, dv, dtable = carry
        i, t = pair // columns, pair % columns
        qt, dot, lt, dt = (_cut(x, i, size.queries) for x in (q, do, lse, delta))
        kt, vt = _cut(k, t, size.keys), _cut(v, t, size.keys)
        s = softmax.scores(qt, kt, scale)
        piece = None if bias is None else bias.cut(table, i, t)
        s = _finish_scores(s, t, lengths[1], size.keys, piece, bias)
        dqt, dkt, dvt, ds = softmax.backward(
            qt, kt, vt, s, dot, lt[..., 0], dt[..., 0], scale, tiles
        )
        if bias is not None:
            ds = ds.sum(range(ds.ndim - 2))
            dtable = bias.add(dtable, jax.vjp(bias.expand, piece)[1](ds)[0], i, t)
        return (
            _add(dq, dqt, i, size.queries),
            _add(dk, dkt, t, size.keys),
            _add(dv, dvt, t, size.keys),
            dtable,
        ), None

    carry = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)]
    carry.append(None if table is None else jnp.zeros_like(table))
    pairs = q.shape[-2] // size.queries * columns
    if pairs == 1:
        carry, _ = step(carry, 0)
    else:
        carry, _ = lax.scan(step, tuple(carry), jnp.arange(pairs))
    gradients = (x[..., :n, :].astype(t) for x, n, t in zip(carry[:3], lengths, dtypes))
    return (*gradients, carry[3])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def attend_rows(q, k, v, table, scale: float, size: Chunks, bias, tiles: Tiles):
    """`forward` without the log-sum-exp, with gradients of linear memory."""
    return forward(q, k, v, table, scale, size, bias)[0]


def _attend_forward(q, k, v, table, scale, size, bias, tiles):
    o, lse = forward(q, k, v, table, scale, size, bias)
    return o, (q, k, v, table, o, lse)


def _attend_backward(scale, size, bias, tiles, saved, do):
    q, k, v, table, o, lse = saved
    delta = softmax.row_delta(do, o)[..., None]
    return backward(q, k, v, table, delta, lse, do, scale, size, bias, tiles)


attend_rows.defvjp(_attend_forward, _attend_backward)


def as_rows(x):
    """[b, h, w, heads, c] -> [b, heads, h * w, c]."""
    b, h, w, heads, c = x.shape
    return jnp.swapaxes(x.reshape(b, h * w, heads, c), 1, 2)


def as_map(x, h, w):
    """[b, heads, h * w, c] -> [b, h, w, heads, c]."""
    b, heads, _, c = x.shape
    return jnp.swapaxes(x, 1, 2).reshape(b, h, w, heads, c)


def attend(q, k, v, scale, tiles):
    """FULL attention, q [b, rows, w, heads, dk], k [b, h, w, heads, dk], v [b, h, w, ., dv]."""
    b, h, w, heads, _ = q.shape
    size = chunks(h * w, b * heads, tiles, math.prod(k.shape[1:3]))
    o = attend_rows(as_rows(q), as_rows(k), as_rows(v), None, scale, size, None, tiles)
    return as_map(o, h, w)


def attend_pruned(q, k, v, scale, tiles, prune):
    """FULL attention with Context Pruning, forward only; arguments as for `attend`."""
    h, w = q.shape[1:3]
    rows = (as_rows(x) for x in (q, k, v))
    return as_map(pruning.attend_rows(*rows, jnp.arange(h * w), prune, scale, tiles), h, w)
