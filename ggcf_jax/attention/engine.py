"""Which engine computes the attention of which graph.

An engine is exact, needs memory linear in the map, forward and backward, and knows one class of
graphs. Unions are put together from the engines of their members. A graph without an engine attends
through `reference`.
"""

import dataclasses
from typing import Any, Protocol

from ggcf_jax.attention import axial, block, cross, dilated, full, grid, learned, sharded, union
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.graphs import (
    Block,
    Column,
    Cross,
    Full,
    Graph,
    Grid,
    Learned,
    Local,
    Row,
)
from ggcf_jax.attention.partial import Inputs, Partial, merge
from ggcf_jax.attention.pruning import Prune


class Attend(Protocol):
    """Attention over one class of graphs, differentiable in q, k, v and the graph's parameters.

    Keys that are not valid are nobody's neighbours. Both outputs are differentiable.
    """

    def __call__(self, inputs: Inputs, graph: Any, options: Options) -> Partial: ...


class AttendPruned(Protocol):
    """As `Attend` with Context Pruning, forward only."""

    def __call__(self, inputs: Inputs, graph: Any, options: Options, prune: Prune) -> Partial: ...


@dataclasses.dataclass(frozen=True)
class Engine:
    """The functions of one class of graphs.

    Attributes:
      attend: attention to all neighbours.
      attend_pruned: attention to the neighbours that Context Pruning keeps.
      attend_sharded: `attend` inside `sharded.attend`, on the rows that one device has.
    """

    attend: Attend
    attend_pruned: AttendPruned
    attend_sharded: Attend


ENGINES: dict[type[Graph], Engine] = {
    Full: Engine(full.attend, full.attend_pruned, sharded.full_rows),
    Local: Engine(dilated.attend, dilated.attend_pruned, sharded.local_rows),
    Grid: Engine(grid.attend, grid.attend_pruned, sharded.grid_rows),
    Row: Engine(axial.attend_row, axial.attend_row_pruned, axial.attend_row),
    Column: Engine(axial.attend_column, axial.attend_column_pruned, sharded.column_rows),
    Block: Engine(block.attend, block.attend_pruned, sharded.block_rows),
    Learned: Engine(learned.attend, learned.attend_pruned, sharded.learned_rows),
}


def engine_of(graph: Graph) -> Engine | None:
    """The engine of a graph; None where it has none.

    Args:
      graph: any graph; of a combination, what `simplify` makes of it.
    """
    if type(graph) in ENGINES:
        return ENGINES[type(graph)]
    parts = union.split(graph)
    if parts is None:
        return None
    first, rests = parts
    own = ENGINES[type(first)]

    def attend(inputs: Inputs, graph: Graph, options: Options) -> Partial:
        others = [union.attend_rest(inputs, rest, options) for rest in rests]
        return merge(own.attend(inputs, first, options), *others)

    def attend_sharded(inputs: Inputs, graph: Graph, options: Options) -> Partial:
        others = [sharded.rest_rows(inputs, rest, options) for rest in rests]
        return merge(own.attend_sharded(inputs, first, options), *others)

    pruned = cross.attend_pruned if isinstance(graph, Cross) else union.attend_pruned
    return Engine(attend, pruned, attend_sharded)
