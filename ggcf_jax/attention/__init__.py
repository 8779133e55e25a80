"""Exact attention over neighbourhood graphs of 2-D maps, with memory linear in the map."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ggcf_jax.attention import (
    attention_maps,
    block_sizes,
    full,
    graphs,
    grid,
    learned,
    local,
    reference,
    sharded,
)
from ggcf_jax.attention import pruning as pruning_lib

IMPLEMENTATIONS = ('auto', 'reference', 'xla')


def attend(
    q, k, v, graph, *, keep=None, drop_rate=None, pruning='top', key=None, scale=1.0,
    implementation='auto',
):  # fmt: skip
    """Sums v over each position's neighbours j, weighted by softmax(scale * q_i . k_j) (Eq. 3).

    Args:
      q, k: float32 or bfloat16 [b, h, w, heads, dk].
      v: [b, h, w, heads, dv]; or [b, h, w, 1, dv], one v that all heads share.
      graph: one of `graphs`, the same for all heads; or anything with `adjacency(h, w)`.
      keep: keep so many neighbours a query (Context Pruning, section 3.4); at least 1.
      drop_rate: instead of keep, drop this share of each query's own neighbours (counted inside
        the map, the dropped number rounded down); in [0, 1), in steps of 1/10000.
      pruning: 'top' keeps the neighbours of largest affinity; 'random' random ones (needs key).
      key: PRNG key of random pruning.
      scale: factor of the affinities; 1 is the paper's form.
      implementation: 'auto', 'reference' (dense mask, any graph) or 'xla' (the engine); see
        `chosen`.

    Under a mesh with an axis `space` (jax.set_mesh) the rows of the map lie on its devices, see
    `spatial`; b and h must be divisible.

    Returns:
      [b, h, w, heads, dv] in the dtype of v; scores, softmax and sums are float32. Differentiable
      in q, k, v and the parameters of a learned graph; pruned, only by the reference.

    Raises:
      ValueError: shapes that do not fit, or options out of range.
    """
    _check_arrays(q, k, v)
    _check_scale(scale)
    prune = _prune(keep, drop_rate, pruning, key)
    if chosen(graph, implementation=implementation) == 'reference':
        return reference.attend(q, k, v, graph, scale=scale, prune=prune)
    return _engine(q, k, v, graph, float(scale), prune)


def probabilities(
    q, k, graph, positions, *, keep=None, drop_rate=None, pruning='top', key=None, scale=1.0
):
    """The weights with which `attend` sums v, for chosen queries: single rows of the attention.

    One query after the other, each against the whole map: no h*w x h*w array is made, except by
    the definition of a graph that has nothing but `adjacency(h, w)`.

    Args:
      q, k, graph, keep, drop_rate, pruning, key, scale: as for `attend`.
      positions: integers [m, 2], row and column of each query inside the map.

    Returns:
      float32 [b, m, heads, h, w]: zero for a position that is no neighbour or was dropped, one in
      sum over the map.

    Raises:
      ValueError: shapes that do not fit, options out of range, or positions, where they are not
        traced, outside the map.
    """
    _check_arrays(q, k, k)
    _check_scale(scale)
    chosen(graph)
    positions = _check_positions(positions, *q.shape[1:3])
    prune = _prune(keep, drop_rate, pruning, key)
    return attention_maps.probabilities(q, k, graph, positions, scale=scale, prune=prune)


def neighbours(graph, positions, h, w):
    """Which positions of an h x w map chosen queries see: bool [m, h, w], one query at a time.

    Args:
      graph: as for `attend`; a learned one needs no parameters.
      positions: as for `probabilities`.
    """
    chosen(graph)
    return attention_maps.neighbours(graph, _check_positions(positions, h, w), h, w)


def chosen(graph, *, implementation='auto'):
    """The implementation that `attend` runs for this graph: 'xla' or 'reference'.

    'auto' is the engine for the four graphs that it knows, the reference for any other.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f'implementation {implementation!r} is not one of {", ".join(IMPLEMENTATIONS)}'
        )
    if not callable(getattr(graph, 'adjacency', None)):
        raise ValueError(
            f'graph {graph!r} has no adjacency(h, w); write a graph such as '
            'Local(8), or parse a text with ggcf_jax.attention.graphs.parse'
        )
    known = type(graph) in (graphs.Full, graphs.Local, graphs.Grid, graphs.Learned)
    if implementation == 'xla' and not known:
        raise ValueError(
            f"implementation 'xla' has no engine for {graph!r}; use 'reference', or 'auto'"
        )
    return 'xla' if known and implementation != 'reference' else 'reference'


def _engine(q, k, v, graph, scale, prune):
    sizes = block_sizes.current(q.shape[0])
    settings, table, module = (), (), full
    if isinstance(graph, graphs.Local):
        settings, module = (graph.size,), local
    elif isinstance(graph, graphs.Grid):
        settings, module = (graph.stride,), grid
    elif isinstance(graph, graphs.Learned):
        table, module = (graph.log_table(*q.shape[1:3]),), learned
    if prune is None or prune.keeps_all(graph.neighbours(*q.shape[1:3])):
        if sharded.devices() > 1:  # each device sees its own arrays there
            sizes = dataclasses.replace(sizes, devices=1)
            return sharded.attend(q, k, v, *table, *settings, scale, sizes, module)
        return module.attend(q, k, v, *table, *settings, scale, sizes)

    def forward(q, k, v, table, prune):
        return module.attend_pruned(q, k, v, *table, *settings, scale, sizes, prune)

    return _forward_only(forward, q, k, v, table, prune)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward_only(f, *arguments):
    return f(*arguments)


def _refuse(f, *arguments):
    raise NotImplementedError(
        'Context Pruning is for inference: the engine has no gradient with keep or drop_rate. Drop '
        "them for training, or use implementation='reference' on small maps"
    )


_forward_only.defvjp(_refuse, _refuse)


def _check_arrays(q, k, v):
    for name, x in (('q', q), ('k', k), ('v', v)):
        if jnp.ndim(x) != 5:
            raise ValueError(
                f'{name} must be [batch, height, width, heads, channels], not of shape '
                f'{jnp.shape(x)}'
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f'{name} must be floating point, not {x.dtype}')
        if 0 in x.shape:
            raise ValueError(f'{name} is empty: shape {x.shape}')
    if q.shape != k.shape:
        raise ValueError(f'q and k must have one shape, not {q.shape} and {k.shape}')
    if v.shape[:3] != q.shape[:3] or v.shape[3] not in (1, q.shape[3]):
        raise ValueError(
            f'v must be [batch, height, width, heads or 1, channels] for q {q.shape}, not {v.shape}'
        )


def _check_positions(positions, h, w):
    traced = isinstance(positions, jax.core.Tracer)
    positions = positions if traced else np.asarray(positions)
    if positions.ndim != 2 or positions.shape[1] != 2:
        raise ValueError(f'positions must be [queries, 2], not of shape {positions.shape}')
    if not traced:
        outside = ((positions < 0) | (positions >= (h, w))).any(1)
        if outside.any():
            raise ValueError(
                f'position {positions[outside][0].tolist()} lies outside the map of {(h, w)}'
            )
    return positions


def _check_scale(scale):
    if not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ValueError(f'scale must be a finite Python number, not {scale!r}')


def _prune(keep, drop_rate, pruning, key):
    if pruning not in ('top', 'random'):
        raise ValueError(f"pruning {pruning!r} is not one of 'top', 'random'")
    if keep is not None and drop_rate is not None:
        raise ValueError(f'give keep={keep!r} or drop_rate={drop_rate!r}, not both')
    if keep is None and drop_rate is None:
        if pruning == 'random':
            raise ValueError("pruning='random' needs keep or drop_rate")
        return None
    if keep is not None and (not isinstance(keep, int) or keep < 1):
        raise ValueError(f'keep must be an integer of at least 1, not {keep!r}')
    if drop_rate is not None and not 0 <= drop_rate < 1:
        raise ValueError(f'drop_rate must lie in [0, 1), not {drop_rate!r}')
    if (pruning == 'random') != (key is not None):
        raise ValueError("pruning='random' needs a PRNG key=, and only it takes one")
    seed = None
    if key is not None:
        seed = jax.random.bits(key, (2,), 'uint32')
    return pruning_lib.Prune(keep, None if drop_rate is None else round(drop_rate * 10000), seed)
