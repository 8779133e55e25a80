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
import csv
import dataclasses
import os
import pathlib
import sys

import cv2
import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ggcf_jax import attention, checkpoint, data, head_pruning, models, visualize
from ggcf_jax import config as config_lib
from ggcf_jax.data.codec import IGNORE
from ggcf_jax.errors import InputError
from ggcf_jax.models.ggcf import pruned
from ggcf_jax.state import merge

_COLUMNS = 4
_COLUMN_WIDTH = 3.2  # inches


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


def deepest_pixels(label: np.ndarray, count: int) -> list[tuple[int, int]]:
    """For each of the `count` classes with most pixels, the pixel farthest from its outside.

    Of pixels equally far the first in row-major order.
    """
    classes, pixels = np.unique(label[label != IGNORE], return_counts=True)
    queries = []
    for index in classes[np.argsort(-pixels, kind='stable')][:count]:
        inside = np.pad((label == index).astype(np.uint8), 1)
        depth = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        queries.append(tuple(map(int, np.unravel_index(depth.argmax(), depth.shape))))
    return queries


def positions_of(queries, stride: int, shape: tuple[int, int]) -> np.ndarray:
    """The positions [m, 2] of a map of this shape that lie nearest to pixels."""
    nearest = (np.asarray(queries) + stride // 2) // stride
    return np.minimum(nearest, np.asarray(shape) - 1)


def measure(weights, seen, label, position) -> dict[str, float]:
    """The figures of `Row` that depend on the attention.

    Args:
        weights: float [h, w], attention of one head at one query, one in sum.
        seen: bool [h, w], its neighbours.
        label: uint8 [h, w], the class at each position.
        position: row and column of the query.
    """
    own = label[tuple(position)]
    labelled, same = label != IGNORE, label == own
    positive = weights[weights > 0]
    return {
        'neighbours': int(seen.sum()),
        'same_class': float(weights[same].sum() / weights[labelled].sum()),
        'chance': float(seen[same].sum() / seen[labelled].sum()),
        'on_itself': float(weights[tuple(position)]),
        'effective': float(np.exp(-(positive * np.log(positive)).sum())),
    }


def draw(path, image, label, colors, query, titles, maps, stride) -> None:
    """Image, ground truth and each head's attention over the dimmed image, as one PNG.

    Args:
        path: of the PNG, replaced if it is there.
        image: uint8 [h, w, 3]. label: uint8 [h, w]. colors: RGB of the classes.
        query: its pixel.
        titles, maps: of the heads; attention float [rows, columns], its largest value is brightest.
        stride: pixels a position.
    """
    height, width = label.shape
    grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] // 2, 3, axis=2)
    cells = [('image and query', image, None)]
    cells += [('ground truth', visualize.colorize(label, colors, IGNORE), None)]
    cells += [(title, grey, weights) for title, weights in zip(titles, maps)]
    rows = -(-len(cells) // _COLUMNS)
    size = (_COLUMNS * _COLUMN_WIDTH, rows * (_COLUMN_WIDTH * height / width + 0.35))
    figure = Figure(size, dpi=100, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, picture, weights) in zip(axes.flat, cells):
        axis.imshow(picture)
        if weights is not None:
            shares = weights / weights.max()
            n, m = shares.shape
            # Position i lies on pixel stride * i, in the middle of its square.
            edges = np.array([-0.5, m - 0.5, n - 0.5, -0.5]) * stride
            axis.imshow(
                shares, cmap='inferno', extent=edges, alpha=np.sqrt(shares), interpolation='nearest'
            )
        axis.plot(query[1], query[0], '+', color='white', markersize=13, markeredgewidth=3)
        axis.plot(query[1], query[0], '+', color='#0a84ff', markersize=11, markeredgewidth=1.5)
        axis.set_xlim(-0.5, width - 0.5)
        axis.set_ylim(height - 0.5, -0.5)
        axis.set_title(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.part')
    figure.savefig(temporary, format='png')
    os.replace(temporary, path)


def inspect(workdir, split, which, image, queries, count, out, rules) -> list[Row]:
    """Computes, draws and writes everything.

    Args:
        workdir: of a run. split: of its data set. which: checkpoint, 'best', 'latest' or a step.
        image: number of the record in the split, or its name.
        queries: pixels (y, x), or [] for `deepest_pixels` of `count` classes.
        out: folder. rules: of Context Pruning, see `head_pruning`.

    Raises:
        InputError: no such run, split, image or pixel, or a model without heads.
    """
    config = config_lib.load(workdir)
    dataset = data.build(config.data)
    graphdef, params, stats = models.abstract(config, dataset.num_classes)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    restored = checkpoint.restore(workdir, params, stats, device, which)
    model = merge(graphdef, restored.params, restored.stats)
    if not model.heads:
        raise InputError(
            f'the model of {workdir} has no heads: config.model.context={config.model.context!r}'
        )
    example = _example(dataset, split, image)
    pixels, label = example['image'], example['label']
    queries = queries or deepest_pixels(label, count)
    _check_queries(queries, label)
    shape = tuple(-(-length // model.stride) for length in label.shape)
    at = positions_of(queries, model.stride, shape)

    @jax.jit
    def attend(params, stats):
        return pruned(merge(graphdef, params, stats), rules).attention(pixels[None], at)

    weights = np.asarray(attend(restored.params, restored.stats))[0]  # [m, heads, h, w]
    seen = [np.asarray(attention.neighbours(graph, at, *shape)) for graph in model.heads]

    # The class of a position is that of the pixel it lies on; of the query, that of its pixel.
    coarse = label[:: model.stride, :: model.stride]
    rows = []
    for i, query in enumerate(queries):
        here = coarse.copy()
        here[tuple(at[i])] = label[query]
        found = [
            Row(
                *query,
                dataset.classes[label[query]],
                f'{k + 1} {graph}',
                **measure(weights[i, k], seen[k][i], here, at[i]),
            )
            for k, graph in enumerate(model.heads)
        ]
        titles = [
            f'{row.head}: {row.label} {row.same_class:.0%} (chance {row.chance:.0%})'
            for row in found
        ]
        path = out / f'{example["name"]}_{query[0]}_{query[1]}.png'
        draw(path, pixels, label, dataset.colors, query, titles, weights[i], model.stride)
        print(path)
        rows += found
    _write_csv(out / f'{example["name"]}.csv', rows)
    return rows


def _example(dataset, split: str, image: str) -> dict:
    """The record of this number or name, decoded."""
    dataset.check_labeled(split, 'inspected')
    source = dataset.source(split)
    if image.isdecimal():
        if int(image) >= len(source):
            raise InputError(
                f'--image={image}: split {split!r} of {dataset.name!r} has images 0 to '
                f'{len(source) - 1}'
            )
        return dataset.decode(source[int(image)])
    for i in range(len(source)):
        record = source[i]
        if record['name'] == image:
            return dataset.decode(record)
    raise InputError(f'--image={image}: no image of split {split!r} has this name')


def _check_queries(queries, label: np.ndarray) -> None:
    height, width = label.shape
    for y, x in queries:
        if not (0 <= y < height and 0 <= x < width):
            raise InputError(f'--query={y},{x} lies outside of the image of {height} x {width}')
        if label[y, x] == IGNORE:
            raise InputError(f'--query={y},{x} has no class in the ground truth; choose another')


def _write_csv(path: pathlib.Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.part')
    with temporary.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(Row)])
        for row in rows:
            values = dataclasses.astuple(row)
            writer.writerow([f'{v:.6g}' if isinstance(v, float) else v for v in values])
    os.replace(temporary, path)


def _query(text: str) -> tuple[int, int]:
    y, x = map(int, text.split(','))
    return y, x


def main() -> int:
    """Reads the command line and inspects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workdir', required=True, type=pathlib.Path, help='of a run')
    parser.add_argument('--checkpoint', default='best', help='best, latest or a step')
    parser.add_argument('--split', default='validation')
    parser.add_argument('--image', default='0', help='number in the split, or name')
    parser.add_argument('--query', action='append', type=_query, metavar='Y,X', help='a pixel')
    parser.add_argument('--classes', default=4, type=int, help='queries where none is given')
    parser.add_argument('--out', type=pathlib.Path, help='[<workdir>/attention]')
    parser.add_argument('--pruning', default='', help='rules as in config.eval.pruning')
    given = parser.parse_args()
    which = int(given.checkpoint) if given.checkpoint.isdigit() else given.checkpoint
    out = given.out or given.workdir / 'attention'
    try:
        rules = head_pruning.parse(given.pruning)
        inspect(
            given.workdir, given.split, which, given.image, given.query, given.classes, out, rules
        )
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
