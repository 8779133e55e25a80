"""Attention over ROW and COLUMN graphs: GRID attention whose stride along one axis spans the map.

Positions of one row are those whose rows differ by a multiple of the height and whose columns
differ by a multiple of one.
"""

from ggcf_jax.attention import groups
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.graphs import Column, Row
from ggcf_jax.attention.grid import Residues
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.pruning import Prune


def rows(inputs: Inputs) -> Residues:
    """The rows of a map as groups."""
    return Residues((inputs.q.shape[1], 1))


def columns(inputs: Inputs) -> Residues:
    """The columns of a map as groups."""
    return Residues((1, inputs.q.shape[2]))


def attend_row(inputs: Inputs, graph: Row, options: Options) -> Partial:
    """ROW attention, also of some of the rows of a map; `engine.Attend`."""
    return groups.attend(inputs, rows(inputs), options)


def attend_column(inputs: Inputs, graph: Column, options: Options) -> Partial:
    """COLUMN attention; `engine.Attend`."""
    return groups.attend(inputs, columns(inputs), options)


def attend_row_pruned(inputs: Inputs, graph: Row, options: Options, prune: Prune) -> Partial:
    """ROW attention with Context Pruning; `engine.AttendPruned`."""
    return groups.attend_pruned(inputs, rows(inputs), options, prune)


def attend_column_pruned(inputs: Inputs, graph: Column, options: Options, prune: Prune) -> Partial:
    """COLUMN attention with Context Pruning; `engine.AttendPruned`."""
    return groups.attend_pruned(inputs, columns(inputs), options, prune)
