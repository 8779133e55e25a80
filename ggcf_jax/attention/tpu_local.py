"""LOCAL attention on TPUs: one Pallas kernel for each of forward, dq, and dk with dv.

A program of the kernel has a tile of positions and the window of all that they see; both are
blocks that the pipeline fetches ahead, and windows overlap (`pl.Element`). The window is gone
through some rows at a time, with an online softmax. Edges of LOCAL are symmetric: for dk and dv the
tiles are those of keys, and the windows those of the queries that see them, so that no program adds
to what another one has written.

Maps have zeros around them so that all windows are whole. Two arrays hide what is no neighbour: one
of all pairs of a tile and its window, the same for all tiles, and one number for each key of each
window, which knows the border of the map and the valid positions. Sums of queries (log-sum-exps)
lie along lanes, as rows: an array with a last axis of one would take 128 times its size.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ggcf_jax.attention import once, softmax, target, tpu_sizes, varying
from ggcf_jax.attention.graphs import Local
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.pruning import Prune
from ggcf_jax.attention.tpu_sizes import Size2d, TpuSizes, round_up

_INTERPRET = False  # whether the kernels are carried out by XLA, where there is no TPU

_LOWEST = -1e30  # score of what is hidden: finite, so that differences are
_NO_WEIGHT = _LOWEST / 4  # lowest score of what is seen, in place of minus infinity
_LANES = 128
_SUBLANES = 16  # of a bfloat16 register; 8 of a float32 one


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How a map is cut.

    Attributes:
      sizes: how far windows reach along rows and columns.
      tile: height and width of a tile.
      tiles: number of tiles along rows and columns.
      window: height and width of a window, at least tile + 2 sizes.
      rows: number of rows of a window that are taken at a time; divides its height.
    """

    sizes: Size2d
    tile: Size2d
    tiles: Size2d
    window: Size2d
    rows: int

    @property
    def queries(self) -> int:
        """Number of positions of a tile."""
        return math.prod(self.tile)

    @property
    def chunks(self) -> int:
        """Number of times that rows of a window are taken."""
        return self.window[0] // self.rows

    @property
    def keys(self) -> int:
        """Number of positions that are taken at a time."""
        return self.rows * self.window[1]


def plan(h: int, w: int, reach: Size2d, sizes: TpuSizes) -> _Plan:
    """How a map of h x w positions is cut.

    Args:
      h, w: height and width of the map that is cut into tiles.
      reach: how far windows reach along rows and columns.
      sizes: sizes to aim at.
    """
    most = sizes.wide_tile if min(reach) >= sizes.wide else sizes.tile
    tile = min(h, most[0]), min(round_up(w, _SUBLANES), most[1])
    width = round_up(tile[1] + 2 * reach[1], _SUBLANES)
    height = tile[0] + 2 * reach[0]

    def lanes(rows: int) -> tuple[int, int]:
        return -(-height // rows) * round_up(rows * width, _LANES), -rows

    rows = min(range(1, max(1, min(height, sizes.keys // width)) + 1), key=lanes)
    return _Plan(
        reach, tile, (-(-h // tile[0]), -(-w // tile[1])), (round_up(height, rows), width), rows
    )


def memory(
    h: int, w: int, graph: Local, channels: Size2d, itemsize: int, sizes: TpuSizes, *, pruned: bool
) -> int:
    """About how many bytes of on-chip memory the largest of the kernels takes.

    Args:
      h, w: height and width of the map.
      graph: its sizes.
      channels: numbers of channels of q and k, and of v.
      itemsize: bytes of a number of them.
      sizes: sizes to aim at.
      pruned: whether the scores of a whole window are kept.
    """
    cut = plan(h, w, _reach(graph, h, w), sizes)
    both = sum(round_up(c, _LANES) for c in channels)
    positions = math.prod(cut.window) + 2 * cut.queries
    near = math.prod(cut.window) * cut.queries * 2
    scores = 4 * cut.queries * round_up(cut.keys, _LANES) * 4
    sums = cut.queries * both * 4
    kept = _scores(cut) * 4 if pruned else 0
    return 2 * positions * both * itemsize + 2 * near + scores + sums + kept


def _scores(cut: _Plan) -> int:
    """Number of scores of a tile with its window, filled up to whole lanes."""
    return cut.chunks * cut.queries * round_up(cut.keys, _LANES)


def attend_rows(
    inputs: Inputs, rows_of_map: jax.Array | None, graph: Local, options: Any
) -> Partial:
    """LOCAL attention of a block of rows to its surroundings, as `local.attend_rows`."""
    q, k, v, valid, _, _ = inputs
    if not isinstance(q.shape[0], int):
        return _image_by_image(
            lambda inputs: attend_rows(inputs, rows_of_map, graph, options), inputs
        )
    margin = (k.shape[1] - q.shape[1]) // 2
    inside = jnp.ones((1, *k.shape[1:3]), bool) if valid is None else valid
    if rows_of_map is not None:
        y = jnp.arange(k.shape[1])
        inside &= ((y >= rows_of_map[0]) & (y < rows_of_map[1]))[:, None]
    arrays = [x for x in (*inputs[:4], rows_of_map) if x is not None]
    sizes = tpu_sizes.of_kind(target.kind())
    assert sizes is not None
    static = _Static(_reach(graph, *k.shape[1:3]), float(options.scale), margin, sizes)
    maps = [varying.match(x.transpose(0, 3, 1, 2, 4), *arrays) for x in (q, k, v)]
    o, lse = _attend(*maps, varying.match(inside, *arrays), static)
    return Partial(o.transpose(0, 2, 3, 1, 4), lse.transpose(0, 2, 3, 1))


def attend_pruned(inputs: Inputs, graph: Local, options: Any, prune: Prune) -> Partial:
    """LOCAL attention with Context Pruning by the affinities, as `local.attend_pruned`."""
    q, k, v, valid, _, _ = inputs
    b, h, w, heads, _ = q.shape
    if not isinstance(b, int):
        return _image_by_image(lambda inputs: attend_pruned(inputs, graph, options, prune), inputs)
    arrays = [x for x in inputs[:4] if x is not None]
    sizes = tpu_sizes.of_kind(target.kind())
    assert sizes is not None
    static = _Static(_reach(graph, h, w), float(options.scale), 0, sizes)
    cut = plan(h, w, static.reach, sizes)
    inside = varying.match(jnp.ones((1, h, w), bool) if valid is None else valid, *arrays)
    neighbours = inside.astype(jnp.int32)
    for axis, reach in enumerate(static.reach):
        neighbours = _window_sums(neighbours, 1 + axis, reach)
    wanted = prune.kept(neighbours).astype(jnp.float32)  # exact: a window is smaller than 2^24
    hide = jnp.where(inside, 0.0, _LOWEST)[:, None, :, :, None]
    q, k, v = (varying.match(x.transpose(0, 3, 1, 2, 4), *arrays) for x in (q, k, v))
    o, lse = _call(
        _pruned_kernel,
        cut,
        static,
        tiles=[_tiles(q, cut)],
        tile_rows=_to_rows(wanted[:, None, :, :, None], cut),
        near=_near(cut),
        rows=_rows_of_windows(hide, cut, 0, _LOWEST),
        windows=[_windows(x, cut, 0) for x in (k, v)],
        results=[(v.shape[-1], v.dtype)],
        sums=1,
        heads=heads,
        scratch=(cut.chunks, cut.queries, cut.keys),
    )
    lse = _from_rows(lse, cut)[:, :, :h, :w, 0]
    return Partial(o[:, :, :h, :w].transpose(0, 2, 3, 1, 4), lse.transpose(0, 2, 3, 1))


def _image_by_image(f: Callable[[Inputs], Partial], inputs: Inputs) -> Partial:
    """One image after the other: a kernel's grid is static, and the batch is not."""

    def one(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(x[0] for x in f(Inputs(*(x[None] for x in arrays))))

    return Partial(*lax.map(one, tuple(x for x in inputs[:4] if x is not None)))


def _window_sums(x: jax.Array, axis: int, reach: int) -> jax.Array:
    """Sums of x over at most `reach` positions to both sides of each along an axis, int32."""
    n = x.shape[axis]
    up_to = jnp.cumsum(x, axis)
    at = jnp.arange(n)
    last = jnp.take(up_to, jnp.minimum(at + reach, n - 1), axis)
    before = jnp.take(up_to - x, jnp.maximum(at - reach, 0), axis)
    return last - before


@dataclasses.dataclass(frozen=True)
class _Static:
    """What the kernels need to know beside arrays.

    Attributes:
      reach: how far windows reach along rows and columns.
      scale: factor of the affinities.
      margin: number of rows that keys have more than queries, above and below.
      sizes: sizes to aim at.
    """

    reach: Size2d
    scale: float
    margin: int
    sizes: TpuSizes


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, inside: jax.Array, static: _Static
) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exps of maps [b, heads, h, w, c]; `inside` is bool [b or 1, h, w]."""
    return _forward(q, k, v, inside, static)


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, inside: jax.Array, static: _Static
) -> tuple[jax.Array, jax.Array]:
    h, w = q.shape[2:4]
    cut = plan(h, w, static.reach, static.sizes)
    hide = jnp.where(inside, 0.0, _LOWEST)[:, None, :, :, None]
    o, lse = _call(
        _forward_kernel,
        cut,
        static,
        tiles=[_tiles(q, cut)],
        near=_near(cut),
        rows=_rows_of_windows(hide, cut, static.margin, _LOWEST),
        windows=[_windows(x, cut, static.margin) for x in (k, v)],
        results=[(v.shape[-1], v.dtype)],
        sums=1,
        heads=q.shape[1],
    )
    return o[:, :, :h, :w], _from_rows(lse, cut)[:, :, :h, :w, 0]


def _attend_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, inside: jax.Array, static: _Static
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    q, k, v = once.only('Pallas', (q, k, v))
    o, lse = _forward(q, k, v, inside, static)
    return (o, lse), (q, k, v, inside, o, lse)


def _attend_backward(
    static: _Static, saved: Any, gradients: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
    q, k, v, inside, o, lse = saved
    gradients = once.only('Pallas', gradients)
    tile = softmax.query_tile(q, o, lse[..., None], gradients[0], gradients[1][..., None])
    sums = jnp.concatenate([tile.lse, tile.delta], -1)
    heads, (h, w) = q.shape[1], q.shape[2:4]
    cut = plan(h, w, static.reach, static.sizes)
    hide = jnp.where(inside, 0.0, _LOWEST)[:, None, :, :, None]
    (dq,) = _call(
        _dq_kernel,
        cut,
        static,
        tiles=[_tiles(q, cut), _tiles(tile.do, cut)],
        tile_rows=_to_rows(sums, cut),
        near=_near(cut),
        rows=_rows_of_windows(hide, cut, static.margin, _LOWEST),
        windows=[_windows(x, cut, static.margin) for x in (k, v)],
        results=[(q.shape[-1], q.dtype)],
        heads=heads,
    )
    rows = k.shape[2]
    cut = plan(rows, w, static.reach, static.sizes)
    # Of heads that share the values, the gradients are added in float32.
    of_v = v.dtype if v.shape[1] == heads else jnp.dtype(jnp.float32)
    dk, dv = _call(
        _dkv_kernel,
        cut,
        static,
        tiles=[_tiles(k, cut), _tiles(v, cut)],
        near=_near(cut),
        # A sum of exponentials so large that what is outside of the map has no weight.
        rows=_rows_of_windows(sums, cut, -static.margin, -_LOWEST),
        windows=[_windows(x, cut, -static.margin) for x in (q, tile.do)],
        results=[(k.shape[-1], k.dtype), (v.shape[-1], of_v)],
        heads=heads,
    )
    if v.shape[1] != heads:
        dv = dv.sum(1, keepdims=True)
    seen = inside[:, None, :, :, None]
    dk, dv = (jnp.where(seen, x[:, :, :rows, :w], 0).astype(v.dtype) for x in (dk, dv))
    return dq[:, :, :h, :w], dk, dv, None


_attend.defvjp(_attend_forward, _attend_backward)


def _call(
    kernel: Callable[..., None],
    cut: _Plan,
    static: _Static,
    *,
    tiles: Sequence[jax.Array],
    near: jax.Array,
    rows: jax.Array,
    windows: Sequence[jax.Array],
    results: Sequence[tuple[int, Any]],
    heads: int,
    tile_rows: jax.Array | None = None,
    sums: int = 0,
    scratch: tuple[int, ...] | None = None,
) -> list[jax.Array]:
    """Runs a kernel on all tiles of all heads of all images.

    Args:
      kernel: called with the blocks of `tiles`, `tile_rows`, `near`, `rows` and `windows`, and of
        the results.
      cut: how the map is cut.
      static: what else the kernel needs.
      tiles: maps [b, heads or 1, *tiles * tile, c] of which a program has one tile.
      near: `_near`.
      rows: `_rows_of_windows`.
      windows: `_windows`.
      results: number of channels and dtype of the maps that are computed.
      heads: number of heads.
      tile_rows: `_to_rows`, of which a program has those of its tile.
      sums: number of rows of sums that are computed beside, as `_to_rows`.
      scratch: shape of an int32 array in on-chip memory that the kernel gets behind the results.
    """
    # Here and not at the top: a start without a TPU need not wait for Mosaic.
    from jax.experimental.pallas import tpu as pltpu

    (th, tw), (kh, kw) = cut.tile, cut.window
    b = tiles[0].shape[0]

    def at(x: Any) -> Callable[..., tuple[Any, Any]]:
        return lambda image, head: (
            image if x.shape[0] > 1 else 0,
            head if x.shape[1] > 1 else 0,
        )

    def of_tile(x: Any) -> pl.BlockSpec:
        own = at(x)
        return pl.BlockSpec(
            (None, None, th, tw, x.shape[-1]), lambda i, head, y, x: (*own(i, head), y, x, 0)
        )

    def of_window(x: Any) -> pl.BlockSpec:
        own = at(x)
        return pl.BlockSpec(
            (None, None, pl.Element(kh), pl.Element(kw), pl.Element(x.shape[-1])),
            lambda i, head, y, x: (*own(i, head), y * th, x * tw, 0),
        )

    def of_rows(x: Any) -> pl.BlockSpec:
        own, rest = at(x), x.shape[4:]
        return pl.BlockSpec(
            (None, None, None, None, *rest),
            lambda i, head, y, x: (*own(i, head), y, x, *[0] * len(rest)),
        )

    arrays = [*tiles]
    specs = [of_tile(x) for x in tiles]
    if tile_rows is not None:
        arrays.append(tile_rows)
        specs.append(of_rows(tile_rows))
    arrays += [near, rows, *windows]
    specs.append(pl.BlockSpec(near.shape, lambda *program: (0, 0, 0)))
    specs += [of_rows(rows), *(of_window(x) for x in windows)]
    arrays = [varying.match(x, *arrays) for x in arrays]
    kind = jax.typeof(arrays[0]).manual_axis_type
    size = (b, heads, cut.tiles[0] * th, cut.tiles[1] * tw)
    out = [jax.ShapeDtypeStruct((*size, c), dtype, manual_axis_type=kind) for c, dtype in results]
    out_specs = [of_tile(x) for x in out]
    if sums:
        shape = (b, heads, *cut.tiles, sums, cut.queries)
        out.append(jax.ShapeDtypeStruct(shape, jnp.float32, manual_axis_type=kind))
        out_specs.append(of_rows(out[-1]))
    return pl.pallas_call(
        functools.partial(kernel, cut=cut, scale=static.scale),
        grid=(b, heads, *cut.tiles),
        in_specs=specs,
        out_specs=out_specs,
        out_shape=out,
        scratch_shapes=[] if scratch is None else [pltpu.VMEM(scratch, jnp.int32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel',) * 4, vmem_limit_bytes=static.sizes.memory
        ),
        interpret=_INTERPRET,
        name=f'local{kernel.__name__}',
    )(*arrays)


def _forward_kernel(
    q: Any, near: Any, hide: Any, k: Any, v: Any, o: Any, lse: Any, *, cut: _Plan, scale: float
) -> None:
    """Outputs and log-sum-exps of a tile of queries."""
    queries, dv = _flat(q[...]), v.shape[-1]

    def body(c: Any, state: Any) -> Any:
        keys, values = (_chunk(x, c, cut) for x in (k, v))
        s = jnp.maximum(_product(queries, keys, 1, 1) * scale, _NO_WEIGHT)
        s = jnp.where(near[c].astype(jnp.float32) + hide[c] < 0, _LOWEST, s)
        return _accumulated(state, s, values)

    top, total, sums = lax.fori_loop(0, cut.chunks, body, _start(cut.queries, dv))
    _finish(top, total, sums, o, lse)


def _start(queries: int, dv: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Largest score, sum of exponentials and sum of values before any key."""
    column = (queries, 1)
    return (
        jnp.full(column, _LOWEST, jnp.float32),
        jnp.zeros(column, jnp.float32),
        jnp.zeros((queries, dv), jnp.float32),
    )


def _accumulated(state: Any, s: jax.Array, values: jax.Array) -> Any:
    """The same after some more keys, of these scores [queries, keys] and values."""
    top, total, sums = state
    new = jnp.maximum(top, s.max(1, keepdims=True))
    p, old = jnp.exp(s - new), jnp.exp(top - new)
    sums = sums * old + _product(p.astype(values.dtype), values, 1, 0)
    return new, total * old + p.sum(1, keepdims=True), sums


def _finish(top: jax.Array, total: jax.Array, sums: jax.Array, o: Any, lse: Any) -> None:
    """Writes outputs and log-sum-exps."""
    # Whoever sees no key gets zeros; whose scores are all minus infinity gets NaN, as elsewhere.
    empty = (top <= _NO_WEIGHT) & ~jnp.isnan(total)
    without = jnp.where(top <= _LOWEST / 2, 0.0, jnp.nan)
    o[...] = jnp.where(empty, without, sums / total).astype(o.dtype).reshape(o.shape)
    found = jnp.where(empty, softmax.HIDDEN, top + jnp.log(total))
    lse[...] = jnp.broadcast_to(found, (len(total), _LANES)).T[:1]


def _pruned_kernel(
    q: Any, wanted: Any, near: Any, hide: Any, k: Any, v: Any, o: Any, lse: Any, ordered: Any, *,
    cut: _Plan, scale: float,
) -> None:  # fmt: skip
    """Outputs and log-sum-exps of a tile of queries over the neighbours that pruning keeps.

    The scores of the whole window stay in on-chip memory as int32 of the same order, those of
    strangers as the lowest one. The score of the last neighbour that is kept is found bit by bit.
    """
    queries, dv = _flat(q[...]), v.shape[-1]
    lowest, column = jnp.int32(-(2**31)), (cut.queries, 1)
    keep = jnp.broadcast_to(wanted[:1], (_LANES, cut.queries)).T[:, :1]

    def enter(c: Any, some_nan: jax.Array) -> jax.Array:
        s = _product(queries, _chunk(k, c, cut), 1, 1) * scale
        stranger = near[c].astype(jnp.float32) + hide[c] < 0
        nan = jnp.where(stranger, 0.0, jnp.where(s != s, 1.0, 0.0)).max(1, keepdims=True)
        bits = lax.bitcast_convert_type(jnp.where(s == 0, 0.0, s), jnp.int32)  # zeros are equal
        ordered[c] = jnp.where(stranger, lowest, jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits))
        return jnp.maximum(some_nan, nan)

    some_nan = lax.fori_loop(0, cut.chunks, enter, jnp.zeros(column, jnp.float32))

    def count(reaches: Callable[[jax.Array, Any], jax.Array]) -> jax.Array:
        def add(c: Any, total: jax.Array) -> jax.Array:
            return total + jnp.where(reaches(ordered[c], c), 1.0, 0.0).sum(1, keepdims=True)

        return lax.fori_loop(0, cut.chunks, add, jnp.zeros(column, jnp.float32))

    def find(done: Any, state: Any) -> Any:
        low, at_low, above = state  # low as if unsigned, from zero on
        candidate = low | lax.shift_left(jnp.int32(1), 31 - done)
        found = count(lambda x, c: x >= (candidate ^ lowest))
        enough = found >= keep
        above = jnp.where(enough, above, jnp.maximum(above, found))
        return jnp.where(enough, candidate, low), jnp.where(enough, found, at_low), above

    start = jnp.zeros(column, jnp.int32), keep, jnp.zeros(column, jnp.float32)
    low, at_low, above = lax.fori_loop(0, 32, find, start)
    nth = low ^ lowest

    def place(c: Any) -> jax.Array:
        return c * cut.keys + lax.broadcasted_iota(jnp.int32, (1, cut.keys), 1)

    bits = max(1, (cut.chunks * cut.keys - 1).bit_length())

    def first_of_equals() -> jax.Array:
        """The greatest place at which fewer equal ones lie before than are missing."""

        def find(done: Any, end: jax.Array) -> jax.Array:
            candidate = end | lax.shift_left(jnp.int32(1), bits - 1 - done)
            before = count(lambda x, c: (x == nth) & (place(c) < candidate))
            return jnp.where(before + above < keep, candidate, end)

        return lax.fori_loop(0, bits, find, jnp.zeros(column, jnp.int32))

    last = lax.cond(
        (at_low - keep).max() > 0, first_of_equals, lambda: jnp.full(column, 2**31 - 1, jnp.int32)
    )

    def body(c: Any, state: Any) -> Any:
        x, values = ordered[c], _chunk(v, c, cut)
        kept = (x != lowest) & ((x > nth) | ((x == nth) & (place(c) <= last)))
        s = lax.bitcast_convert_type(jnp.where(x < 0, x ^ 0x7FFFFFFF, x), jnp.float32)
        return _accumulated(state, jnp.where(kept, jnp.maximum(s, _NO_WEIGHT), _LOWEST), values)

    top, total, sums = lax.fori_loop(0, cut.chunks, body, _start(cut.queries, dv))
    total = jnp.where(some_nan > 0, jnp.nan, total)
    _finish(top, total, sums, o, lse)


def _dq_kernel(
    q: Any, do: Any, sums: Any, near: Any, hide: Any, k: Any, v: Any, dq: Any, *, cut: _Plan,
    scale: float,
) -> None:  # fmt: skip
    """Gradients of a tile of queries."""
    queries, gradient = _flat(q[...]), _flat(do[...])
    lse, delta = (
        jnp.broadcast_to(sums[i : i + 1], (_LANES, cut.queries)).T[:, :1] for i in range(2)
    )

    def body(c: Any, total: jax.Array) -> jax.Array:
        keys, values = (_chunk(x, c, cut) for x in (k, v))
        s = _product(queries, keys, 1, 1) * scale
        s = jnp.where(near[c].astype(jnp.float32) + hide[c] < 0, _LOWEST, s)
        ds = jnp.exp(s - lse) * (_product(gradient, values, 1, 1) - delta)
        return total + _product(ds.astype(keys.dtype), keys, 1, 0)

    total = lax.fori_loop(0, cut.chunks, body, jnp.zeros(queries.shape, jnp.float32))
    dq[...] = (total * scale).astype(dq.dtype).reshape(dq.shape)


def _dkv_kernel(
    k: Any, v: Any, near: Any, sums: Any, q: Any, do: Any, dk: Any, dv: Any, *, cut: _Plan,
    scale: float,
) -> None:  # fmt: skip
    """Gradients of a tile of keys and of their values: scores stand in rows of keys."""
    keys, values = _flat(k[...]), _flat(v[...])

    def body(c: Any, totals: Any) -> Any:
        of_k, of_v = totals
        queries, gradient = (_chunk(x, c, cut) for x in (q, do))
        lse, delta = sums[c, :1], sums[c, 1:]
        s = _product(keys, queries, 1, 1) * scale
        s = jnp.where(near[c].astype(jnp.float32) < 0, _LOWEST, s)
        p = jnp.exp(s - lse)
        of_v = of_v + _product(p.astype(gradient.dtype), gradient, 1, 0)
        ds = p * (_product(values, gradient, 1, 1) - delta)
        return of_k + _product(ds.astype(queries.dtype), queries, 1, 0), of_v

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (keys, values))
    of_k, of_v = lax.fori_loop(0, cut.chunks, body, start)
    dk[...] = (of_k * scale).astype(dk.dtype).reshape(dk.shape)
    dv[...] = of_v.astype(dv.dtype).reshape(dv.shape)


def _flat(x: jax.Array) -> jax.Array:
    """[height, width, c] -> [height * width, c]."""
    return x.reshape(-1, x.shape[-1])


def _chunk(x: Any, c: Any, cut: _Plan) -> jax.Array:
    """Chunk c of a window, [keys, channels]."""
    return _flat(x[pl.ds(c * cut.rows, cut.rows)])


def _product(a: jax.Array, b: jax.Array, contract_a: int, contract_b: int) -> jax.Array:
    axes = (((contract_a,), (contract_b,)), ((), ()))
    return lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _near(cut: _Plan) -> jax.Array:
    """What hides those of a window that are too far from a position of the tile.

    Returns:
      bfloat16 [chunks, queries, keys], zero for neighbours and far below zero for the others. It is
      computed where it is used: as a constant it would be megabytes of a program.
    """
    rows, columns = (
        jnp.abs(jnp.arange(n) - size - jnp.arange(t)[:, None]) <= size
        for t, n, size in zip(cut.tile, cut.window, cut.sizes)
    )  # [tile, window]
    near = rows[:, None, :, None] & columns[None, :, None, :]
    near = near.reshape(cut.queries, cut.chunks, cut.keys).transpose(1, 0, 2)
    return jnp.where(near, 0, _LOWEST).astype(jnp.bfloat16)


def _tiles(x: jax.Array, cut: _Plan) -> jax.Array:
    """A map [b, heads, h, w, c] filled up to whole tiles."""
    height, width = (n * t for n, t in zip(cut.tiles, cut.tile))
    fill = ((0, height - x.shape[2]), (0, width - x.shape[3]))
    return jnp.pad(x, ((0, 0), (0, 0), *fill, (0, 0)))


def _windows(x: jax.Array, cut: _Plan, margin: int, fill: float = 0.0) -> jax.Array:
    """A map [b, heads, h, w, c] with so much around it that all windows are whole.

    Args:
      x: the map.
      cut: how the map of the tiles is cut.
      margin: number of rows that x has more than that map, above and below.
      fill: what is put around it.
    """
    before = cut.sizes[0] - margin, cut.sizes[1]
    whole = ((n - 1) * t + size for n, t, size in zip(cut.tiles, cut.tile, cut.window))
    widths = [(i, n - i - own) for i, n, own in zip(before, whole, x.shape[2:4])]
    return jnp.pad(x, ((0, 0), (0, 0), *widths, (0, 0)), constant_values=fill)


def _rows_of_windows(x: jax.Array, cut: _Plan, margin: int, fill: float) -> jax.Array:
    """The windows of a map of few channels, along lanes: [b, heads, *tiles, chunks, c, keys]."""
    x = _windows(x, cut, margin, fill)
    for axis in (0, 1):
        x = _overlapping(x, 2 + 2 * axis, cut.tile[axis], cut.tiles[axis], cut.window[axis])
    # [b, heads, tiles, window, tiles, window, c]
    x = x.transpose(0, 1, 2, 4, 3, 5, 6)
    b, heads, c = x.shape[0], x.shape[1], x.shape[-1]
    x = x.reshape(b, heads, *cut.tiles, cut.chunks, cut.keys, c)
    return jnp.swapaxes(x, -1, -2)


def _overlapping(x: jax.Array, axis: int, step: int, count: int, length: int) -> jax.Array:
    """Pieces of an axis, one every `step` positions: [..., count, length, ...].

    They are put together from the pieces that do not overlap, without a gather.
    """
    many = -(-length // step)
    fill = [(0, 0)] * x.ndim
    fill[axis] = (0, (count - 1 + many) * step - x.shape[axis])
    x = jnp.pad(x, fill)
    x = x.reshape(*x.shape[:axis], count - 1 + many, step, *x.shape[axis + 1 :])
    shifted = [lax.slice_in_dim(x, i, i + count, axis=axis) for i in range(many)]
    return lax.slice_in_dim(jnp.concatenate(shifted, axis + 1), 0, length, axis=axis + 1)


def _to_rows(x: jax.Array, cut: _Plan) -> jax.Array:
    """The tiles of a map of few channels, along lanes: [b, heads, *tiles, c, queries]."""
    b, heads, _, _, c = x.shape
    (ny, nx), (th, tw) = cut.tiles, cut.tile
    x = _tiles(x, cut).reshape(b, heads, ny, th, nx, tw, c).transpose(0, 1, 2, 4, 6, 3, 5)
    return x.reshape(b, heads, ny, nx, c, cut.queries)


def _from_rows(x: jax.Array, cut: _Plan) -> jax.Array:
    """What `_to_rows` makes of a map, put back: [b, heads, *tiles * tile, c]."""
    b, heads, ny, nx, c, _ = x.shape
    th, tw = cut.tile
    x = x.reshape(b, heads, ny, nx, c, th, tw).transpose(0, 1, 2, 5, 3, 6, 4)
    return x.reshape(b, heads, ny * th, nx * tw, c)


def _reach(graph: Local, h: int, w: int) -> Size2d:
    """How far windows reach along rows and columns: not past the map from any position."""
    reach = [min(size, n - 1) for size, n in zip(graph.sizes, (h, w))]
    return reach[0], reach[1]
