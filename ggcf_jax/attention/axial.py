"""Attention over ROW and COLUMN graphs: GRID attention whose stride along one axis spans the map.

Positions of one row are those whose rows differ by a multiple of the height and whose columns
differ by a multiple of one.
"""

import jax

from ggcf_jax.attention import grid
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.graphs import Column, Row
from ggcf_jax.attention.pruning import Prune


def attend_row(q: jax.Array, k: jax.Array, v: jax.Array, graph: Row, options: Options) -> jax.Array:
    """ROW attention, also of some of the rows of a map; `engine.Attend`."""
    return grid.attend_strides(q, k, v, (q.shape[1], 1), options)


def attend_column(
    q: jax.Array, k: jax.Array, v: jax.Array, graph: Column, options: Options
) -> jax.Array:
    """COLUMN attention; `engine.Attend`."""
    return grid.attend_strides(q, k, v, (1, q.shape[2]), options)


def attend_row_pruned(
    q: jax.Array, k: jax.Array, v: jax.Array, graph: Row, options: Options, prune: Prune
) -> jax.Array:
    """ROW attention with Context Pruning; `engine.AttendPruned`."""
    return grid.attend_strides_pruned(q, k, v, (q.shape[1], 1), options, prune)


def attend_column_pruned(
    q: jax.Array, k: jax.Array, v: jax.Array, graph: Column, options: Options, prune: Prune
) -> jax.Array:
    """COLUMN attention with Context Pruning; `engine.AttendPruned`."""
    return grid.attend_strides_pruned(q, k, v, (1, q.shape[2]), options, prune)
