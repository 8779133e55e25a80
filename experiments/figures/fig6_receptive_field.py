"""Fig. 6: effective receptive fields, by the occlusion test of section 4.3 and by gradients.

    python -m experiments.figures.fig6_receptive_field --out=runs/fig6 --workdir runs/table1/full \
        runs/table1/local_grid_8_16_24

Occlusion (Zhou et al., 2015): a window of 64 x 64 pixels slides over the image, its pixels replaced
by the image's mean colour; recorded is by how much, in Euclidean distance, the last convolution's
output at the marked position changes. The paper gives no step for the sliding (--step, by default a
quarter of the window). The map shows at each pixel the mean over the windows that cover it. On
images smaller than Cityscapes' 1024 x 2048 take a smaller --window.

Gradient (Luo et al., 2016): the root of the sum over classes and colours of the squared derivatives
of the same output by the pixel. It is what the occlusion test becomes for small random changes.
Squares are averaged over cells of the output stride, below which strided convolutions alias.

Writes <out>/receptive_field_<image>_<y>_<x>.png for each mark, <out>/receptive_field.csv and
<out>/receptive_field.md. Finished images are kept in <out>/kept. Run it from the root of the
repository.
"""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Sequence

import numpy as np

from experiments.common import cache, cli, confusable, pictures, queries, tables
from experiments.common import runs as chosen
from experiments.common.pictures import Cell
from experiments.common.queries import Marked
from experiments.common.trained import Trained
from experiments.figures import receptive_fields
from experiments.figures.receptive_fields import Sliding
from experiments.tables.sweep_runs import slug
from ggcf_jax.errors import InputError

FORMS = ('occlusion', 'gradient')


@dataclasses.dataclass(frozen=True)
class Row:
    """One receptive field.

    Attributes:
        model: name of the model. run: title of the run.
        image: name of the record. y, x: the marked pixel. label: its class.
        form: 'occlusion' or 'gradient'.
        largest: largest value of the map, in units of the logits (a grey level of gradients).
        half_area: the smallest share of the image that holds half of the map's sum.
        distance: mean distance from the mark in pixels, weighted by the map.
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


def compare(
    runs: Sequence[chosen.Chosen],
    which: str,
    split: str,
    marked: Sequence[Marked],
    sliding: Sliding,
    out: pathlib.Path,
) -> list[Row]:
    """Measures and draws every mark for every model; models are in memory one after the other."""
    rows, pages = [], {}
    for run, trained in chosen.load(runs, which):
        functions = (
            receptive_fields.make_occlusion(trained, sliding),
            receptive_fields.make_gradient(trained),
        )
        for each in marked:
            found = _maps(run, trained, split, each, sliding, functions, out / 'kept')
            for i, query in enumerate(each.queries):
                name = trained.dataset.classes[each.label[query]]
                page = pages.setdefault((each.name, *query), _first_row(each, query, trained, name))
                line = []
                for form, maps in zip(FORMS, found):
                    numbers = receptive_fields.measure(maps[i], query)
                    row = Row(run.model, run.title, each.name, *query, name, form, **numbers)
                    line.append(_cell(row, each, maps[i], query))
                    rows.append(row)
                page.append(line)
    for (name, y, x), page in pages.items():
        path = out / f'receptive_field_{name.replace("/", "_")}_{y}_{x}.png'
        pictures.draw(path, page)
        print(path)
    return rows


def _maps(run, trained, split, each: Marked, sliding, functions, folder) -> list[list]:
    """The maps [h, w] of every form and query, computed or kept."""
    size, stride = each.label.shape, trained.model.stride
    key = {
        'workdir': str(run.workdir.resolve()),
        'step': trained.step,
        'split': split,
        'image': each.name,
        'queries': each.queries,
        'window': sliding.window,
        'every': sliding.step,
    }

    def compute():
        began = time.monotonic()
        found = dict(zip(FORMS, (function(each.image, each.queries) for function in functions)))
        print(f'{run.title}, {each.name}: {time.monotonic() - began:.0f} s', flush=True)
        return found

    name = slug(f'{run.title} {each.name}')
    found = cache.arrays(folder / f'{name}.npz', key, compute)
    corners = sliding.corners(size)
    return [
        [
            receptive_fields.spread_out(one, corners, sliding.window, size)
            for one in found['occlusion'].T
        ],
        [receptive_fields.cells(power, stride) for power in found['gradient']],
    ]


def _first_row(each: Marked, query, trained: Trained, name: str) -> list[list[Cell]]:
    truth = pictures.painted(each.label, trained.dataset)
    return [
        [
            Cell(f'{each.name}: {name}', each.image, mark=query),
            Cell('ground truth', truth, mark=query),
        ]
    ]


def _cell(row: Row, each: Marked, field: np.ndarray, query) -> Cell:
    title = f'{row.run}\n{row.form} (square root), half in {row.half_area:.1%}'
    heat = np.sqrt(field / max(row.largest, 1e-30))  # or only the mark's surroundings were seen
    return Cell(title, pictures.dimmed(each.image), heat, mark=query)


def markdown(rows: Sequence[Row], sliding: Sliding) -> str:
    """Means over the marks and seeds of each model, with what the paper claims."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.half_area == row.half_area:
            groups.setdefault((row.form, row.model), []).append(row)
    lines = [
        (
            form,
            model,
            str(len(found)),
            _spread([100 * row.half_area for row in found]),
            _spread([row.distance for row in found]),
        )
        for (form, model), found in groups.items()
    ]
    return (
        'Effective receptive fields: the smallest share of the image that holds half of the sum of '
        'the map, and\nthe mean distance from the mark weighted by the map; mean +- standard '
        'deviation over marks and seeds.\nA map that is the same everywhere has 50 %. Window '
        f'{sliding.window} x {sliding.window} every {sliding.step} pixels (the paper: 64 x 64 on '
        '1024 x 2048).\nThe paper claims (section 4.3, two pictures, no numbers): {LOCAL, GRID} '
        'has larger fields than FULL.\n\n'
        + tables.markdown(('form', 'model', 'marks', 'half in, %', 'distance, pixels'), lines)
    )


def _spread(values: Sequence[float]) -> str:
    text = f'{statistics.mean(values):.1f}'
    return text + (f' +- {statistics.stdev(values):.1f}' if len(values) > 1 else '')


def main(options) -> None:
    if min(options.window, options.batch) < 1 or (options.step is not None and options.step < 1):
        raise InputError('--window, --step and --batch must be at least 1')
    step = max(1, options.window // 4) if options.step is None else options.step
    if step > options.window:
        raise InputError(f'--step={step} is larger than --window: pixels would never be covered')
    sliding = Sliding(options.window, step, options.batch)
    runs = chosen.choose(options.workdir)
    dataset = chosen.common_dataset(runs)
    known = confusable.of(dataset.name, dataset.classes, options.family)
    marked = queries.choose(dataset, options.split, known, options.image, options.query)
    rows = compare(runs, options.checkpoint, options.split, marked, sliding, options.out)
    tables.write_csv(options.out / 'receptive_field.csv', rows)
    tables.write_text(options.out / 'receptive_field.md', markdown(rows, sliding))


if __name__ == '__main__':
    parser = cli.parser(__doc__)
    chosen.add_workdirs(parser)
    chosen.add_checkpoint(parser)
    queries.add_arguments(parser)
    confusable.add_arguments(parser)
    parser.add_argument('--window', default=64, type=int, help='its side in pixels [64]')
    parser.add_argument('--step', type=int, help='of the sliding, in pixels [window / 4]')
    parser.add_argument('--batch', default=8, type=int, help='windows at a time [8]')
    cli.run(main, parser)
