"""Checkpoints: everything that training needs to continue, in one directory a step.

Orbax writes a checkpoint under a temporary name, in the background, and renames it when it is
complete. It does not notice damaged array bytes, so checksums are stored and compared on load.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from orbax.checkpoint import v1 as ocp

from ggcf_jax.checksums import checksums
from ggcf_jax.errors import InputError
from ggcf_jax.state import TrainState

_policies = ocp.training.preservation_policies


@dataclasses.dataclass(frozen=True)
class Restored:
    """A model read back: what every analysis starts from."""

    step: int
    params: nnx.State
    stats: nnx.State


class Checkpointer:
    """Saves and restores the training state of one workdir; keeps the latest two and the best.

    The latest are two so that there is one to fall back to should the newest turn out damaged.
    """

    def __init__(self, workdir: pathlib.Path, report: Callable[[str], None] = print):
        """Args:
        workdir: checkpoints go to its folder `checkpoints`.
        report: is told about damaged checkpoints.
        """
        self.directory = pathlib.Path(workdir).absolute() / 'checkpoints'
        self._report = report
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=_EVERY_SAVE,
            preservation_policy=_policies.AnyPreservationPolicy(
                [
                    _policies.LatestN(2),
                    _policies.BestN(
                        get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False
                    ),
                ]
            ),
            cleanup_tmp_directories=True,
        )

    def save(self, state: TrainState, miou: float | None) -> None:
        """Saves in the background; returns when the arrays have been copied to the host.

        Args:
            state: the training state.
            miou: of an evaluation at this step, by which the best checkpoint is chosen.
        """
        trees = _trees(state)
        step = int(state.step)
        if any(checkpoint.step == step for checkpoint in self._checkpointer.checkpoints):
            return
        sums = {name: np.asarray(checksums(tree)).tolist() for name, tree in trees.items()}
        self._checkpointer.save_checkpointables_async(
            step,
            {**trees, 'checksums': sums},
            metrics=None if miou is None else {'miou': float(miou) if miou == miou else None},
        )

    def restore_latest(self, state: TrainState) -> TrainState | None:
        """Restores the newest sound checkpoint onto the shardings of `state`.

        A damaged one is named, renamed to `damaged-<step>` and the one before is tried.

        Returns:
            The restored state, or None if there is no checkpoint.

        Raises:
            InputError: a checkpoint is sound but of another model or optimiser.
        """
        for checkpoint in sorted(self._checkpointer.checkpoints, key=lambda c: -c.step):
            try:
                trees = self._load(checkpoint.step, _trees(state))
            except Damaged as error:
                aside = self.directory / f'damaged-{checkpoint.step}'
                shutil.rmtree(aside, ignore_errors=True)
                (self.directory / str(checkpoint.step)).rename(aside)
                self._report(f'{error}; it was renamed to {aside.name}, trying the one before')
                self._checkpointer.reload()
                continue
            return _state(trees)
        return None

    def steps(self) -> dict[int, float | None]:
        """The saved steps in ascending order with their mIoU, None where there was none."""
        return {
            c.step: None if not c.metrics else c.metrics['miou']
            for c in self._checkpointer.checkpoints
        }

    def load_model(self, step: int, params: nnx.State, stats: nnx.State) -> Restored:
        """Loads parameters and batch statistics of a step, given their shapes and shardings."""
        model = self._load(step, {'model': {'params': params, 'stats': stats}})['model']
        return Restored(step, **model)

    def load_as_saved(self, step: int) -> Restored:
        """Loads parameters and batch statistics of a step with the shapes they were saved with."""
        try:
            saved = self._checkpointer.checkpointables_metadata(step).metadata['model']
        except Exception as error:
            path = self.directory / str(step)
            raise Damaged(f'checkpoint {path} cannot be read ({_first_line(error)})') from error
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        model = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved
        )
        return Restored(step, **self._load(step, {'model': model})['model'])

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits for the last save."""
        self._checkpointer.close()

    def _load(self, step: int, trees: dict[str, Any]) -> dict[str, Any]:
        path = self.directory / str(step)
        abstract = jax.tree.map(_abstract, trees)
        try:
            saved = {name: self._shapes(step, name) for name in trees}
        except Exception as error:
            raise Damaged(f'checkpoint {path} cannot be read ({_first_line(error)})') from error
        for name, tree in abstract.items():
            if not saved[name]:
                raise Damaged(f'checkpoint {path} is damaged: {name!r} is not in it')
            _compare(saved[name], _by_path(tree), path)
        try:
            loaded = self._checkpointer.load_checkpointables(step, {**abstract, 'checksums': None})
        except Exception as error:
            raise Damaged(f'checkpoint {path} cannot be read ({_first_line(error)})') from error
        for name in trees:
            if np.asarray(checksums(loaded[name])).tolist() != loaded['checksums'].get(name):
                raise Damaged(f'checkpoint {path} is damaged: the checksums of {name!r} differ')
        return loaded

    def _shapes(self, step: int, name: str) -> dict[str, tuple]:
        metadata = self._checkpointer.checkpointables_metadata(step).metadata[name]
        return _by_path(metadata)


class Damaged(Exception):
    """A checkpoint whose bytes are not those that were saved."""


def exists(workdir: pathlib.Path) -> bool:
    """Whether a workdir holds a checkpoint, sound or not."""
    directory = pathlib.Path(workdir) / 'checkpoints'
    return directory.is_dir() and any(path.name.isdigit() for path in directory.iterdir())


def restore(
    workdir: pathlib.Path,
    params: nnx.State,
    stats: nnx.State,
    sharding: jax.sharding.Sharding,
    which: Literal['best', 'latest'] | int = 'best',
) -> Restored:
    """Reads a model from a workdir: the start of every analysis.

    Args:
        workdir: of a training run.
        params: shapes of the parameters. stats: of the batch statistics (`models.abstract`).
        sharding: where the arrays shall lie.
        which: the checkpoint with the highest validation mIoU, the latest, or a step.

    Raises:
        InputError: no such checkpoint, a damaged one, or one of another model.
    """
    directory = _directory(workdir)
    checkpointer = Checkpointer(workdir)
    params, stats = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), (params, stats)
    )
    try:
        step = _choose(checkpointer.steps(), which, directory)
        return checkpointer.load_model(step, params, stats)
    except Damaged as error:
        raise InputError(f'{error}; choose another with --checkpoint') from error
    finally:
        checkpointer.close()


def restore_as_saved(workdir: pathlib.Path) -> Restored:
    """Reads the best model of a workdir without knowing its network: as nested dictionaries.

    Raises:
        InputError: no checkpoint, or a damaged one.
    """
    directory = _directory(workdir)
    checkpointer = Checkpointer(workdir)
    try:
        return checkpointer.load_as_saved(_choose(checkpointer.steps(), 'best', directory))
    except Damaged as error:
        raise InputError(f'{error}; remove it to use another') from error
    finally:
        checkpointer.close()


def _directory(workdir: pathlib.Path) -> pathlib.Path:
    directory = pathlib.Path(workdir) / 'checkpoints'
    if not directory.is_dir():
        raise InputError(f'{workdir} holds no checkpoints; train there first')
    return directory


def _choose(steps: dict[int, float | None], which: str | int, directory: pathlib.Path) -> int:
    if not steps:
        raise InputError(f'{directory} holds no complete checkpoint; train first')
    if which == 'latest':
        return max(steps)
    if which == 'best':
        scored = {step: _rank({'miou': miou}) for step, miou in steps.items() if miou is not None}
        return max(scored, key=lambda step: (scored[step], step)) if scored else max(steps)
    if which not in steps:
        raise InputError(
            f'checkpoint {which!r} is not in {directory}: there are best, latest and '
            f'{", ".join(map(str, steps))}'
        )
    return int(which)


def _trees(state: TrainState) -> dict[str, Any]:
    """The model apart from the rest, so that analyses need not know the optimiser.

    The model's parameters are those that are evaluated; where these are averages, the ones that
    are trained are among the rest.
    """
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    model = {'params': state.evaluated, 'stats': fields.pop('stats')}
    if fields.pop('averaged') is None:
        del fields['params']
    return {'model': model, 'training': fields}


def _state(trees: dict[str, Any]) -> TrainState:
    """The state that `_trees` was made from."""
    model, training = trees['model'], trees['training']
    if 'params' in training:
        return TrainState(**training, averaged=model['params'], stats=model['stats'])
    return TrainState(**training, **model, averaged=None)


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _by_path(tree: Any) -> dict[str, tuple]:
    """Path of each array -> (shape, dtype)."""
    return {
        jax.tree_util.keystr(path, simple=True, separator='.'): (tuple(x.shape), np.dtype(x.dtype))
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def _compare(saved: dict[str, tuple], wanted: dict[str, tuple], path: pathlib.Path) -> None:
    """Refuses a checkpoint of another model: Orbax would cast types and name few differences."""
    differences = [
        f'{name}: {_describe(saved.get(name))} saved, {_describe(wanted.get(name))} in this model'
        for name in sorted({*saved, *wanted})
        if saved.get(name) != wanted.get(name)
    ]
    if differences:
        shown = '\n  '.join(differences[:5])
        raise InputError(
            f'checkpoint {path} is of another model, {len(differences)} arrays differ:\n  {shown}\n'
            'use the configuration it was trained with, or another --workdir'
        )


def _describe(entry: tuple | None) -> str:
    return 'nothing' if entry is None else f'{entry[1]} {list(entry[0])}'


def _rank(metrics: dict) -> float:
    """mIoU for ordering; one that was not a number is the worst."""
    return float('-inf') if metrics['miou'] is None else metrics['miou']


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'


class _EverySave(ocp.training.save_decision_policies.SaveDecisionPolicy):
    """The training loop decides when to save."""

    def should_save(self, step, previous_steps, *, context) -> bool:
        del step, previous_steps, context
        return True


_EVERY_SAVE = _EverySave()
