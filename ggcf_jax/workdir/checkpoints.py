"""The checkpoints of a run: which are kept, which is resumed from, which is analysed.

Each holds everything that training needs to continue, in one directory a step
(`checkpoint_files`). The state is replicated over the devices. Process 0 alone writes it, reads it
and decides what is restored and what is removed, since another process may see a different state of
the directory.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from ggcf_jax import atomic, buckets, json_files, places
from ggcf_jax.buckets import BucketPath
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.distributed import processes
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import checkpoint_files, released
from ggcf_jax.workdir.checkpoint_files import Damaged

Which = Literal['best', 'latest'] | int

INDEX = 'steps.json'  # the steps that a bucket holds

_LATEST = 2  # number of newest checkpoints that are kept, in case the last one is damaged
_REMOVING = 'removing-'
_DAMAGED = 'damaged-'


@dataclasses.dataclass(frozen=True)
class Restored:
    """A model read from a checkpoint.

    Attributes:
        step: number of training steps done.
        params: parameters.
        stats: batch statistics.
    """

    step: int
    params: nnx.State
    stats: nnx.State


class Checkpointer:
    """Saves and restores the named trees of one training run; keeps the latest two and the best.

    Every process calls the same methods: process 0 works, and sends the others what it has read.
    """

    def __init__(self, workdir: pathlib.Path, report: Callable[[str], None] = print):
        """Removes unfinished checkpoints of a killed run; one run at a time may use a workdir.

        Args:
            workdir: directory of the run; checkpoints go to its folder `checkpoints`.
            report: is called with a message for each damaged checkpoint.
        """
        self.directory = places.expand(workdir).absolute() / 'checkpoints'
        self._report = report
        self._pending: checkpoint_files.Saving | None = None
        self._saving = 0  # the step of it
        if not processes.is_process_zero() or not self.directory.is_dir():
            return
        if isinstance(self.directory, BucketPath):
            _tidy(self.directory)
            return
        for path in self.directory.iterdir():
            if checkpoint_files.TEMPORARY in path.name or path.name.startswith(_REMOVING):
                _remove(path)

    def save(self, step: int, trees: Mapping[str, Any], *, miou: float | None = None) -> None:
        """Process 0 saves in the background; returns when it has copied the arrays to the host.

        Args:
            step: number of training steps done, the name of the checkpoint.
            trees: name -> pytree of arrays; `restore` needs `model`, of `params` and `stats`.
            miou: validation mIoU at this step, by which the best checkpoint is chosen; None if the
                step has not been evaluated yet (`score`).

        Raises:
            InputError: this save or the one before failed, for example because the disk is full;
                earlier checkpoints are untouched.
        """
        self.wait()
        if not processes.is_process_zero():
            return
        with places.writing(self.directory, '--workdir'):
            self.directory.mkdir(parents=True, exist_ok=True)
        self._pending = checkpoint_files.Saving(self.directory / str(step), dict(trees), miou)
        self._saving = step

    def score(self, step: int, miou: float) -> None:
        """Notes the validation mIoU of the step that was saved last, when it is on disk.

        Args:
            step: the step.
            miou: validation mIoU, by which the best checkpoint is chosen; may be NaN.

        Raises:
            InputError: the save failed, or the mIoU cannot be written.
        """
        self.wait()
        if not processes.is_process_zero():
            return
        try:
            checkpoint_files.add_score(self.directory / str(step), miou)
        except OSError as error:
            raise InputError(
                f'the mIoU of checkpoint {step} could not be written to {self.directory} '
                f'({error}); free some disk space and repeat the command to resume'
            ) from error
        self._remove_superseded()

    def scored(self, step: int) -> bool:
        """Whether a saved step has been evaluated; process 0 decides for all.

        Args:
            step: the step.
        """
        found = False
        if processes.is_process_zero():
            with contextlib.suppress(Damaged):
                found = checkpoint_files.inspect(self.directory / str(step)).miou is not None
        return bool(processes.broadcast_from_process_zero(np.bool_(found)))

    def finish_writing(self) -> None:
        """Waits until the last save is on disk, from any thread and whether it fails or not."""
        pending = self._pending
        if pending is not None:
            with contextlib.suppress(InputError):
                pending.wait()

    def restore_latest(self, trees: Mapping[str, Any]) -> dict[str, Any] | None:
        """Restores the newest intact checkpoint onto the shardings of `trees`.

        A damaged one is reported and renamed to `damaged-<step>`, and the one before is tried.
        Process 0 decides and sends the arrays to the others, which need not see the files.

        Args:
            trees: name -> pytree of arrays, of the names, structure, shapes and dtypes to restore.

        Returns:
            The restored trees, or None if there is no checkpoint.

        Raises:
            InputError: a checkpoint is intact but belongs to another model or optimizer, or all
                checkpoints are damaged.
        """
        trees = dict(trees)
        found = self._newest_intact(trees) if processes.is_process_zero() else None
        if not processes.broadcast_from_process_zero(np.bool_(found is not None)):
            return None
        return _spread(found, trees)

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
            InputError: it could not be written.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        pending.wait()
        if isinstance(self.directory, BucketPath):
            _note(self.directory, {*_noted(self.directory), self._saving})
        self._remove_superseded()

    def close(self) -> None:
        """Waits for the last save; raises what `wait` raises."""
        self.wait()

    def _remove_superseded(self) -> None:
        """Removes all but the latest and the best."""
        paths = _steps(self.directory)
        kept = [*sorted(paths)[-_LATEST:], _best(self._scores(paths))]
        superseded = set(paths) - set(kept)
        with places.writing(self.directory, '--workdir'):
            if isinstance(self.directory, BucketPath):
                for step in superseded:
                    buckets.remove_tree(paths[step], first=checkpoint_files.COMMITTED)
                if superseded:
                    _note(self.directory, kept)
                return
            for step in superseded:
                # Renamed first: a partly removed checkpoint would look damaged under its own name.
                away = self.directory / f'{_REMOVING}{step}'
                paths[step].rename(away)
                shutil.rmtree(away)

    def _scores(self, paths: dict[int, pathlib.Path]) -> dict[int, float | None]:
        """mIoU of each intact checkpoint."""
        scores = {}
        for step, path in paths.items():
            with contextlib.suppress(Damaged):
                scores[step] = checkpoint_files.inspect(path).miou
        return scores

    def _newest_intact(self, trees: dict[str, Any]) -> dict[str, Any] | None:
        for path in reversed(_steps(self.directory).values()):
            try:
                return checkpoint_files.load(path, trees)
            except Damaged as error:
                self._set_aside(path, error)
        aside = _set_aside_before(self.directory)
        if aside:
            raise InputError(
                f'{self.directory} holds only damaged checkpoints ({", ".join(aside)}): there is '
                'nothing to resume from; remove that directory to start from the beginning'
            )
        return None

    def _set_aside(self, path: pathlib.Path, error: Exception) -> None:
        aside = self.directory / f'{_DAMAGED}{path.name}'
        with places.writing(self.directory, '--workdir'):
            if isinstance(path, BucketPath):
                buckets.remove_tree(aside, first=checkpoint_files.COMMITTED)
                buckets.move_tree(path, aside, mark=checkpoint_files.COMMITTED)
                self._report(f'{error}; it was renamed to {aside.name}, trying the previous one')
                return
            if aside.is_dir():
                shutil.rmtree(aside)
            aside.unlink(missing_ok=True)
            path.rename(aside)
        self._report(f'{error}; it was renamed to {aside.name}, trying the previous one')


def exists(workdir: pathlib.Path) -> bool:
    """Whether a workdir holds a checkpoint, intact or not."""
    return bool(_steps(places.expand(workdir) / 'checkpoints'))


def further(workdir: pathlib.Path, saves: int) -> int:
    """How many checkpoints a run has room to find for, beside those that are there.

    The latest two, the best and the one that is being written lie there at once.

    Args:
        workdir: directory of the run.
        saves: number of times that it is going to be saved.
    """
    there = len(_steps(places.expand(workdir).absolute() / 'checkpoints'))
    return min(saves, max(1, _LATEST + 2 - there))


def steps(workdir: pathlib.Path) -> dict[int, float | None]:
    """The saved steps in ascending order with their mIoU, None where there was no evaluation.

    Args:
        workdir: directory of the run.

    Raises:
        Damaged: a checkpoint is incomplete.
    """
    paths = _steps(places.expand(workdir).absolute() / 'checkpoints')
    return {step: checkpoint_files.inspect(path).miou for step, path in paths.items()}


def restore(
    workdir: pathlib.Path,
    params: nnx.State,
    stats: nnx.State,
    sharding: jax.sharding.Sharding,
    which: Which = 'best',
) -> Restored:
    """Reads a model from a workdir, also while the run is still training.

    Args:
        workdir: directory of a training run, or of a released model (`released`).
        params: shapes of the parameters (`models.abstract`).
        stats: shapes of the batch statistics, likewise.
        sharding: sharding of the restored arrays.
        which: the checkpoint with the highest validation mIoU, the latest, or a step number.

    Raises:
        InputError: no such checkpoint, a damaged one, or one of another model.
    """
    tree = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        {'model': {'params': params, 'stats': stats}},
    )
    step, found = 0, None
    if processes.is_process_zero():
        if released.is_one(workdir):
            step, model = released.load(workdir, tree['model'])
            found = {'model': model}
            _check_released(workdir, step, which)
        else:
            with _readable('choose another with --checkpoint'):
                step, path = _choose(workdir, which)
                found = checkpoint_files.load(path, tree)
    step = processes.broadcast_from_process_zero(np.int32(step))
    return Restored(int(step), **_spread(found, tree)['model'])


def restore_as_saved(workdir: pathlib.Path) -> Restored:
    """Reads the best model of a workdir as nested dictionaries, without knowing its network.

    Every process reads for itself.

    Args:
        workdir: directory of a training run, or of a released model (`released`).

    Raises:
        InputError: no checkpoint, or a damaged one.
    """
    if released.is_one(workdir):
        weights = released.read(workdir)
        return Restored(weights.step, **released.nested(weights.arrays))
    with _readable('remove it to use another'):
        step, chosen = _choose(workdir, 'best')
        with checkpoint_files.fetched(chosen) as path:
            shapes = checkpoint_files.shapes(path, ['model'])
            return Restored(step, **checkpoint_files.load(path, shapes)['model'])


def _check_released(workdir: pathlib.Path, step: int, which: Which) -> None:
    if which not in ('best', 'latest', step):
        raise InputError(
            f'checkpoint {which!r} is not in {workdir}: this released model is that of step {step}'
        )


def _remove(path: pathlib.Path) -> None:
    """Removes a directory, in which threads of a save that failed may still be writing."""
    for _ in range(50):
        with contextlib.suppress(OSError):
            shutil.rmtree(path)
        if not path.exists():
            return
        time.sleep(0.1)
    shutil.rmtree(path)


@contextlib.contextmanager
def _readable(cure: str) -> Iterator[None]:
    """Turns `Damaged` into an error for the user, with what to do about it."""
    try:
        yield
    except Damaged as error:
        raise InputError(f'{error}; {cure}') from error


def _choose(workdir: pathlib.Path, which: Which) -> tuple[int, pathlib.Path]:
    """The step that `which` means, and its directory."""
    directory = places.expand(workdir).absolute() / 'checkpoints'
    if not directory.is_dir():
        raise InputError(f'{workdir} holds no checkpoints; train there first')
    paths = _steps(directory)
    if not paths:
        raise InputError(f'{directory} holds no complete checkpoint; train first')
    if which == 'best':
        step = _best(steps(workdir))
    elif which == 'latest':
        step = max(paths)
    elif which in paths:
        step = int(which)
    else:
        raise InputError(
            f'checkpoint {which!r} is not in {directory}: there are best, latest and '
            f'{", ".join(map(str, paths))}'
        )
    return step, paths[step]


def _steps(directory: pathlib.Path) -> dict[int, pathlib.Path]:
    """The checkpoints of a directory by step, in ascending order, complete or not."""
    if isinstance(directory, BucketPath):
        steps = {*_listed(directory), *_noted(directory)}
        paths = {step: directory / str(step) for step in sorted(steps)}
        return {s: path for s, path in paths.items() if _is_committed(path)}
    if not directory.is_dir():
        return {}
    found = {int(path.name): path for path in directory.iterdir() if path.name.isdigit()}
    return dict(sorted(found.items()))


def _is_committed(path: BucketPath) -> bool:
    return (path / checkpoint_files.COMMITTED).is_file()


def _listed(directory: BucketPath) -> set[int]:
    """Steps of which a bucket lists an object."""
    with contextlib.suppress(FileNotFoundError):
        return {int(path.name) for path in directory.iterdir() if path.name.isdigit()}
    return set()


def _noted(directory: BucketPath) -> set[int]:
    """Steps that the index of a bucket names."""
    try:
        return set(json_files.parse_list((directory / INDEX).read_bytes(), json_files.is_count))
    except (FileNotFoundError, ValueError):
        return set()  # the listing has them


def _note(directory: BucketPath, steps: Iterable[int]) -> None:
    atomic.write(directory / INDEX, json.dumps(sorted(steps)).encode())


def _tidy(directory: BucketPath) -> None:
    """Removes what a killed run left: checkpoints that lack the object that is written last."""
    for step in sorted(_listed(directory)):
        path = directory / str(step)
        if not _is_committed(path):
            buckets.remove_tree(path, first=checkpoint_files.COMMITTED)


def _set_aside_before(directory: pathlib.Path) -> list[str]:
    """Names of the damaged checkpoints of a directory."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(p.name for p in directory.iterdir() if p.name.startswith(_DAMAGED))
    return []


def _best(scores: dict[int, float | None]) -> int:
    """The step with the highest mIoU, the later of equal ones; the latest if there is no mIoU."""
    ranked = {step: miou for step, miou in scores.items() if miou is not None}
    return max(ranked, key=lambda step: (ranked[step], step)) if ranked else max(scores)


def _spread(found: Any, tree: Any) -> Any:
    """Sends process 0's host arrays to every process, onto the shardings of `tree`."""
    if not processes.is_process_zero():
        found = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)
    found = processes.broadcast_from_process_zero(found)
    return jax.tree.map(lambda x, like: mesh_lib.place(x, like.sharding), found, tree)
