"""Attention of a trained model's heads: one picture per query point, one table over all of them.

    python -m experiments.inspect_attention --workdir=runs/camvid
    python -m experiments.inspect_attention --workdir=runs/camvid --image=7 --query=200,310

Takes an image of a split and query points: given ones or, for each of the classes with most pixels
in the image, the pixel that lies deepest inside the class. For every query and head it computes the
attention over the image and its share on positions of the query's class, to compare with chance:
the share of that class among the neighbours that the head's graph gives the query.

Writes <out>/<image>_<y>_<x>.png for each query point and <out>/<image>.csv. Run it from the root of
the repository.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from experiments.common import cli, pictures, queries, runs, tables
from experiments.common.pictures import Cell
from experiments.common.queries import Pixel
from experiments.common.runs import LoadedRun
from ggcf_jax import attention
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.errors import InputError
from ggcf_jax.models.contexts import pruning_rules
from ggcf_jax.models.layers.resize import nearest_positions
from ggcf_jax.models.segmenter import Segmenter

_COLUMNS = 4


class Focus(NamedTuple):
    """What one head attends to at one query.

    Attributes:
        neighbours: number of positions that the graph gives the query.
        same_class: share of the attention on positions of the query's class, of that on labelled
            positions.
        chance: share of the query's class among the labelled neighbours.
        on_itself: attention on the query's own position.
        effective: exponential of the entropy: the number of neighbours over which uniform attention
            would be as spread out.
    """

    neighbours: int
    same_class: float
    chance: float
    on_itself: float
    effective: float


@dataclasses.dataclass(frozen=True)
class Row:
    """One head at one query.

    Attributes:
        y: row of the query point.
        x: column of the query point.
        label: class of the query point.
        head: number and graph of the head.
        neighbours, same_class, chance, on_itself, effective: fields of `Focus`.
    """

    y: int
    x: int
    label: str
    head: str
    neighbours: int
    same_class: float
    chance: float
    on_itself: float
    effective: float


@dataclasses.dataclass(frozen=True)
class Selection:
    """What to look at.

    Attributes:
        split: split of the run's data set.
        image: number of the record in the split, or its name.
        queries: query points; without any, `queries.deepest_pixels`.
        classes: number of classes that get a query point where none is given.
        rules: rules of Context Pruning.
    """

    split: str = 'validation'
    image: str = '0'
    queries: Sequence[Pixel] = ()
    classes: int = 4
    rules: tuple[pruning_rules.Rule, ...] = ()


def measure(
    weights: Float[np.ndarray, 'rows columns'],
    mask: Bool[np.ndarray, 'rows columns'],
    label: UInt8[np.ndarray, 'rows columns'],
    position: Pixel,
) -> Focus:
    """Measures what one head attends to at one query.

    Args:
        weights: attention over the map; its sum is one.
        mask: neighbours of the query.
        label: train id at each position.
        position: position of the query.
    """
    own = label[position]
    labelled, same = label != IGNORE, label == own
    positive = weights[weights > 0]
    return Focus(
        neighbours=int(mask.sum()),
        same_class=float(weights[same].sum() / weights[labelled].sum()),
        chance=float(mask[same].sum() / mask[labelled].sum()),
        on_itself=float(weights[position]),
        effective=float(np.exp(-(positive * np.log(positive)).sum())),
    )


def inspect(loaded: LoadedRun, selection: Selection, out: pathlib.Path) -> list[Row]:
    """Computes the attention, draws it and writes the table.

    Args:
        loaded: trained model with heads, and its data set.
        selection: image, query points and pruning.
        out: folder of the results.

    Raises:
        InputError: no such split, image or pixel, or a model without heads.
    """
    model = loaded.model
    heads, stride, first = model.network.heads, model.network.stride, model.network.first
    if not heads:
        raise InputError(
            f'the model of {model.workdir} has no heads: '
            f'config.model.context={model.config.model.context!r}'
        )
    example = queries.load_example(loaded.dataset, selection.split, selection.image)
    image, label = example['image'], example['label']
    points = selection.queries or queries.deepest_pixels(label, selection.classes)
    queries.check_pixels(points, label)
    at = nearest_positions(np.asarray(points), stride, label.shape, first)

    def attend(network: Segmenter, image: jax.Array, at: jax.Array) -> jax.Array:
        return pruning_rules.pruned(network, selection.rules).attention(image[None], at)[0]

    weights = model.run(attend, image, at)  # [queries, heads, rows, columns]
    masks = [
        np.asarray(attention.neighbor_mask(graph, jnp.asarray(at), *weights.shape[2:]))
        for graph in heads
    ]
    rows: list[Row] = []
    for i, (y, x) in enumerate(points):
        coarse, position = queries.coarse_label(label, (y, x), stride, first)
        name = loaded.dataset.classes[label[y, x]]
        found = [
            Row(
                y,
                x,
                name,
                f'{k + 1} {graph}',
                *measure(weights[i, k], masks[k][i], coarse, position),
            )
            for k, graph in enumerate(heads)
        ]
        cells: list[Cell | None] = [
            Cell('image and query', image, marker=(y, x)),
            Cell('ground truth', pictures.colorize(label, loaded.dataset), marker=(y, x)),
        ]
        for row, head in zip(found, weights[i]):
            title = f'{row.head}: {row.label} {row.same_class:.0%} (chance {row.chance:.0%})'
            heat = head / head.max()
            cells.append(Cell(title, pictures.dim(image), heat, stride, first, marker=(y, x)))
        cells += [None] * (-len(cells) % _COLUMNS)
        path = out / f'{example["name"]}_{y}_{x}.png'
        table = [cells[j : j + _COLUMNS] for j in range(0, len(cells), _COLUMNS)]
        pictures.draw_table(path, table)
        print(path)
        rows += found
    tables.write_csv(out / f'{example["name"]}.csv', rows)
    return rows


def main(options: argparse.Namespace) -> None:
    """Inspects the run of the command line."""
    try:
        rules = pruning_rules.parse(options.pruning)
    except ValueError as error:
        raise InputError(f'--pruning={options.pruning}: {error}') from error
    selection = Selection(
        split=options.split,
        image=options.image,
        queries=options.query or (),
        classes=options.classes,
        rules=rules,
    )
    loaded = runs.load(options.workdir, runs.parse_checkpoint(options.checkpoint))
    inspect(loaded, selection, options.out or options.workdir / 'attention')


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__, out=False)
    parser.add_argument('--workdir', required=True, type=cli.path, help='workdir of the run')
    runs.add_checkpoint(parser)
    parser.add_argument('--split', default='validation', help='split of the image [validation]')
    parser.add_argument('--image', default='0', help='number in the split, or name [0]')
    parser.add_argument(
        '--query',
        action='append',
        type=queries.parse_pixel,
        metavar='Y,X',
        help='query point; may be repeated',
    )
    parser.add_argument(
        '--classes', default=4, type=int, help='number of query points where none is given [4]'
    )
    parser.add_argument('--out', type=cli.path, help='folder of the results [<workdir>/attention]')
    parser.add_argument(
        '--pruning', default='', help='rules of Context Pruning, as config.eval.pruning'
    )
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
