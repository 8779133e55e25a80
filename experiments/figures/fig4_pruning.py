"""Fig. 4: mIoU against the drop rate, for context pruning and, as its control, random pruning.

    python -m experiments.figures.fig4_pruning --out=runs/fig4 --model FULL=runs/table1/full \
        --model '{LOCAL, GRID}=runs/table1/local_grid_8_16_24'

Each model is a workdir, or a folder of workdirs of the same model with different seeds. Its latest
checkpoint is evaluated on every image of the split at drop rates 0, 10, ..., 90 % of each query's
own contexts, the same for all heads. Writes <out>/points.csv, <out>/best.md (the rows
"+ ContextPruning" of Tables 1 and 2) and <out>/curve.png. What is in points.csv already is not
computed again. Run it from the root of the repository.
"""

import argparse
import csv
import dataclasses
import pathlib
import statistics
from collections.abc import Iterable, Sequence

import jax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.common import cli, pictures, runs, tables, trained
from experiments.tables.table1 import spread
from ggcf_jax import data, evaluate
from ggcf_jax.display.console import Progress
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference
from ggcf_jax.models.contexts import pruning_rules

PRIORITIES = ('top', 'random')


@dataclasses.dataclass(frozen=True)
class Point:
    """One evaluation: a checkpoint at one drop rate, in percent of a query's contexts."""

    model: str
    workdir: str
    step: int
    split: str
    priority: str
    percent: int
    miou: float


def rules(heads: Sequence, percent: int, priority: str) -> tuple[pruning_rules.Rule, ...]:
    """The same rule for every kind of head that the model has; () at 0 %."""
    if percent == 0:
        return ()
    kinds = sorted({str(graph).partition(':')[0] for graph in heads})
    return tuple(
        pruning_rules.Rule(kind, drop_rate=percent / 100, priority=priority) for kind in kinds
    )


def measure(
    model: trained.Trained, split: str, percents: Sequence[int], priority: str, done: set[int]
) -> Iterable[tuple[int, float]]:
    """Yields (percent, mIoU) of what is not `done`, each from all images of the split."""
    if not hasattr(model.model.context, 'heads'):
        raise InputError(f'{model.workdir}: this model has no heads to prune')
    heads = model.model.context.heads
    mesh = mesh_lib.make_mesh()
    batches = data.evaluation_plan(model.config, model.dataset, split)
    params, stats = jax.device_put((model.params, model.stats), mesh_lib.replicated(mesh))
    with jax.set_mesh(mesh), Progress(model.step) as progress:
        for percent in percents:
            if percent in done:
                continue
            plan = inference.Plan(average='logits', pruning=rules(heads, percent, priority))
            evaluation = evaluate.evaluate(
                evaluate.make_eval_step(model.graphdef, model.dataset.num_classes, mesh, plan),
                params,
                stats,
                model.dataset,
                split,
                batches,
                num_samples=0,
                num_worst=0,
                mesh=mesh,
                reading=data.reading(model.config.data),
                progress=progress,
            )
            yield percent, evaluation.miou


def read(path: pathlib.Path) -> list[Point]:
    """The points of a file that was begun; [] if there is none."""
    if not path.is_file():
        return []
    with path.open(newline='', encoding='utf-8') as file:
        return [
            Point(
                row['model'], row['workdir'], int(row['step']), row['split'], row['priority'],
                int(row['percent']), float(row['miou']),
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip


def curves(points: Sequence[Point]) -> dict[tuple[str, str], dict[int, list[float]]]:
    """(model, priority) -> percent -> mIoU of each seed; 0 % belongs to both priorities."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for point in points:
        for priority in PRIORITIES if point.percent == 0 else (point.priority,):
            rates = found.setdefault((point.model, priority), {})
            rates.setdefault(point.percent, []).append(point.miou)
    return {key: dict(sorted(rates.items())) for key, rates in found.items()}


def best(points: Sequence[Point]) -> str:
    """For each model the rate of the highest mean mIoU on this split, as the paper chose it."""
    lines = []
    for (model, priority), rates in curves(points).items():
        if priority != 'top' or 0 not in rates:
            continue
        means = {rate: statistics.mean(values) for rate, values in rates.items()}
        rate = max(means, key=means.get)
        gains = ', '.join(f'{100 * (a - b):+.2f}' for a, b in zip(rates[rate], rates[0]))
        lines.append((model, spread(rates[0]), f'{rate} %', spread(rates[rate]), gains))
    columns = ('model', 'without', 'best drop rate', '+ ContextPruning', 'gain, each seed')
    return (
        'mIoU in percent, mean +- standard deviation over seeds. The drop rate was chosen on the\n'
        'images it is reported on, as in the paper (+0.3 for both of its models on Cityscapes).\n\n'
        + tables.markdown(columns, lines)
    )


def draw(path: pathlib.Path, points: Sequence[Point]) -> None:
    """The curves, mean and range over the seeds, one colour a model."""
    figure = Figure((6.4, 4.4), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    models = list(dict.fromkeys(point.model for point in points))
    for (model, priority), rates in curves(points).items():
        color = f'C{models.index(model)}'
        x = list(rates)
        y = [[100 * value for value in values] for values in rates.values()]
        top = priority == 'top'
        axis.plot(
            x,
            [statistics.mean(values) for values in y],
            '-o' if top else '--s',
            color=color,
            markersize=4,
            markerfacecolor=color if top else 'white',
            label=f'{model}, {"context pruning" if top else "random"}',
        )
        if any(len(values) > 1 for values in y):
            low, high = (list(map(pick, y)) for pick in (min, max))
            axis.fill_between(x, low, high, color=color, alpha=0.15 if top else 0.08, linewidth=0)
    axis.set_xlabel('drop rate, % of the contexts of a position')
    axis.set_ylabel('mIoU, %')
    axis.grid(alpha=0.3)
    figure.legend(loc='outside lower center', ncols=2, frameon=False, fontsize=8)  # off the curves
    pictures.save(figure, path)


def main(options: argparse.Namespace) -> None:
    """Evaluates what is missing and draws."""
    if not all(0 <= percent < 100 for percent in options.percents):
        raise InputError(f'--percents={options.percents} must be in 0..99')
    path = options.out / 'points.csv'
    points = read(path)
    named = [text.rpartition('=')[::2] for text in options.model]
    found = [(name, each) for name, text in named for each in runs.workdirs(pathlib.Path(text))]
    for name, workdir in found:
        model = trained.load(workdir, 'latest')
        model.dataset.check_labeled(options.split, 'evaluated')
        this = (str(workdir), model.step, options.split)
        for priority in PRIORITIES:
            done = {
                point.percent
                for point in points
                if (point.workdir, point.step, point.split) == this
                and (point.priority == priority or point.percent == 0)
            }
            for percent, miou in measure(
                model, options.split, sorted(options.percents), priority, done
            ):
                points.append(Point(name, *this, priority, percent, miou))
                tables.write_csv(path, points)
                print(f'{name}, {workdir}: {priority}, {percent} %: mIoU {miou:.4f}', flush=True)
    shown = [point for point in points if point.split == options.split]
    draw(options.out / 'curve.png', shown)
    tables.write_text(options.out / 'best.md', best(shown))


if __name__ == '__main__':
    _PARSER = cli.parser(__doc__)
    _PARSER.add_argument('--model', action='append', required=True, metavar='NAME=FOLDER')
    _PARSER.add_argument('--split', default='validation')
    _PARSER.add_argument('--percents', default=list(range(0, 100, 10)), type=int, nargs='+')
    cli.run(main, _PARSER)
