"""Fig. 6: effective receptive fields, by the occlusion test of section 4.3 and by gradients.

    python -m experiments.figures.fig6_receptive_field --out=runs/fig6 --workdir runs/table1/full \
        runs/table1/local_grid_8_16_24

Occlusion (Zhou et al., 2015): a window of 64 x 64 pixels slides over the image, its pixels replaced
by the image's mean colour, and the Euclidean change of the logits at the query point is recorded.
The paper states no step for the sliding (--step, a quarter of the window by default). The map shows
at each pixel the mean over the windows that cover it. On images smaller than Cityscapes'
1024 x 2048 use a smaller --window.

Gradient (Luo et al., 2016): the root of the sum over classes and colours of the squared derivatives
of the same logits with respect to the pixel, which is the limit of the occlusion test for small
random changes. Squares are averaged over cells of the output stride, below which strided
convolutions alias.

Writes <out>/receptive_field_<image>_<y>_<x>.png for each query point, <out>/receptive_field.csv and
<out>/receptive_field.md. Finished images are cached in <out>/kept. Run it from the root of the
repository.
"""

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.common import cache, cli, confusable, pictures, queries, runs, tables
from experiments.common.pictures import Cell
from experiments.common.queries import Pixel, QueryImage
from experiments.common.runs import LoadedRun, SelectedRun
from experiments.common.tables import slug, spread
from experiments.figures import receptive_fields
from experiments.figures.receptive_fields import Sliding
from ggcf_jax.errors import InputError

FORMS = ('occlusion', 'gradient')


@dataclasses.dataclass(frozen=True)
class Row:
    """One receptive field.

    Attributes:
        model: name of the model.
        run: title of the run.
        image: name of the record.
        y: row of the query point.
        x: column of the query point.
        label: class of the query point.
        form: 'occlusion' or 'gradient'.
        largest: largest value of the map, in logits ('occlusion') or logits per grey level.
        half_area: smallest share of the image that holds half of the map's sum.
        distance: mean distance from the query point in pixels, weighted by the map.
    """

    model: str
    run: str
    image: str
    y: int
    x: int
    label: str
    form: str
    largest: float
    half_area: float
    distance: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared, besides the runs.

    Attributes:
        split: split of the images.
        images: images with query points.
        sliding: how the occluding window moves.
        out: folder of the pictures and of the cache.
    """

    split: str
    images: Sequence[QueryImage]
    sliding: Sliding
    out: pathlib.Path


def compare(selected: Sequence[SelectedRun], checkpoint: str, comparison: Comparison) -> list[Row]:
    """Measures and draws every query point for every model; one model is in memory at a time.

    Args:
        selected: runs to compare.
        checkpoint: 'best', 'latest' or a step number.
        comparison: images, window and folder.
    """
    rows: list[Row] = []
    pages: dict[tuple[str, Pixel], list[list[Cell]]] = {}
    for run, loaded in runs.load_each(selected, checkpoint):
        functions = {
            'occlusion': receptive_fields.make_occlusion(loaded.model, comparison.sliding),
            'gradient': receptive_fields.make_gradient(loaded.model),
        }
        for each in comparison.images:
            maps = _maps(run, loaded, each, functions, comparison)
            for i, (y, x) in enumerate(each.queries):
                label = loaded.dataset.classes[each.label[y, x]]
                line = []
                for form in FORMS:
                    field = maps[form][i]
                    extent = receptive_fields.measure(field, (y, x))
                    row = Row(run.model, run.title, each.name, y, x, label, form, *extent)
                    line.append(_cell(row, each, field))
                    rows.append(row)
                first = _first_row(loaded, each, (y, x))
                pages.setdefault((each.name, (y, x)), first).append(line)
    for (name, (y, x)), page in pages.items():
        path = comparison.out / f'receptive_field_{name.replace("/", "_")}_{y}_{x}.png'
        pictures.draw_table(path, page)
        print(path)
    return rows


def _maps(
    run: SelectedRun,
    loaded: LoadedRun,
    image: QueryImage,
    functions: Mapping[str, receptive_fields.Occlusion | receptive_fields.Gradient],
    comparison: Comparison,
) -> dict[str, list[np.ndarray]]:
    """Returns the maps [h, w] of each form, one for each query point, computed or cached."""
    sliding = comparison.sliding
    key = {
        **loaded.identity(comparison.split),
        'image': image.name,
        'queries': image.queries,
        'window': sliding.window,
        'every': sliding.step,
    }

    def compute() -> dict[str, np.ndarray]:
        began = time.monotonic()
        found = {form: functions[form](image.image, image.queries) for form in FORMS}
        print(f'{run.title}, {image.name}: {time.monotonic() - began:.0f} s', flush=True)
        return found

    name = slug(f'{run.title} {image.name}')
    found = cache.load_or_compute(comparison.out / 'kept' / f'{name}.npz', key, compute)
    height, width = image.label.shape
    corners = sliding.corners((height, width))
    return {
        'occlusion': [
            receptive_fields.spread_out(changes, corners, sliding.window, (height, width))
            for changes in found['occlusion'].T
        ],
        'gradient': [
            receptive_fields.cell_means(power, loaded.model.network.stride)
            for power in found['gradient']
        ],
    }


def _first_row(loaded: LoadedRun, image: QueryImage, query: Pixel) -> list[list[Cell]]:
    title = f'{image.name}: {loaded.dataset.classes[image.label[query]]}'
    truth = pictures.colorize(image.label, loaded.dataset)
    return [[Cell(title, image.image, marker=query), Cell('ground truth', truth, marker=query)]]


def _cell(row: Row, image: QueryImage, field: np.ndarray) -> Cell:
    title = f'{row.run}\n{row.form} (square root), half in {row.half_area:.1%}'
    heat = np.sqrt(field / max(row.largest, 1e-30))  # the map may be zero everywhere
    return Cell(title, pictures.dim(image.image), heat, marker=(row.y, row.x))


def markdown(rows: Sequence[Row], sliding: Sliding) -> str:
    """Formats means over the query points and seeds of each model, with the paper's claim.

    Args:
        rows: receptive fields.
        sliding: how the occluding window moved.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.half_area == row.half_area:
            groups.setdefault((row.form, row.model), []).append(row)
    lines = [
        (
            form,
            model,
            str(len(found)),
            spread([100 * row.half_area for row in found], scale=1, digits=1),
            spread([row.distance for row in found], scale=1, digits=1),
        )
        for (form, model), found in groups.items()
    ]
    return (
        'Effective receptive fields: the smallest share of the image that holds half of the '
        "map's sum, and the\nmean distance from the query point weighted by the map; mean +- "
        'standard deviation over query points and\nseeds. A constant map has 50 %. Window '
        f'{sliding.window} x {sliding.window}, every {sliding.step} pixels (the paper: 64 x 64 on '
        '1024 x 2048).\nThe paper claims (section 4.3, two pictures, no numbers) that {LOCAL, '
        'GRID} has larger fields than FULL.\n\n'
        + tables.markdown(
            ('form', 'model', 'query points', 'half in, %', 'distance, pixels'), lines
        )
    )


def main(options: argparse.Namespace) -> None:
    """Compares the runs of the command line."""
    if min(options.window, options.batch) < 1 or (options.step is not None and options.step < 1):
        raise InputError('--window, --step and --batch must be at least 1')
    step = max(1, options.window // 4) if options.step is None else options.step
    if step > options.window:
        raise InputError(f'--step={step} is larger than --window: pixels would never be covered')
    sliding = Sliding(options.window, step, options.batch)
    selected = runs.select(options.workdir)
    dataset = runs.common_dataset(selected)
    groups = confusable.groups_of(dataset.name, dataset.classes, options.family)
    images = queries.select(dataset, options.split, groups, options.image, options.query)
    comparison = Comparison(options.split, images, sliding, options.out)
    rows = compare(selected, options.checkpoint, comparison)
    tables.write_csv(options.out / 'receptive_field.csv', rows)
    tables.write_text(options.out / 'receptive_field.md', markdown(rows, sliding))


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__)
    runs.add_workdirs(parser)
    runs.add_checkpoint(parser)
    queries.add_arguments(parser)
    confusable.add_arguments(parser)
    parser.add_argument(
        '--window', default=64, type=int, help='side of the occluding window in pixels [64]'
    )
    parser.add_argument(
        '--step', type=int, help='pixels from one place of the window to the next [window / 4]'
    )
    parser.add_argument(
        '--batch', default=8, type=int, help='windows that go through the network together [8]'
    )
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
