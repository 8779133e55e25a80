"""Attention over ROW and COLUMN graphs: GRID attention whose stride along one axis spans the map.

Positions of one row are those whose rows differ by a multiple of the height and whose columns
differ by a multiple of one.
"""

from ggcf_jax.attention import grid
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.graphs import Column, Row
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.pruning import Prune


def attend_row(inputs: Inputs, graph: Row, options: Options) -> Partial:
    """ROW attention, also of some of the rows of a map; `engine.Attend`."""
    return grid.attend_strides(inputs, (inputs.q.shape[1], 1), options)


def attend_column(inputs: Inputs, graph: Column, options: Options) -> Partial:
    """COLUMN attention; `engine.Attend`."""
    return grid.attend_strides(inputs, (1, inputs.q.shape[2]), options)


def attend_row_pruned(inputs: Inputs, graph: Row, options: Options, prune: Prune) -> Partial:
    """ROW attention with Context Pruning; `engine.AttendPruned`."""
    return grid.attend_strides_pruned(inputs, (inputs.q.shape[1], 1), options, prune)


def attend_column_pruned(inputs: Inputs, graph: Column, options: Options, prune: Prune) -> Partial:
    """COLUMN attention with Context Pruning; `engine.AttendPruned`."""
    return grid.attend_strides_pruned(inputs, (1, inputs.q.shape[2]), options, prune)
