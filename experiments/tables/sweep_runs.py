"""The runs of a configuration's sweep: which there are, where they lie and what is done.

A configuration with `sweep()`, a generator of (row name, overrides of fields), has a run for each
of its rows and each seed. A row with fields of `eval`, such as `eval.pruning`, trains nothing: it
is another evaluation of the run that has its other fields. Configuration, seeds and directory tell
everything.
"""

import dataclasses
import importlib.util
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir import evaluations


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table and the file that has its numbers for one seed.

    Attributes:
        name: as in the paper's table where it has one.
        overrides: fields of the configuration and their values as on the command line.
        result: of the evaluation after the last step, there once it is done.
    """

    name: str
    overrides: tuple[tuple[str, str], ...]
    result: pathlib.Path

    @property
    def finished(self) -> bool:
        return self.result.is_file()

    def evaluation(self) -> dict:
        """Content of `result`: miou, pixel_accuracy, iou by class, matrix and more."""
        return json.loads(self.result.read_text(encoding='utf-8'))


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run and the evaluations that start from it.

    Attributes:
        index: its place in the sweep; all rows of one seed come before the next seed.
        seed: of the run.
        workdir: of the run.
        trained: the row of the run itself.
        evaluated: rows that evaluate it in another way.
    """

    index: int
    seed: int
    workdir: pathlib.Path
    trained: Row
    evaluated: tuple[Row, ...]

    @property
    def row(self) -> str:
        return self.trained.name

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.trained, *self.evaluated

    @property
    def finished(self) -> bool:
        return all(row.finished for row in self.rows)

    @property
    def next_row(self) -> Row:
        """The first that is not finished."""
        return next(row for row in self.rows if not row.finished)

    def flags(self, path: str) -> list[str]:
        """The arguments of main.py that make `next_row` from configuration `path`."""
        row = self.next_row
        fields = [f'--config.{field}={value}' for field, value in row.overrides]
        arguments = [f'--config={path}', *fields, f'--workdir={self.workdir}']
        if row is not self.trained:
            arguments += ['--mode=evaluate', '--checkpoint=latest']
        return arguments


def runs(path: str, out: pathlib.Path, seeds: int, common: Sequence[str] = ()) -> list[Run]:
    """All runs of the sweep of configuration `path`, checked before any of them starts.

    Args:
        path: of the configuration, with its variant if there is one: configs/x.py:variant.
        out: directory of the sweep.
        seeds: so many runs a row, with seeds from 0.
        common: 'field=value' overrides of every run.

    Raises:
        InputError: no such configuration, one without a sweep, an unknown field or a bad value, a
            row that evaluates what no row trains, or a workdir that holds another run.
    """
    own = {row: {name: str(value) for name, value in each.items()} for row, each in _sweep(path)()}
    trained = {row: fields for row, fields in own.items() if fields == _of_training(fields)}
    for row, fields in own.items():
        if _of_training(fields) not in trained.values():
            raise InputError(
                f'{path}: row {row!r} evaluates a run with {_of_training(fields)}, but no row '
                'trains that; add one'
            )
    shared = tuple(_field(each) for each in common)
    found = []
    for seed in range(seeds):
        for row, fields in trained.items():
            workdir = out / slug(row) / f'seed_{seed}'
            rows = []
            for name in (row, *(name for name in own if name not in trained)):
                if _of_training(own[name]) == fields:
                    overrides = (*shared, *own[name].items(), ('seed', str(seed)))
                    config = _overridden(path, overrides)
                    # Training evaluates the whole image once, whatever `eval` asks for.
                    plan = inference.SINGLE if name == row else inference.build(config)
                    stem = evaluations.stem('validation', config.train.steps, plan)
                    result = workdir / 'evaluations' / f'{stem}.json'
                    rows.append(Row(name, overrides, result))
            if (workdir / workdir_config.FILE_NAME).exists():
                workdir_config.claim_workdir(config, workdir)
            found.append(Run(len(found), seed, workdir, rows[0], tuple(rows[1:])))
    return found


def _of_training(fields: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if not name.startswith('eval.')}


def slug(row: str) -> str:
    """'FULL, LOCAL_{8,16,24}' -> 'full_local_8_16_24', the name of a directory."""
    return re.sub(r'[^a-z0-9]+', '_', row.lower()).strip('_')


def _sweep(path: str) -> Callable[[], Iterator[tuple[str, dict]]]:
    file = path.partition(':')[0]
    if not pathlib.Path(file).is_file():
        raise InputError(f'--config={path}: there is no such file')
    spec = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, 'sweep'):
        raise InputError(
            f'--config={path} has no sweep(); give it one that yields (row, overrides)'
        )
    return module.sweep


def _field(text: str) -> tuple[str, str]:
    field, equals, value = text.partition('=')
    if not (field and equals):
        raise InputError(f'override {text!r} is not of the form field=value')
    return field, value


def _overridden(path: str, overrides: Sequence[tuple[str, str]]) -> ConfigDict:
    """The configuration as main.py makes it from these flags."""
    fields = [f'--config.{field}={value}' for field, value in overrides]
    arguments = ['', f'--config={path}', *fields]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        'config', flag_values=values, sys_argv=arguments, lock_config=True
    )
    try:
        values(arguments)
    except (AttributeError, flags.Error) as error:  # an unknown field, a value of a wrong type
        raise InputError(f'{path} with {" ".join(fields)}: {error}') from None
    return values['config'].value
