"""The peers of the attention benchmark, in torch and JAX.

Each function here builds an attention function of q, k, v [b, h, w, d] (one head, no scale), which
returns [b, h, w, d]. They are written as a careful user of the library would: fused kernels where
there are any, masks computed once beforehand.

Arguments of all builders: `h` and `w` are height and width of the map, `size` is the number of
positions to each side of a local window, `stride` the distance between neighbours of a grid.
"""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

TorchAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
JaxAttention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _rows(x: torch.Tensor) -> torch.Tensor:
    b, h, w, d = x.shape
    return x.reshape(b, 1, h * w, d)


def _sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)


def _window_mask(n: int, size: int) -> torch.Tensor:
    at = torch.arange(n)
    return (at[:, None] - at).abs() <= size


def sdpa_full(h: int, w: int) -> TorchAttention:
    """Builds torch scaled_dot_product_attention over the whole map."""

    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return _sdpa(_rows(q), _rows(k), _rows(v)).reshape(*q.shape[:3], -1)

    return f


def sdpa_local(h: int, w: int, size: int) -> TorchAttention:
    """Builds torch scaled_dot_product_attention with a dense window mask, n^2 bools."""
    mask = _window_mask(h, size)[:, None, :, None] & _window_mask(w, size)[None, :, None, :]
    mask = mask.reshape(h * w, h * w)

    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return _sdpa(_rows(q), _rows(k), _rows(v), mask).reshape(*q.shape[:3], -1)

    return f


def flex_local(h: int, w: int, size: int, tile: tuple[int, int] = (8, 16)) -> TorchAttention:
    """Builds torch FlexAttention with a block mask of the 2-D window.

    Args:
        h: height of the map.
        w: width of the map.
        size: number of positions to each side of the window.
        tile: height and width of the tiles by which tokens are ordered, one block each.
    """
    th, tw = tile
    hp, wp = -(-h // th) * th, -(-w // tw) * tw
    y, x = (
        t.reshape(hp // th, th, wp // tw, tw).permute(0, 2, 1, 3).reshape(-1)
        for t in torch.meshgrid(torch.arange(hp), torch.arange(wp), indexing='ij')
    )

    def window(
        b: torch.Tensor, head: torch.Tensor, i: torch.Tensor, j: torch.Tensor
    ) -> torch.Tensor:
        near = ((y[i] - y[j]).abs() <= size) & ((x[i] - x[j]).abs() <= size)
        return near & (y[j] < h) & (x[j] < w)

    # After several recompilations in one process torch silently stops compiling.
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    mask = create_block_mask(
        window, 1, 1, hp * wp, hp * wp, device=str(torch.get_default_device()), BLOCK_SIZE=th * tw
    )

    def order(t: torch.Tensor) -> torch.Tensor:
        t = F.pad(t, (0, 0, 0, wp - w, 0, hp - h))
        t = t.reshape(len(t), hp // th, th, wp // tw, tw, -1).permute(0, 1, 3, 2, 4, 5)
        return t.reshape(len(t), 1, hp * wp, -1)

    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        o = compiled(order(q), order(k), order(v), block_mask=mask, scale=1.0)
        o = o.reshape(len(q), hp // th, wp // tw, th, tw, -1).permute(0, 1, 3, 2, 4, 5)
        return o.reshape(len(q), hp, wp, -1)[:, :h, :w]

    return f


def natten_local(size: int) -> TorchAttention:
    """Builds NATTEN's fused attention, whose windows are moved inside the map at its border.

    `natten.na2d` takes [b, h, w, heads, d]: src/natten/functional.py of SHI-Labs/NATTEN at 0bce7af.
    """
    natten: Any = importlib.import_module('natten')

    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x[:, :, :, None].contiguous() for x in (q, k, v))
        return natten.na2d(q, k, v, kernel_size=2 * size + 1, scale=1.0)[:, :, :, 0]

    return f


def halo_local(h: int, w: int, size: int, b: int = 8) -> TorchAttention:
    """Builds block-local attention with halos as in HaloNet: unfolded windows, masked SDPA.

    Args:
        h: height of the map.
        w: width of the map.
        size: number of positions to each side of the window.
        b: side of a block of queries.
    """
    hp, wp, n = -(-h // b) * b, -(-w // b) * b, b + 2 * size
    ny, nx = hp // b, wp // b

    def pad(t: torch.Tensor) -> torch.Tensor:
        return F.pad(t, (0, 0, size, size + wp - w, size, size + hp - h))

    def windows(t: torch.Tensor) -> torch.Tensor:
        t = pad(t).unfold(1, n, b).unfold(2, n, b).permute(0, 1, 2, 4, 5, 3)
        return t.reshape(len(t), ny * nx, n * n, -1)

    offset = torch.arange(n)[None] - size - torch.arange(b)[:, None]
    near = offset.abs() <= size
    near = (near[:, None, :, None] & near[None, :, None, :]).reshape(b * b, n * n)
    inside = pad(torch.ones(1, h, w, 1))[0, :, :, 0].bool().unfold(0, n, b).unfold(1, n, b)
    mask = near[None] & inside.reshape(ny * nx, 1, n * n)
    mask = (mask | ~mask.any(-1, keepdim=True))[None]

    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        blocks = F.pad(q, (0, 0, 0, wp - w, 0, hp - h)).reshape(len(q), ny, b, nx, b, -1)
        blocks = blocks.permute(0, 1, 3, 2, 4, 5).reshape(len(q), ny * nx, b * b, -1)
        o = _sdpa(blocks, windows(k), windows(v), mask.expand(len(q), -1, -1, -1))
        o = o.reshape(len(q), ny, nx, b, b, -1).permute(0, 1, 3, 2, 4, 5)
        return o.reshape(len(q), hp, wp, -1)[:, :h, :w]

    return f


def dilated(
    peer: Callable[..., TorchAttention], h: int, w: int, size: int, dilation: int
) -> TorchAttention:
    """Builds a local attention inside the residue classes of the positions.

    Args:
        peer: builder of the local attention.
        h: height of the map.
        w: width of the map.
        size: number of positions to each side of the window.
        dilation: number of positions from one neighbour to the next; divides both sides.
    """
    d = dilation
    if h % d or w % d:
        raise ValueError(f'the peers dilate maps that {d} divides, not {h} x {w}')
    inside = peer(h // d, w // d, size)

    def classes(t: torch.Tensor) -> torch.Tensor:
        t = t.reshape(len(t), h // d, d, w // d, d, -1).permute(0, 2, 4, 1, 3, 5)
        return t.reshape(-1, h // d, w // d, t.shape[-1])

    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        o = inside(classes(q), classes(k), classes(v))
        o = o.reshape(len(q), d, d, h // d, w // d, -1).permute(0, 3, 1, 4, 2, 5)
        return o.reshape(len(q), h, w, -1)

    return f


def block_sdpa(h: int, w: int, size: int) -> TorchAttention:
    """Builds SDPA within non-overlapping windows of size x size, which divide the map."""
    if h % size or w % size:
        raise ValueError(f'the peers have blocks that divide the map, not {size} and {h} x {w}')

    def blocks(t: torch.Tensor) -> torch.Tensor:
        t = t.reshape(len(t), h // size, size, w // size, size, -1).permute(0, 1, 3, 2, 4, 5)
        return t.reshape(len(t), -1, size * size, t.shape[-1])

    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        o = _sdpa(blocks(q), blocks(k), blocks(v))
        o = o.reshape(len(q), h // size, w // size, size, size, -1).permute(0, 1, 3, 2, 4, 5)
        return o.reshape(len(q), h, w, -1)

    return f


def criss_cross(h: int, w: int) -> TorchAttention:
    """Builds criss-cross attention: the scores of column and row side by side, one softmax."""
    itself = torch.eye(h, dtype=torch.bool)[:, None, :]

    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        column = torch.einsum('bhwd,bgwd->bhwg', q, k).masked_fill(itself, -torch.inf)
        row = torch.einsum('bhwd,bhvd->bhwv', q, k)
        p_column, p_row = torch.cat([column, row], -1).softmax(-1).split([h, w], -1)
        return torch.einsum('bhwg,bgwd->bhwd', p_column, v) + torch.einsum(
            'bhwv,bhvd->bhwd', p_row, v
        )

    return f


def unfold_local(h: int, w: int, size: int, rows: int = 4) -> TorchAttention:
    """Builds the im2col form of local attention.

    Args:
        h: height of the map.
        w: width of the map.
        size: number of positions to each side of the window.
        rows: rows of the map that are unfolded at a time.
    """
    n = 2 * size + 1
    inside = F.pad(torch.ones(h, w), (size,) * 4)

    def windows(t: torch.Tensor, r: int, end: int) -> torch.Tensor:
        t = t[:, r : end + 2 * size].unfold(1, n, 1).unfold(2, n, 1)
        return t.reshape(len(t), end - r, w, -1, n * n)

    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = (F.pad(t, (0, 0, size, size, size, size)) for t in (k, v))
        out = []
        for r in range(0, h, rows):
            end = min(h, r + rows)
            valid = inside[r : end + 2 * size].unfold(0, n, 1).unfold(1, n, 1)
            s = (q[:, r:end].unsqueeze(-2) @ windows(k, r, end)).squeeze(-2)
            p = s.masked_fill(valid.reshape(end - r, w, -1) == 0, -torch.inf).softmax(-1)
            out.append((windows(v, r, end) @ p.unsqueeze(-1)).squeeze(-1))
        return torch.cat(out, 1)

    return f


def grid_sdpa(h: int, w: int, stride: int) -> TorchAttention:
    """Builds space-to-depth and SDPA within groups, padded and masked where T does not divide."""
    gh, gw = -(-h // stride), -(-w // stride)

    def groups(t: torch.Tensor) -> torch.Tensor:
        t = F.pad(t, (0, 0, 0, gw * stride - w, 0, gh * stride - h))
        t = t.reshape(len(t), gh, stride, gw, stride, -1).permute(0, 2, 4, 1, 3, 5)
        return t.reshape(len(t), stride * stride, gh * gw, -1)

    mask = None
    if (gh * stride, gw * stride) != (h, w):
        mask = groups(torch.ones(1, h, w, 1))[..., 0].bool()[:, :, None, :]

    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        o = _sdpa(groups(q), groups(k), groups(v), mask)
        o = o.reshape(len(q), stride, stride, gh, gw, -1).permute(0, 3, 1, 4, 2, 5)
        return o.reshape(len(q), gh * stride, gw * stride, -1)[:, :h, :w]

    return f


def non_local(h: int, w: int) -> TorchAttention:
    """Builds the non-local block of mmseg: two products and a softmax with all n^2 weights."""

    def f(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.reshape(len(t), h * w, -1) for t in (q, k, v))
        return ((q @ k.transpose(1, 2)).softmax(-1) @ v).reshape(len(q), h, w, -1)

    return f


def jax_full(h: int, w: int) -> JaxAttention:
    """Builds jax.nn.dot_product_attention over the whole map."""

    def f(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k, v = (x.reshape(len(x), h * w, 1, -1) for x in (q, k, v))
        return jax.nn.dot_product_attention(q, k, v, scale=1.0).reshape(len(q), h, w, -1)

    return f
