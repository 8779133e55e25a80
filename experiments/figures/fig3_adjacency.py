"""Fig. 3: the adjacency of graphs, and the number of contexts of a position in each.

    python -m experiments.figures.fig3_adjacency --out=runs/fig3
    python -m experiments.figures.fig3_adjacency --out=runs/fig3_t --workdir=runs/table1/trainable_e
    python -m experiments.figures.fig3_adjacency --out=runs/local --heads=local:2,4,8 --no-matrix

Draws, for every graph of --heads or of the heads of a trained run, the neighbours (blue) of a
position inside the map and of one near its corner (red), and the whole adjacency matrix, unless
--no-matrix leaves it out: row i belongs to position i in row-major order. The edges of learned
graphs have weights, the largest is darkest; without a run the weights are random.

Writes <out>/adjacency.png, <out>/adjacency.csv and <out>/adjacency.md. Run it from the root of the
repository.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.common import cli, pictures, runs, tables
from ggcf_jax.attention import graphs
from ggcf_jax.attention.graphs import Graph
from ggcf_jax.errors import InputError
from ggcf_jax.models.contexts.ggcf import GGCF

_PAPER_MAP = (128, 256)
_PAPER_HEADS = {'FULL': 'full', '{LOCAL, GRID}_{8,16,24}': 'local:8,16,24,grid:8,16,24'}
_PAPER_CONTEXTS = {'FULL': '300K', '{LOCAL, GRID}_{8,16,24}': '0.5K'}  # section 4.2
_LARGEST = 4096  # positions of the largest map whose matrix is drawn


@dataclasses.dataclass(frozen=True)
class Row:
    """One graph on a map of h x w positions.

    Attributes:
        graph: the graph as written in `config.model.heads`.
        h: height of the map in positions.
        w: width of the map in positions.
        mean: mean number of contexts of a position, itself included.
        largest: largest number of contexts of a position.
        density: share of all pairs of positions that are adjacent.
    """

    graph: str
    h: int
    w: int
    mean: float
    largest: int
    density: float


def count(graph: Graph, h: int, w: int) -> Row:
    """Counts the contexts that a graph gives the positions of an h x w map."""
    mean = graph.num_edges(h, w) / (h * w)
    return Row(str(graph), h, w, mean, graph.max_degree(h, w), mean / (h * w))


def draw(
    path: pathlib.Path, heads: Sequence[Graph], h: int, w: int, *, matrix: bool = True
) -> None:
    """Draws the neighbours of an inner and a corner position and the matrix, one column per graph.

    Args:
        path: PNG file to write.
        heads: graphs to draw.
        h: height of the map in positions.
        w: width of the map in positions.
        matrix: whether to draw the adjacency matrix below.

    Raises:
        InputError: a map that is too large for its matrix.
    """
    if h * w > _LARGEST:
        raise InputError(f'--map={h}x{w} has more than {_LARGEST} positions; draw a smaller one')
    queries = ((h // 2, w // 2), (min(1, h - 1), min(2, w - 1)))
    heights = (h / w, h / w, 1) if matrix else (h / w, h / w)
    width = 2.25
    size = (width * len(heads), width * sum(heights) + 0.5)
    figure = Figure(size, dpi=100, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(heights), len(heads), squeeze=False, height_ratios=heights)
    for graph, column in zip(heads, axes.T):
        edges = np.asarray(graph.adjacency(h, w), np.float32)
        for (y, x), axis in zip(queries, column):
            axis.imshow(edges[y * w + x].reshape(h, w), cmap='Blues', vmin=0, vmax=edges.max())
            axis.plot(x, y, 'r.', markersize=6)
        if matrix:
            column[2].imshow(
                edges, cmap='Blues', vmin=0, vmax=edges.max(), interpolation='antialiased'
            )
        column[0].set_title(str(graph), fontsize=9)
        for axis in column:
            axis.set_xticks([])
            axis.set_yticks([])
    names = ('a position inside', 'at the corner', 'all pairs')
    for axis, name in zip(axes[:, 0], names):
        axis.set_ylabel(name, fontsize=9)
    pictures.save(figure, path)


def parse_heads(text: str) -> list[Graph]:
    """Parses a list of heads; learned graphs get random parameters, scaled up to be visible.

    Raises:
        InputError: a text that is not a list of heads.
    """
    try:
        heads = graphs.parse(text)
    except ValueError as error:
        raise InputError(f'--heads={text}: {error}') from error
    return [
        graph.bind(jax.tree.map(lambda x: 3 * x, graph.init(jax.random.key(1)))) for graph in heads
    ]


def trained_heads(workdirs: Sequence[str], checkpoint: str) -> list[Graph]:
    """Returns the graphs of the heads of runs, learned ones with their trained parameters.

    Args:
        workdirs: values of --workdir.
        checkpoint: 'best', 'latest' or a step number.

    Raises:
        InputError: a model without heads.
    """
    found: list[Graph] = []
    for run, loaded in runs.load_each(runs.select(workdirs), checkpoint):
        network = loaded.model.network
        if not network.heads:
            raise InputError(f'{run.workdir}: {run.model} has no heads')
        if isinstance(network.context, GGCF):  # the one whose graphs may have parameters
            found += network.context.bound_heads
        else:
            found += network.heads
    return found


def markdown(rows: Sequence[Row]) -> str:
    """Formats the rows, and the contexts of the paper's two models at its own map size."""
    table = tables.markdown(
        ('graph', 'map', 'contexts, mean', 'most', 'of all pairs'),
        [
            (r.graph, f'{r.h} x {r.w}', f'{r.mean:.1f}', str(r.largest), f'{100 * r.density:.2f} %')
            for r in rows
        ],
    )
    lines = []
    for name, text in _PAPER_HEADS.items():
        means = [count(graph, *_PAPER_MAP).mean for graph in graphs.parse(text)]
        lines.append((name, f'{sum(means):.1f}', _PAPER_CONTEXTS[name]))
    h, w = _PAPER_MAP
    return (
        f'{table}\nContexts of a position at {h} x {w}, the map of a Cityscapes image, over all '
        'heads, counted inside the map.\nThe paper calls its numbers approximate and states no '
        'map size; no map size yields both of them\n(GRID_8 alone has 512 here).\n\n'
        + tables.markdown(('model', 'counted', 'the paper'), lines)
    )


def _parse_map(text: str) -> tuple[int, int]:
    h, w = map(int, text.split('x'))
    if h < 1 or w < 1:
        raise ValueError
    return h, w


def main(options: argparse.Namespace) -> None:
    """Draws and counts the graphs of the command line."""
    if options.workdir:
        heads = trained_heads(options.workdir, options.checkpoint)
    else:
        heads = parse_heads(options.heads)
    h, w = options.map
    draw(options.out / 'adjacency.png', heads, h, w, matrix=options.matrix)
    rows = [count(graph, h, w) for graph in heads]
    tables.write_csv(options.out / 'adjacency.csv', rows)
    tables.write_text(options.out / 'adjacency.md', markdown(rows))


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__)
    runs.add_workdirs(parser, required=False)
    runs.add_checkpoint(parser)
    parser.add_argument(
        '--heads',
        default='full,local:4,grid:4,learned',
        help='graphs to draw without a run, as config.model.heads [full,local:4,grid:4,learned]',
    )
    parser.add_argument(
        '--map',
        default=(17, 23),
        type=_parse_map,
        metavar='HxW',
        help='size of the map in positions [17x23]',
    )
    parser.add_argument(
        '--matrix',
        default=True,
        action=argparse.BooleanOptionalAction,
        help='draw the whole adjacency matrix below the neighbours [yes]',
    )
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
