"""The runs of a configuration's sweep: which there are, where they lie and what is done.

A configuration with `sweep()`, a generator of (row name, overrides of fields), has a run for each
of its rows and each seed. Configuration, seeds and directory tell everything.
"""

import dataclasses
import importlib.util
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from ggcf_jax import config as config_lib
from ggcf_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        index: its place in the sweep; all rows of one seed come before the next seed.
        row: name of the row, as in the paper's table where it has one.
        seed: of the run.
        overrides: fields of the configuration and their values as on the command line.
        workdir: of the run.
        steps: after which it is finished.
    """

    index: int
    row: str
    seed: int
    overrides: tuple[tuple[str, str], ...]
    workdir: pathlib.Path
    steps: int

    @property
    def result(self) -> pathlib.Path:
        """The file of its last evaluation, there once the run is finished."""
        return self.workdir / 'evaluations' / f'validation_{self.steps:08d}.json'

    @property
    def finished(self) -> bool:
        return self.result.is_file()

    def evaluation(self) -> dict:
        """Content of `result`: miou, pixel_accuracy, iou by class, matrix and more."""
        return json.loads(self.result.read_text(encoding='utf-8'))

    def flags(self, path: str) -> list[str]:
        """The arguments of main.py that make the run from configuration `path`."""
        fields = [f'--config.{field}={value}' for field, value in self.overrides]
        return [f'--config={path}', *fields, f'--workdir={self.workdir}']


def runs(path: str, out: pathlib.Path, seeds: int, common: Sequence[str] = ()) -> list[Run]:
    """All runs of the sweep of configuration `path`, checked before any of them starts.

    Args:
        path: of the configuration, with its variant if there is one: configs/x.py:variant.
        out: directory of the sweep.
        seeds: so many runs a row, with seeds from 0.
        common: 'field=value' overrides of every run.

    Raises:
        InputError: no such configuration, one without a sweep, an unknown field or a bad value, or
            a workdir that holds another run.
    """
    rows = dict(_sweep(path)())
    shared = tuple(_field(each) for each in common)
    found = []
    for seed in range(seeds):
        for row, fields in rows.items():
            own = tuple((field, str(value)) for field, value in fields.items())
            overrides = (*shared, *own, ('seed', str(seed)))
            config = _overridden(path, overrides)
            workdir = out / slug(row) / f'seed_{seed}'
            if (workdir / config_lib.FILE_NAME).exists():
                config_lib.claim_workdir(config, workdir)
            found.append(Run(len(found), row, seed, overrides, workdir, config.train.steps))
    return found


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
