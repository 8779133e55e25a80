"""Where the heads of a trained model look: one picture a query, one table over all of them.

    python -m experiments.inspect_attention --workdir=runs/camvid
    python -m experiments.inspect_attention --workdir=runs/camvid --image=7 --query=200,310

Takes an image of a split and query pixels: given ones, or, for each of the classes with most pixels
in the image, the pixel that lies deepest inside its largest part. For every query and head it
computes the attention over the image and the mass on positions of the query's class, to compare
with chance: the share of that class among the neighbours that the head's graph gives the query.

Writes <out>/<image>_<y>_<x>.png for each query and <out>/<image>.csv. Run it from the root of the
repository.
"""

import argparse
import dataclasses
import pathlib
import sys

import jax
import numpy as np

from experiments.common import pictures, tables
from experiments.common import queries as marks
from experiments.common.pictures import Cell
from experiments.common.queries import Pixel
from ggcf_jax import attention, data, models
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.errors import InputError
from ggcf_jax.models.contexts import pruning_rules
from ggcf_jax.models.contexts.ggcf import pruned
from ggcf_jax.models.layers.resize import nearest_positions
from ggcf_jax.workdir import checkpoints
from ggcf_jax.workdir import config as workdir_config

_COLUMNS = 4


@dataclasses.dataclass(frozen=True)
class Row:
    """One head at one query.

    Attributes:
        y, x: the query's pixel.
        label: class of the query.
        head: the head's number and graph.
        neighbours: positions that the graph gives the query.
        same_class: attention on positions of the query's class, of that on labelled positions.
        chance: share of the query's class among the labelled neighbours.
        on_itself: attention on the query's own position.
        effective: exponential of the entropy, the number of equal neighbours that would be as
            spread out.
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


def measure(
    weights: np.ndarray, seen: np.ndarray, label: np.ndarray, position: Pixel
) -> dict[str, float]:
    """The figures of `Row` that depend on the attention.

    Args:
        weights: float [h, w], attention of one head at one query, one in sum.
        seen: bool [h, w], its neighbours.
        label: uint8 [h, w], the class at each position.
        position: row and column of the query.
    """
    own = label[position]
    labelled, same = label != IGNORE, label == own
    positive = weights[weights > 0]
    return {
        'neighbours': int(seen.sum()),
        'same_class': float(weights[same].sum() / weights[labelled].sum()),
        'chance': float(seen[same].sum() / seen[labelled].sum()),
        'on_itself': float(weights[position]),
        'effective': float(np.exp(-(positive * np.log(positive)).sum())),
    }


def inspect(
    workdir: pathlib.Path,
    which: str | int,
    split: str,
    image: str,
    queries: list[Pixel],
    count: int,
    rules: tuple[pruning_rules.Rule, ...],
    out: pathlib.Path,
) -> list[Row]:
    """Computes, draws and writes everything.

    Args:
        workdir: of a run. which: checkpoint, 'best', 'latest' or a step.
        split: of the run's data set. image: number of the record in the split, or its name.
        queries: pixels, or [] for `marks.deepest_pixels` of `count` classes.
        rules: of Context Pruning.
        out: folder.

    Raises:
        InputError: no such run, split, image or pixel, or a model without heads.
    """
    config = workdir_config.load(workdir)
    dataset = data.build(config.data)
    graphdef, params, stats = models.abstract(config, dataset.num_classes)
    model = models.merge(graphdef, params, stats)
    if not model.heads:
        raise InputError(
            f'the model of {workdir} has no heads: config.model.context={config.model.context!r}'
        )
    example = marks.example(dataset, split, image)
    pixels, label = example['image'], example['label']
    queries = queries or marks.deepest_pixels(label, count)
    marks.check(queries, label)
    at = nearest_positions(queries, model.stride, label.shape)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    restored = checkpoints.restore(workdir, params, stats, device, which)

    @jax.jit
    def attend(params, stats):
        return pruned(models.merge(graphdef, params, stats), rules).attention(pixels[None], at)

    weights = np.asarray(attend(restored.params, restored.stats))[0]  # [m, heads, h, w]
    shape = weights.shape[2:]
    seen = [np.asarray(attention.neighbours(graph, at, *shape)) for graph in model.heads]
    rows = []
    for i, query in enumerate(queries):
        coarse, position = marks.coarse_label(label, query, model.stride)
        found = [
            Row(
                *query,
                dataset.classes[label[query]],
                f'{k + 1} {graph}',
                **measure(weights[i, k], seen[k][i], coarse, position),
            )
            for k, graph in enumerate(model.heads)
        ]
        titles = [
            f'{row.head}: {row.label} {row.same_class:.0%} (chance {row.chance:.0%})'
            for row in found
        ]
        path = out / f'{example["name"]}_{query[0]}_{query[1]}.png'
        cells = [
            Cell('image and query', pixels, mark=query),
            Cell('ground truth', pictures.painted(label, dataset), mark=query),
        ]
        for title, head in zip(titles, weights[i]):
            heat = head / head.max()
            cells.append(Cell(title, pictures.dimmed(pixels), heat, model.stride, mark=query))
        cells += [None] * (-len(cells) % _COLUMNS)
        pictures.draw(path, [cells[j : j + _COLUMNS] for j in range(0, len(cells), _COLUMNS)])
        print(path)
        rows += found
    tables.write_csv(out / f'{example["name"]}.csv', rows)
    return rows


def main() -> int:
    """Reads the command line and inspects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', required=True, type=pathlib.Path, help='of a run')
    parser.add_argument('--checkpoint', default='best', help='best, latest or a step')
    parser.add_argument('--split', default='validation')
    parser.add_argument('--image', default='0', help='number in the split, or name')
    parser.add_argument('--query', action='append', type=marks.pixel, metavar='Y,X', help='a pixel')
    parser.add_argument('--classes', default=4, type=int, help='queries where none is given')
    parser.add_argument('--out', type=pathlib.Path, help='[<workdir>/attention]')
    parser.add_argument('--pruning', default='', help='rules as in config.eval.pruning')
    given = parser.parse_args()
    which = int(given.checkpoint) if given.checkpoint.isdigit() else given.checkpoint
    out = given.out or given.workdir / 'attention'
    try:
        inspect(
            given.workdir,
            which,
            given.split,
            given.image,
            given.query or [],
            given.classes,
            pruning_rules.parse(given.pruning),
            out,
        )
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
