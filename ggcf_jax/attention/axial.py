"""Attention over ROW and COLUMN graphs: GRID attention whose stride along one axis spans the map.

Positions of one row are those whose rows differ by a multiple of the height and whose columns
differ by a multiple of one.
"""

import jax

from ggcf_jax.attention import grid
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.graphs import Column, Row
from ggcf_jax.attention.pruning import Prune


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, graph: Row | Column, options: Options
) -> jax.Array:
    """ROW or COLUMN attention; `engine.Attend`."""
    return grid.attend_strides(q, k, v, strides(graph, q), options)


def attend_pruned(
    q: jax.Array, k: jax.Array, v: jax.Array, graph: Row | Column, options: Options, prune: Prune
) -> jax.Array:
    """ROW or COLUMN attention with Context Pruning; `engine.AttendPruned`."""
    return grid.attend_strides_pruned(q, k, v, strides(graph, q), options, prune)


def strides(graph: Row | Column, q: jax.Array) -> grid.Strides:
    """Strides of the GRID graph that is this graph on the map of q [b, h, w, heads, dk]."""
    return (q.shape[1], 1) if isinstance(graph, Row) else (1, q.shape[2])
