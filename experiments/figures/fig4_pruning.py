"""Fig. 4: mIoU over the drop rate, for Context Pruning and for random pruning as its control.

    python -m experiments.figures.fig4_pruning --out=runs/fig4 --model FULL=runs/table1/full \
        --model '{LOCAL, GRID}=runs/table1/local_grid_8_16_24'

Each model is a workdir, or a folder of workdirs: the seeds of the model. Its latest checkpoint is
evaluated on every image of the split at drop rates of 0, 10, ..., 90 % of each query's contexts,
the same for all heads. Writes <out>/points.csv, <out>/best.md (the rows "+ ContextPruning" of
Tables 1 and 2) and <out>/curve.png. Points that are in points.csv are not computed again. Run it
from the root of the repository.
"""

import argparse
import csv
import dataclasses
import pathlib
import statistics
from collections.abc import Collection, Iterator, Sequence
from typing import Literal, get_args

import jax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.common import cli, pictures, runs, tables
from experiments.common.runs import LoadedRun
from experiments.common.tables import spread
from ggcf_jax import data, places
from ggcf_jax.attention.graphs import Graph
from ggcf_jax.display.console import Progress
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import evaluator, inference
from ggcf_jax.models.contexts import PrunedContext, pruning_rules

Priority = Literal['top', 'random']
PRIORITIES: tuple[Priority, ...] = get_args(Priority)


@dataclasses.dataclass(frozen=True)
class Point:
    """The evaluation of a checkpoint at one drop rate.

    Attributes:
        model: name of the model, the same for all its seeds.
        workdir: workdir of the run.
        step: step of the checkpoint.
        split: split that was evaluated.
        priority: contexts that are kept: 'top' those of highest affinity, or 'random'.
        percent: drop rate in percent of a query's contexts.
        miou: mean IoU, 0..1.
    """

    model: str
    workdir: str
    step: int
    split: str
    priority: str
    percent: int
    miou: float


def rules(
    heads: Sequence[Graph], percent: int, priority: Priority
) -> tuple[pruning_rules.Rule, ...]:
    """Returns the same pruning rule for every kind of head of a model.

    Args:
        heads: graphs of the heads.
        percent: drop rate in percent; 0 needs no rules.
        priority: contexts to keep.
    """
    if percent == 0:
        return ()
    kinds = sorted({graph.kind() for graph in heads})
    return tuple(
        pruning_rules.Rule(kind, drop_rate=percent / 100, priority=priority) for kind in kinds
    )


def measure(
    loaded: LoadedRun, split: str, percents: Sequence[int], priority: Priority
) -> Iterator[tuple[int, float]]:
    """Evaluates a model on all images of a split at several drop rates.

    Args:
        loaded: trained model and its data set.
        split: split to evaluate.
        percents: drop rates in percent.
        priority: contexts to keep.

    Yields:
        A drop rate and its mean IoU.

    Raises:
        InputError: a model without heads.
    """
    model, context = loaded.model, loaded.model.network.context
    if not isinstance(context, PrunedContext):
        raise InputError(f'{model.workdir}: this model has no heads to prune')
    mesh = mesh_lib.make_mesh()
    batches = data.evaluation_batches(model.config, loaded.dataset, split)
    params, stats = jax.device_put((model.params, model.stats), mesh_lib.replicated(mesh))
    with jax.set_mesh(mesh), Progress(model.step) as progress:
        for percent in percents:
            plan = inference.Plan(average='logits', pruning=rules(context.heads, percent, priority))
            evaluate = evaluator.Evaluator(
                evaluator.make_eval_step(model.graphdef, loaded.dataset.num_classes, mesh, plan),
                batches,
                mesh,
                loader=data.loader_options(model.config.data),
            )
            evaluation = evaluate(params, stats, progress)
            yield percent, evaluation.miou


def read(path: pathlib.Path) -> list[Point]:
    """Reads the points of an earlier call; [] if there is no file."""
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
    """Groups points: (model, priority) -> percent -> mIoU of each seed.

    A point at 0 % belongs to both priorities.
    """
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for point in points:
        for priority in PRIORITIES if point.percent == 0 else (point.priority,):
            rates = found.setdefault((point.model, priority), {})
            rates.setdefault(point.percent, []).append(point.miou)
    return {key: dict(sorted(rates.items())) for key, rates in found.items()}


def best(points: Sequence[Point]) -> str:
    """Formats the drop rate of the highest mean mIoU of each model, chosen as in the paper."""
    lines = []
    for (model, priority), rates in curves(points).items():
        if priority != 'top' or 0 not in rates:
            continue
        means = {rate: statistics.mean(values) for rate, values in rates.items()}
        rate = max(means, key=means.__getitem__)
        gains = ', '.join(f'{100 * (a - b):+.2f}' for a, b in zip(rates[rate], rates[0]))
        lines.append((model, spread(rates[0]), f'{rate} %', spread(rates[rate]), gains))
    columns = ('model', 'without', 'best drop rate', '+ ContextPruning', 'gain, each seed')
    return (
        'mIoU in percent, mean +- standard deviation over seeds. The drop rate was chosen on the\n'
        'images it is reported for, as in the paper (+0.3 for both of its models on '
        'Cityscapes).\n\n' + tables.markdown(columns, lines)
    )


def draw(path: pathlib.Path, points: Sequence[Point]) -> None:
    """Draws the curves: mean and range over the seeds, one colour per model."""
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
    """Evaluates the points that are missing, and draws all of them."""
    if not all(0 <= percent < 100 for percent in options.percents):
        raise InputError(f'--percents={options.percents} must be in 0..99')
    path = options.out / 'points.csv'
    points = read(path)
    named = [text.rpartition('=')[::2] for text in options.model]
    found = [
        (name, workdir)
        for name, folder in named
        for workdir in runs.find_workdirs(places.expand(folder, '--model'))
    ]
    for name, workdir in found:
        loaded = runs.load(workdir, 'latest')
        loaded.dataset.check_labeled(options.split, 'evaluated')
        for priority in options.priorities:
            done = _done(points, loaded, options.split, priority)
            missing = [percent for percent in sorted(options.percents) if percent not in done]
            for percent, miou in measure(loaded, options.split, missing, priority):
                points.append(
                    Point(
                        name,
                        str(workdir),
                        loaded.model.step,
                        options.split,
                        priority,
                        percent,
                        miou,
                    )
                )
                tables.write_csv(path, points)
                print(f'{name}, {workdir}: {priority}, {percent} %: mIoU {miou:.4f}', flush=True)
    shown = [point for point in points if point.split == options.split]
    draw(options.out / 'curve.png', shown)
    tables.write_text(options.out / 'best.md', best(shown))


def _done(
    points: Sequence[Point], loaded: LoadedRun, split: str, priority: Priority
) -> Collection[int]:
    """Returns the drop rates in percent at which a checkpoint has been evaluated."""
    evaluated = (str(loaded.model.workdir), loaded.model.step, split)
    return {
        point.percent
        for point in points
        if (point.workdir, point.step, point.split) == evaluated
        and (point.priority == priority or point.percent == 0)
    }


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        '--model',
        action='append',
        required=True,
        metavar='NAME=FOLDER',
        help='name of a model, and its workdir or a folder of workdirs; may be repeated',
    )
    parser.add_argument('--split', default='validation', help='split to evaluate [validation]')
    parser.add_argument(
        '--percents',
        default=list(range(0, 100, 10)),
        type=int,
        nargs='+',
        help='drop rates in percent [0 10 ... 90]',
    )
    parser.add_argument(
        '--priorities',
        default=PRIORITIES,
        choices=PRIORITIES,
        nargs='+',
        help='contexts that are kept: of highest affinity, or at random [both]',
    )
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
