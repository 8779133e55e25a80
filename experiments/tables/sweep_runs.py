"""The runs of a configuration's sweep: their rows, their workdirs, and which are finished.

A configuration with `sweep()` (or another function that is named), a generator of (row name,
overrides of fields), has a run for each of its rows and each seed. A row with fields of `eval`,
such as `eval.pruning`, trains nothing: it is another evaluation of the run that has its other
fields. Configuration, seeds and output folder determine everything.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.tables import slug
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference
from ggcf_jax.training import auto_fields
from ggcf_jax.workdir import claim, evaluations
from ggcf_jax.workdir import config as workdir_config


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table and the file of its numbers for one seed.

    Attributes:
        name: name of the row, as in the paper's table where it has one.
        overrides: fields of the configuration and their values as on the command line.
        workdir: workdir of the run.
        config: configuration with these values.
        plan: inference plan of the evaluation; None for that of training itself, which evaluates
            whole images once, whatever `eval` asks for.
    """

    name: str
    overrides: tuple[tuple[str, str], ...]
    workdir: pathlib.Path
    config: ConfigDict
    plan: inference.Plan | None

    @property
    def result(self) -> pathlib.Path:
        """Evaluation file of the last step; it exists once the row is finished."""
        return evaluations.last(self.config, self.workdir, self.plan)

    @property
    def finished(self) -> bool:
        """Whether the evaluation has been written."""
        return self.result.is_file()

    def evaluation(self) -> dict[str, Any]:
        """Reads `result`: miou, pixel_accuracy, iou by class, matrix and more."""
        return evaluations.read(self.result)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run and the evaluations that start from it.

    Attributes:
        index: place in the sweep; all rows of one seed come before the next seed.
        seed: seed of the run.
        workdir: workdir of the run.
        trained: row of the run itself.
        evaluated: rows that evaluate the run with another inference plan.
    """

    index: int
    seed: int
    workdir: pathlib.Path
    trained: Row
    evaluated: tuple[Row, ...]

    @property
    def row(self) -> str:
        """Name of the row of the run itself."""
        return self.trained.name

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, that of the run itself first."""
        return self.trained, *self.evaluated

    @property
    def finished(self) -> bool:
        """Whether all rows are finished."""
        return all(row.finished for row in self.rows)

    @property
    def next_row(self) -> Row:
        """The first row that is not finished."""
        return next(row for row in self.rows if not row.finished)

    def flags(self, path: str) -> list[str]:
        """Returns the arguments of main.py that finish `next_row`.

        Args:
            path: configuration file, with its variant.
        """
        row = self.next_row
        fields = [f'--config.{field}={value}' for field, value in row.overrides]
        arguments = [f'--config={path}', *fields, f'--workdir={self.workdir}']
        if row is not self.trained:
            arguments += ['--mode=evaluate', '--checkpoint=latest']
        return arguments


def rows_of(path: str, sweep: str = 'sweep') -> dict[str, dict[str, str]]:
    """Returns the overrides of each row, as text, that a function of a configuration yields.

    Args:
        path: configuration file, with its variant where there is one: configs/x.py:variant.
        sweep: name of the function.

    Raises:
        InputError: no such configuration, or one without this function.
    """
    rows = _sweep(path, sweep)()
    return {row: {name: str(value) for name, value in each.items()} for row, each in rows}


def runs(
    path: str,
    out: pathlib.Path,
    seeds: int,
    common: Sequence[str] = (),
    sweep: str = 'sweep',
) -> list[Run]:
    """Returns all runs of a sweep, checked before any of them starts.

    Args:
        path: configuration file, with its variant where there is one: configs/x.py:variant.
        out: directory of the sweep.
        seeds: number of runs of a row; seeds count from 0.
        common: 'field=value' overrides of every run.
        sweep: name of the configuration's function that yields the rows.

    Raises:
        InputError: no such configuration, one without a sweep, an unknown field or a bad value, a
            row that evaluates what no row trains, or a workdir that holds another run.
    """
    own = rows_of(path, sweep)
    trained = {row: fields for row, fields in own.items() if fields == _of_training(fields)}
    for row, fields in own.items():
        if _of_training(fields) not in trained.values():
            raise InputError(
                f'{path}: row {row!r} evaluates a run with {_of_training(fields)}, but no row '
                'trains it; add one'
            )
    shared = tuple(cli.parse_override(each) for each in common)
    found: list[Run] = []
    for seed in range(seeds):
        for row, fields in trained.items():
            workdir = out / slug(row) / f'seed_{seed}'
            rows = []
            for name in (row, *(name for name in own if name not in trained)):
                if _of_training(own[name]) == fields:
                    overrides = (*shared, *own[name].items(), ('seed', str(seed)))
                    fields_and_values = [f'{field}={value}' for field, value in overrides]
                    config = cli.load_config(path, fields_and_values).config
                    if (workdir / workdir_config.FILE_NAME).exists():
                        config = auto_fields.resolve(config, workdir)
                    plan = None if name == row else inference.build(config)
                    rows.append(Row(name, overrides, workdir, config, plan))
            claim.check_config(config, workdir)
            found.append(Run(len(found), seed, workdir, rows[0], tuple(rows[1:])))
    return found


def _of_training(fields: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if not name.startswith('eval.')}


def _sweep(path: str, name: str) -> Callable[[], Iterator[tuple[str, dict[str, Any]]]]:
    """Imports a configuration file and returns the function that yields the rows."""
    file = cli.config_file(path)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None  # it is a .py file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise InputError(
            f'--config={path} has no {name}(); give it one that yields (row, overrides)'
        )
    return getattr(module, name)
