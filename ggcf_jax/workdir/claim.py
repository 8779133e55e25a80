"""Whether a run may start, or go on, in a workdir: what it would train is what is there already.

Compared are the configuration and what lies outside of it but decides what is trained: names,
colours and label values of the classes, and the number of training images.

Fields that do not change what is trained may always differ (`config.MAY_DIFFER`). Others may only
where the user accepts the change, which begins a new segment of the run; those that say which
network it is never may. Before the first checkpoint nothing is trained, and everything may differ.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ggcf_jax import places
from ggcf_jax.data import mixture
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import checkpoints, released
from ggcf_jax.workdir import classes as classes_lib
from ggcf_jax.workdir import config as config_file
from ggcf_jax.workdir.config import Segment

_SHOWN = 12  # changes that a message lists

# Fields that change nothing in the training, but rows of metrics.jsonl or their numbers.
_NOTED = (
    'train.log_every', 'train.eval_every', 'eval.batch_size', 'eval.size_multiple',
    'eval.max_sizes', 'eval.window', 'eval.stride', 'train.patience', 'train.gradient_norms',
)  # fmt: skip

# How long a run is: what a step computes depends on the number of steps of the schedule alone.
_LENGTH = ('train.steps', 'train.schedule_steps')

Changes = Mapping[str, tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A start that has passed the checks; nothing is written before `save`.

    Attributes:
        workdir: directory of the run.
        config: configuration of the start.
        dataset: its data set.
        trained: configuration that the checkpoints were trained with; None if there are none.
        changes: dotted name -> (value before, value now) of everything that changes what is
            trained.
        noted: the same of fields that may always differ, but that a reader of the metrics has to
            know.
    """

    workdir: pathlib.Path
    config: ConfigDict
    dataset: Dataset
    trained: ConfigDict | None
    changes: Changes
    noted: Changes = dataclasses.field(default_factory=dict)

    def save(self, step: int) -> tuple[Segment, ...]:
        """Writes `config.json` and `classes.json`.

        Args:
            step: step that the run goes on from, 0 for a new one.

        Returns:
            The segments of the run, in the order of their steps.

        Raises:
            InputError: the workdir cannot be written.
        """
        found: dict[int, dict[str, tuple[Any, Any]]] = {}
        earlier = config_file.segments(self.workdir) if self.trained is not None else ()
        # Where later checkpoints were damaged or removed, their segments begin here.
        for each in (*earlier, Segment(step, {**self.changes, **self.noted})):
            changes = found.setdefault(min(each.step, step), {})
            for name, (before, now) in each.changes.items():
                changes[name] = (changes.get(name, (before,))[0], now)
        segments = tuple(Segment(at, changes) for at, changes in found.items() if changes)
        with places.writing(self.workdir, '--workdir'):
            config_file.save(self.config, self.workdir, segments)
            classes_lib.save(self.dataset, self.workdir, training_splits(self.config))
        return segments


def training_splits(config: ConfigDict) -> tuple[str, ...]:
    """Names of the splits that a configuration trains on, sorted.

    Args:
        config: configuration of a run.
    """
    parts = mixture.parse(config.data.train_split)
    return tuple(sorted({split for part in parts for split in part.splits}))


def check(
    config: ConfigDict, dataset: Dataset, workdir: pathlib.Path, *, accept_changes: bool = False
) -> Claim:
    """Compares a start with the run that the workdir holds; changes nothing.

    Args:
        config: configuration of the run that starts or resumes.
        dataset: its data set.
        workdir: directory of the run, which need not exist.
        accept_changes: whether to go on although what is trained changes.

    Raises:
        InputError: the directory cannot be written, is a released model, or holds a run of another
            network or, unless the changes are accepted, of another configuration, other classes or
            other images.
    """
    workdir = places.expand(workdir)
    if released.is_one(workdir):
        raise InputError(
            f'{workdir} is a released model, not the workdir of a run; choose another --workdir '
            f'and pass --config.train.start_from={workdir}'
        )
    places.check_writable(workdir, '--workdir')
    if not (workdir / config_file.FILE_NAME).exists() or not checkpoints.exists(workdir):
        return Claim(workdir, config, dataset, None, {})
    trained = config_file.load(workdir)
    differing = config_file.differing(trained, config)
    noted = {name: change for name, change in differing.items() if name in _NOTED}
    if _schedule_steps(trained) == _schedule_steps(config):
        # Longer or shorter, but what is computed in a step is the same.
        noted |= {n: differing.pop(n) for n in _LENGTH if n in differing}
    changes = {
        **_of_training(differing, config),
        **classes_lib.changes(dataset, workdir, training_splits(config)),
    }
    _refuse(workdir, changes, accept_changes=accept_changes)
    return Claim(workdir, config, dataset, trained, changes, noted)


def check_config(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Refuses a workdir that holds a run of another configuration, without looking at data.

    Args:
        config: configuration of a planned run.
        workdir: directory of the run, which need not exist.

    Raises:
        InputError: the fields that differ.
    """
    if (workdir / config_file.FILE_NAME).exists():
        trained = config_file.load(workdir)
        changes = _of_training(config_file.differing(trained, config), config)
        _refuse(workdir, changes, accept_changes=False)


def _schedule_steps(config: ConfigDict) -> int:
    return config.train.schedule_steps or config.train.steps


def _of_training(differing: Changes, config: ConfigDict) -> Changes:
    return {
        name: change
        for name, change in differing.items()
        if name not in config_file.MAY_DIFFER and config_file.is_read(name, config)
    }


def _refuse(workdir: pathlib.Path, changes: Changes, *, accept_changes: bool) -> None:
    fixed = [name for name in changes if _is_fixed(name)]
    if not fixed and (accept_changes or not changes):
        return
    lines = [f'\n  {name}: {old!r} there, {new!r} now' for name, (old, new) in changes.items()]
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f'\n  and {len(lines) - _SHOWN} more']
    if fixed:
        cure = (
            f'{_list(fixed)} cannot change within a run: choose another --workdir; there '
            f'--config.train.start_from={workdir} starts from the parameters of this run'
        )
    else:
        cure = (
            'give the same configuration to resume, --accept_changes to go on with these values as '
            'a new segment of the run, or another --workdir to start anew'
        )
    raise InputError(
        f'workdir {str(workdir)!r} holds a run of another configuration:{"".join(lines)}\n{cure}'
    )


def _is_fixed(name: str) -> bool:
    """Whether no run can go on with another value: the parameters would be of another network."""
    return config_file.belongs_to_network(name) or name in ('seed', classes_lib.NUMBER)


def _list(names: list[str]) -> str:
    shown = ', '.join(names[:3])
    return shown if len(names) <= 3 else f'{shown} and {len(names) - 3} more'
