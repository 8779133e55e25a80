r"""Reproduces Tables 1 to 4 of the paper on one machine: first how long it takes, then the runs.

    python -m experiments.tables.reproduce plan  --out=runs/paper --cityscapes=DIR --ade20k=DIR \
        --resnet101=FILE --resnet50=FILE --wide_resnet38=FILE
    python -m experiments.tables.reproduce run   ...
    python -m experiments.tables.reproduce table ...

`plan` prepares the data, measures each row with a short run, and prints how long all runs take on
these devices and what to expect of them; that takes minutes a row and finds missing files and
memory. `run` does the same and then finishes the runs that are not finished, so that the same
command resumes. `table` writes the tables of what is finished beside the paper's values.
docs/reproduction.md explains each table.

--table=1, repeated, takes some tables only; Tables 1 and 3 are made from the same runs. Arguments
of the form --config.field=value apply to every run. Run it from the root of the repository.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
from collections.abc import Sequence

from experiments.common import cli, paper, tables
from experiments.tables import speed, sweep, sweep_runs, table1
from ggcf_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Study:
    """Runs that one configuration has for some tables of the paper.

    Attributes:
        tables: numbers of the tables.
        config: configuration file.
        data: argument that has the folder of the data set.
        weights: argument that has the weights of the backbone.
        fields: fields that make the recipe fit any file of weights.
        peers: what others report for the same data and backbone.
    """

    tables: tuple[int, ...]
    config: str
    data: str
    weights: str
    fields: tuple[str, ...]
    peers: tuple[paper.Published, ...]

    @property
    def name(self) -> str:
        """Name of its folder, such as table1."""
        return f'table{self.tables[0]}'

    @property
    def title(self) -> str:
        """The tables in words."""
        numbers = ' and '.join(map(str, self.tables))
        return f'Table {numbers}' if len(self.tables) == 1 else f'Tables {numbers}'

    def expected(self, row: str) -> str:
        """The paper's mIoU of a row; '' if it has none."""
        if self.tables == (4,):
            return f'{paper.TABLE4} (test set)' if 'ContextPruning' in row else ''
        published = paper.TABLE2 if self.tables == (2,) else paper.TABLE1
        return str(published.get(row, ''))


# Normalisation and stem are those of whatever file is given.
_ANY_RESNET = ('model.input=auto', 'model.backbone.stem=auto')

STUDIES = (
    Study(
        (1, 3), 'configs/cityscapes.py', 'cityscapes', 'resnet101', _ANY_RESNET,
        paper.PEERS_CITYSCAPES,
    ),
    Study((2,), 'configs/ade20k.py', 'ade20k', 'resnet50', _ANY_RESNET, paper.PEERS_ADE20K),
    Study((4,), 'configs/cityscapes_sota.py', 'cityscapes', 'wide_resnet38', (), ()),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Planned:
    """A study with its runs.

    Attributes:
        study: the study.
        overrides: fields of every run.
        runs: its runs.
    """

    study: Study
    overrides: tuple[str, ...]
    runs: list[sweep_runs.Run]


def _planned(options: argparse.Namespace) -> list[_Planned]:
    """The studies that were asked for, with whatever they need."""
    wanted = options.table or [number for study in STUDIES for number in study.tables]
    found = []
    for study in STUDIES:
        if not set(study.tables) & set(wanted):
            continue
        missing = [
            f'--{name}' for name in (study.data, study.weights) if getattr(options, name) is None
        ]
        if missing and options.action != 'table':
            raise InputError(
                f'{study.title}: {" and ".join(missing)} is missing; docs/reproduction.md says '
                'what to download, and --table=NUMBER takes other tables only'
            )
        fields = list(study.fields)
        for field, name in (
            ('data.manual_dir', study.data),
            ('model.backbone.weights', study.weights),
        ):
            if getattr(options, name) is not None:
                fields.append(f'{field}={getattr(options, name)}')
        overrides = (*fields, *options.config_overrides)
        out = options.out / study.name
        runs = sweep_runs.runs(study.config, out, options.seeds, overrides)
        found.append(_Planned(study, overrides, runs))
    return found


def plan(planned: Sequence[_Planned], out: pathlib.Path, jobs: int) -> str:
    """Measures the rows of all studies and says how long their runs take.

    Args:
        planned: studies with their runs.
        out: folder of the runs; <out>/speed has the short ones, <out>/plan.md the text.
        jobs: number of runs at a time.

    Returns:
        The Markdown.
    """
    speeds = [
        speed.measure(each.study.config, out / 'speed' / each.study.name, each.overrides)
        for each in planned
    ]
    hours = 0.0
    pieces = []
    for each, measured in zip(planned, speeds):
        lines = []
        for row, runs in _by_row(each.runs).items():
            todo = [run for run in runs if not run.finished]
            left = speed.total_hours(todo, measured)
            hours += left
            train = runs[0].trained.config.train
            lines.append(
                (
                    row,
                    each.study.expected(row),
                    f'{train.steps:,}',
                    f'{measured[row].images_per_sec:.3g}',
                    f'{measured[row].evaluation_sec:.0f}',
                    f'{len(todo)} of {len(runs)}',
                    f'{left:.1f}',
                )
            )
        devices = next(iter(measured.values())).devices
        columns = ('row', 'paper', 'steps', 'images/s', 's an evaluation', 'runs left', 'hours')
        pieces.append(
            f'{each.study.title}, {each.study.config} on {devices}\n\n'
            + tables.markdown(columns, lines)
        )
        if each.study.peers:
            pieces.append(
                'What others report for the same data and backbone:\n\n'
                + tables.markdown(('module', 'mIoU', 'source'), _peers(each.study.peers))
            )
    # Several runs at a time share the devices, which one run had here.
    pieces.append(
        f'About {hours:.0f} hours ({hours / 24:.1f} days) are left on these devices, compilation '
        'excluded. '
        + (f'{jobs} runs at a time share them: hardly less in all. ' if jobs > 1 else '')
        + 'Seeds of one recipe differ by a point (CCNet above), as much as most rows of the paper '
        'do: compare means over seeds.\n'
    )
    text = '\n'.join(pieces)
    tables.write_text(out / 'plan.md', text)
    return text


def _by_row(runs: Sequence[sweep_runs.Run]) -> dict[str, list[sweep_runs.Run]]:
    found: dict[str, list[sweep_runs.Run]] = {}
    for run in runs:
        found.setdefault(run.row, []).append(run)
    return found


def _peers(peers: Sequence[paper.Published]) -> list[tuple[str, str, str]]:
    return [
        (
            each.what,
            ', '.join(f'{value:.2f}' for value in each.miou)
            + (f' (mean {statistics.mean(each.miou):.2f})' if len(each.miou) > 1 else ''),
            each.source,
        )
        for each in peers
    ]


def main(options: argparse.Namespace) -> int:
    """Plans, finishes or tabulates the runs; returns the exit code."""
    if options.jobs < 1 or options.seeds < 1:
        raise InputError('--jobs and --seeds must be at least 1')
    planned = _planned(options)
    if options.action == 'table':
        for each in planned:
            if any(row.finished for run in each.runs for row in run.rows):
                print(f'{each.study.title}\n')
                table1.write(each.runs, options.out / each.study.name)
            else:
                print(f'{each.study.title}: none of its {len(each.runs)} runs is finished\n')
        return 0
    plan(planned, options.out, options.jobs)
    if options.action == 'plan':
        return 0
    failed = []
    for each in planned:
        todo = [run for run in each.runs if not run.finished]
        compiled = options.out / each.study.name / 'compiled'
        failed += sweep.run(each.study.config, todo, options.jobs, compiled)
    for line in failed:
        print(f'not finished: {line}', file=sys.stderr)
    return 1 if failed else 0


def make_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        'action',
        choices=('plan', 'run', 'table'),
        help='measure how long it takes, do it, or write the tables of what is finished',
    )
    numbers = sorted(number for study in STUDIES for number in study.tables)
    parser.add_argument(
        '--table',
        type=int,
        choices=numbers,
        action='append',
        help='take only this table; may be repeated',
    )
    for name, text in (
        ('cityscapes', 'folder of the zips named in configs/cityscapes.py (Tables 1, 3 and 4)'),
        ('ade20k', 'folder of the zip named in configs/ade20k.py (Table 2)'),
        ('resnet101', 'weights of a ResNet-101 trained on ImageNet (Tables 1 and 3)'),
        ('resnet50', 'weights of a ResNet-50 trained on ImageNet (Table 2)'),
        ('wide_resnet38', 'weights of InPlace-ABN trained on Mapillary Vistas (Table 4)'),
    ):
        parser.add_argument(f'--{name}', type=cli.path, help=text)
    parser.add_argument('--seeds', default=3, type=int, help='number of runs of a row [3]')
    parser.add_argument(
        '--jobs',
        default=1,
        type=int,
        help='number of runs at a time, among which the GPUs are divided [1]',
    )
    parser.set_defaults(config_overrides=[])
    return parser


if __name__ == '__main__':
    cli.run(main, make_parser())
