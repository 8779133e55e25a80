"""Exact attention over neighbourhood graphs of 2-D maps, with memory linear in the map.

from ggcf_jax.attention import Local, attend

o = attend(q, k, v, Local(8))  # q, k, v: [batch, height, width, heads, channels]
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ggcf_jax.attention import attention_maps, block_sizes, reference, sharded
from ggcf_jax.attention import pruning as pruning_lib
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.engine import ENGINES
from ggcf_jax.attention.graphs import (
    GRAPHS,
    Full,
    Graph,
    Grid,
    Learned,
    Local,
    OffsetGraph,
    parse,
)
from ggcf_jax.attention.pruning import Prune

__all__ = [
    'GRAPHS',
    'Full',
    'Graph',
    'Grid',
    'Learned',
    'Local',
    'OffsetGraph',
    'attend',
    'attention_weights',
    'neighbor_mask',
    'parse',
    'resolve_implementation',
]

Implementation = Literal['auto', 'reference', 'xla']
Priority = Literal['top', 'random']

IMPLEMENTATIONS: tuple[Implementation, ...] = ('auto', 'reference', 'xla')
PRIORITIES: tuple[Priority, ...] = ('top', 'random')


def attend(
    q: Float[Array, 'b h w heads dk'],
    k: Float[Array, 'b h w heads dk'],
    v: Float[Array, 'b h w #heads dv'],
    graph: Graph,
    *,
    keep: int | None = None,
    drop_rate: float | None = None,
    pruning: Priority = 'top',
    key: PRNGKeyArray | None = None,
    scale: float = 1.0,
    implementation: Implementation = 'auto',
) -> Float[Array, 'b h w heads dv']:
    """Sums the values of each position's neighbours, weighted by a softmax of affinities (Eq. 3).

    With E the edges of the graph,

        o_i = sum_j E(i, j) exp(scale * q_i . k_j) v_j / sum_j E(i, j) exp(scale * q_i . k_j)

    Under a mesh with an axis `space` (`jax.set_mesh`) the rows of the map are sharded over its
    devices, see `sharded`; b and h must be divisible.

    Args:
      q: queries, float32 or bfloat16.
      k: keys, in the dtype of q.
      v: values; of one head, if all heads share them.
      graph: graph of all heads, such as Local(8).
      keep: number of neighbours to keep per query (Context Pruning, section 3.4), at least 1; a
        query with fewer keeps them all.
      drop_rate: instead of keep, share of each query's own neighbours (counted inside the map) to
        drop, in [0, 1) and steps of 1/10000; the number dropped is rounded down.
      pruning: 'top' keeps the neighbours of largest affinity, 'random' random ones (needs key).
      key: PRNG key of random pruning.
      scale: factor of the affinities. 1 is the paper's form; 1/sqrt(dk) is usual elsewhere.
      implementation: 'auto', 'reference' (dense mask, any graph) or 'xla' (the engine of the
        graph); see `resolve_implementation`.

    Returns:
      The sums in the dtype of v; scores, softmax and sums are float32. Differentiable in q, k, v
      and the parameters of a learned graph; when pruned, only through the reference.

    Raises:
      ValueError: shapes that do not fit, or options out of range.
    """
    _check_arrays(q, k, v)
    _check_scale(scale)
    prune = _prune(keep, drop_rate, pruning, key)
    if resolve_implementation(graph, implementation=implementation) == 'reference':
        return reference.attend(q, k, v, graph, scale=scale, prune=prune)
    engine = ENGINES[type(graph)]
    options = Options(float(scale), block_sizes.current(q.shape[0]))
    if prune is not None and not prune.keeps_all(graph.max_degree(*q.shape[1:3])):
        return _forward_only(
            lambda q, k, v, graph, prune: engine.attend_pruned(q, k, v, graph, options, prune),
            q, k, v, graph, prune,
        )  # fmt: skip
    if sharded.num_devices() > 1:  # each device sees its own arrays there
        options = dataclasses.replace(options, sizes=dataclasses.replace(options.sizes, devices=1))
        return sharded.attend(engine.attend_sharded, q, k, v, graph, options)
    return engine.attend(q, k, v, graph, options)


def attention_weights(
    q: Float[Array, 'b h w heads dk'],
    k: Float[Array, 'b h w heads dk'],
    graph: Graph,
    positions: Int[Array, 'm 2'],
    *,
    keep: int | None = None,
    drop_rate: float | None = None,
    pruning: Priority = 'top',
    key: PRNGKeyArray | None = None,
    scale: float = 1.0,
) -> Float[Array, 'b m heads h w']:
    """The weights with which `attend` sums v, for single queries: rows of the attention matrix.

    One query after the other, each against the whole map: no h*w x h*w array is made, except by a
    graph that defines nothing but `adjacency`.

    Args:
      q: queries, as for `attend`.
      k: keys, as for `attend`.
      graph: graph of all heads.
      positions: row and column of each query inside the map.
      keep: number of neighbours to keep per query, as for `attend`.
      drop_rate: share of each query's neighbours to drop, as for `attend`.
      pruning: which neighbours are kept, as for `attend`.
      key: PRNG key of random pruning.
      scale: factor of the affinities.

    Returns:
      float32: zero for a position that is no neighbour or was dropped, one in sum over the map.

    Raises:
      ValueError: shapes that do not fit, options out of range, or positions, where they are not
        traced, outside the map.
    """
    _check_arrays(q, k, k)
    _check_scale(scale)
    _check_graph(graph)
    prune = _prune(keep, drop_rate, pruning, key)
    at = _check_positions(positions, *q.shape[1:3])
    return attention_maps.attention_weights(q, k, graph, at, scale=scale, prune=prune)


def neighbor_mask(
    graph: Graph, positions: Int[Array, 'm 2'], h: int, w: int
) -> Bool[Array, 'm h w']:
    """Which positions of a map single queries see, one query at a time.

    Args:
      graph: any graph; a learned one needs no parameters.
      positions: row and column of each query inside the map.
      h: height of the map.
      w: width of the map.

    Raises:
      ValueError: positions, where they are not traced, outside the map.
    """
    _check_graph(graph)
    return attention_maps.neighbor_mask(graph, _check_positions(positions, h, w), h, w)


def resolve_implementation(
    graph: Graph, *, implementation: Implementation = 'auto'
) -> Literal['reference', 'xla']:
    """The implementation that `attend` runs for this graph.

    Args:
      graph: any graph.
      implementation: 'auto' takes the engine of the graph, and the reference for a graph that has
        none; the others are taken as they are.

    Raises:
      ValueError: an unknown implementation, something that is no graph, or 'xla' for a graph
        without an engine.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f'implementation {implementation!r} is not one of {", ".join(IMPLEMENTATIONS)}'
        )
    _check_graph(graph)
    has_engine = type(graph) in ENGINES
    if implementation == 'xla' and not has_engine:
        raise ValueError(
            f"implementation 'xla' has no engine for {graph!r}; use 'reference', or 'auto'"
        )
    return 'xla' if has_engine and implementation != 'reference' else 'reference'


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward_only(f: Callable[..., jax.Array], *arguments: Any) -> jax.Array:
    """f(*arguments), whose gradient is refused."""
    return f(*arguments)


def _refuse(f: Callable[..., jax.Array], *arguments: Any) -> Any:
    raise NotImplementedError(
        'Context Pruning is for inference: the engine has no gradient with keep or drop_rate. Drop '
        "them for training, or use implementation='reference' on small maps"
    )


_forward_only.defvjp(_refuse, _refuse)


def _check_arrays(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
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


def _check_graph(graph: object) -> None:
    if not isinstance(graph, Graph):
        raise ValueError(
            f'{graph!r} is no graph: write one such as Local(8), parse a text with '
            'ggcf_jax.attention.parse, or subclass ggcf_jax.attention.Graph'
        )


def _check_positions(positions: Any, h: int, w: int) -> jax.Array:
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


def _check_scale(scale: object) -> None:
    if not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ValueError(f'scale must be a finite Python number, not {scale!r}')


def _prune(
    keep: int | None, drop_rate: float | None, pruning: Priority, key: PRNGKeyArray | None
) -> Prune | None:
    """The checked options of Context Pruning; None if nothing is pruned."""
    if pruning not in PRIORITIES:
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
    seed = None if key is None else jax.random.bits(key, (2,), 'uint32')
    return pruning_lib.Prune(keep, None if drop_rate is None else round(drop_rate * 10000), seed)
