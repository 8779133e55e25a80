"""Checkpoints: everything that training needs to continue, in one directory a step.

Orbax writes a checkpoint under a temporary name, in the background, and renames it when it is
complete. It does not notice damaged array bytes, so checksums are stored and compared on load; they
lie with the mIoU in the metadata of the checkpoint, the file that is its mark of completeness.

The state is the same on every device, so process 0 alone writes arrays, reads them and decides what
is restored: no process acts on a directory that another one sees differently.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import zlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from orbax.checkpoint import v1 as ocp

from ggcf_jax import mesh as mesh_lib
from ggcf_jax import processes
from ggcf_jax.checksums import checksums
from ggcf_jax.errors import InputError
from ggcf_jax.state import TrainState

_LATEST = 2  # so many, so that there is one to fall back to should the newest turn out damaged
_REMOVING = 'removing-'
_TEMPORARY = 'orbax-checkpoint-tmp'  # in the names of what Orbax has not finished


@dataclasses.dataclass(frozen=True)
class Restored:
    """A model read back: what every analysis starts from."""

    step: int
    params: nnx.State
    stats: nnx.State


class Checkpointer:
    """Saves and restores the training state of one workdir; keeps the latest two and the best.

    Every process calls the same methods, since Orbax makes them wait for each other in a save.
    """

    def __init__(self, workdir: pathlib.Path, report: Callable[[str], None] = print):
        """Removes what a kill has left half written; only one run may use a workdir at a time.

        Args:
            workdir: checkpoints go to its folder `checkpoints`.
            report: is told about damaged checkpoints.
        """
        self.directory = pathlib.Path(workdir).absolute() / 'checkpoints'
        self._report = report
        self._pending: tuple[int, ocp.AsyncResponse] | None = None
        if not processes.is_first():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in self.directory.iterdir():
            if _TEMPORARY in path.name or path.name.startswith(_REMOVING):
                shutil.rmtree(path)

    def save(self, state: TrainState, miou: float | None) -> None:
        """Saves in the background; returns when the arrays have been copied to the host.

        Args:
            state: the training state.
            miou: of an evaluation at this step, by which the best checkpoint is chosen.

        Raises:
            InputError: this or the save before failed, because the disk is full for example; the
                checkpoints before it are as they were.
        """
        self.wait()
        step = int(state.step)
        trees = _trees(state)
        with self._failures(step):
            response = ocp.save_checkpointables_async(
                self.directory / str(step), trees, custom_metadata=_seal(trees, miou)
            )
        self._pending = (step, response)

    def restore_latest(self, state: TrainState) -> TrainState | None:
        """Restores the newest sound checkpoint onto the shardings of `state`.

        A damaged one is named, renamed to `damaged-<step>` and the one before is tried. Process 0
        decides and sends the arrays to the others, which need not even see the files.

        Returns:
            The restored state, or None if there is no checkpoint.

        Raises:
            InputError: a checkpoint is sound but of another model or optimiser, or all there are
                turned out damaged.
        """
        trees = _trees(state)
        found = self._newest_sound(trees) if processes.is_first() else None
        if not processes.from_first(np.bool_(found is not None)):
            return None
        return _state(_spread(found, trees))

    def wait(self) -> None:
        """Waits until what was saved is on disk.

        Raises:
            InputError: it could not be written.
        """
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        with self._failures(step):
            response.result()
        if processes.is_first():
            self._remove_superseded()

    def close(self) -> None:
        """Waits for the last save; raises as `wait`."""
        self.wait()

    def _remove_superseded(self) -> None:
        """Removes all but the latest and the best."""
        paths = _steps(self.directory)
        kept = [*sorted(paths)[-_LATEST:], _best(self._scores(paths))]
        for step in set(paths) - set(kept):
            # Renamed first: half of a checkpoint under its own name would look damaged.
            away = self.directory / f'{_REMOVING}{step}'
            paths[step].rename(away)
            shutil.rmtree(away)

    def _scores(self, paths: dict[int, pathlib.Path]) -> dict[int, float | None]:
        """mIoU of each checkpoint; what turns out damaged is left where it is and out."""
        scores = {}
        for step, path in paths.items():
            with contextlib.suppress(Damaged):
                scores[step] = _inspect(path).miou
        return scores

    def _newest_sound(self, trees: dict[str, Any]) -> dict[str, Any] | None:
        for path in reversed(_steps(self.directory).values()):
            try:
                return _load(path, trees)
            except Damaged as error:
                self._set_aside(path, error)
        aside = sorted(path.name for path in self.directory.glob('damaged-*'))
        if aside:
            raise InputError(
                f'{self.directory} holds only damaged checkpoints ({", ".join(aside)}): there is '
                'nothing to resume from; remove that directory to start from the beginning'
            )
        return None

    def _set_aside(self, path: pathlib.Path, error: Exception) -> None:
        aside = self.directory / f'damaged-{path.name}'
        if aside.is_dir():
            shutil.rmtree(aside)
        aside.unlink(missing_ok=True)
        path.rename(aside)
        self._report(f'{error}; it was renamed to {aside.name}, trying the one before')

    @contextlib.contextmanager
    def _failures(self, step: int):
        try:
            yield
        except Exception as error:  # Orbax and TensorStore have many words for a full disk
            raise InputError(
                f'checkpoint {step} could not be written to {self.directory} '
                f'({_first_line(error)}; {_free(self.directory)}). The checkpoints before it are '
                'as they were: make room, and the same command resumes'
            ) from error


class Damaged(Exception):
    """A checkpoint whose bytes are not those that were saved."""


def exists(workdir: pathlib.Path) -> bool:
    """Whether a workdir holds a checkpoint, sound or not."""
    directory = pathlib.Path(workdir) / 'checkpoints'
    return directory.is_dir() and any(path.name.isdigit() for path in directory.iterdir())


def steps(workdir: pathlib.Path) -> dict[int, float | None]:
    """The saved steps in ascending order with their mIoU, None where there was none.

    Raises:
        Damaged: a checkpoint is not whole.
    """
    paths = _steps(pathlib.Path(workdir).absolute() / 'checkpoints')
    return {step: _inspect(path).miou for step, path in paths.items()}


def restore(
    workdir: pathlib.Path,
    params: nnx.State,
    stats: nnx.State,
    sharding: jax.sharding.Sharding,
    which: Literal['best', 'latest'] | int = 'best',
) -> Restored:
    """Reads a model from a workdir, also while it trains: the start of every analysis.

    Args:
        workdir: of a training run.
        params: shapes of the parameters. stats: of the batch statistics (`models.abstract`).
        sharding: where the arrays shall lie.
        which: the checkpoint with the highest validation mIoU, the latest, or a step.

    Raises:
        InputError: no such checkpoint, a damaged one, or one of another model.
    """
    tree = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        {'model': {'params': params, 'stats': stats}},
    )
    step, found = 0, None
    if processes.is_first():
        with _readable('choose another with --checkpoint'):
            step, path = _choose(workdir, which)
            found = _load(path, tree)
    step = processes.from_first(np.int32(step))
    return Restored(int(step), **_spread(found, tree)['model'])


def restore_as_saved(workdir: pathlib.Path) -> Restored:
    """Reads the best model of a workdir without knowing its network: as nested dictionaries.

    Every process reads for itself.

    Raises:
        InputError: no checkpoint, or a damaged one.
    """
    with _readable('remove it to use another'):
        step, path = _choose(workdir, 'best')
        with _unreadable(path), _alone():
            saved = ocp.checkpointables_metadata(path).metadata['model']
        model = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
        return Restored(step, **_load(path, {'model': model})['model'])


@contextlib.contextmanager
def _readable(cure: str):
    try:
        yield
    except Damaged as error:
        raise InputError(f'{error}; {cure}') from error


def _choose(workdir: pathlib.Path, which: str | int) -> tuple[int, pathlib.Path]:
    """The step that `which` means, and where it lies."""
    directory = pathlib.Path(workdir).absolute() / 'checkpoints'
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
    """The checkpoints of a directory by step, in ascending order, whole or not."""
    if not directory.is_dir():
        return {}
    found = {int(path.name): path for path in directory.iterdir() if path.name.isdigit()}
    return dict(sorted(found.items()))


def _best(scores: dict[int, float | None]) -> int:
    """The step with the highest mIoU, the later one of equals; without any the latest."""
    ranked = {step: miou for step, miou in scores.items() if miou is not None}
    return max(ranked, key=lambda step: (ranked[step], step)) if ranked else max(scores)


@dataclasses.dataclass(frozen=True)
class _Sealed:
    """What is written beside the arrays.

    Attributes:
        miou: of the evaluation at this step; minus infinity if that was not a number, None if there
            was no evaluation.
        checksums: of the arrays of each tree.
    """

    miou: float | None
    checksums: dict[str, list[int]]


def _seal(trees: dict[str, Any], miou: float | None) -> dict[str, Any]:
    """What `_inspect` reads, with a checksum of its own."""
    content = {
        'evaluated': miou is not None,
        'miou': None if miou is None or miou != miou else float(miou),
        'checksums': {name: checksums(tree) for name, tree in trees.items()},
    }
    return content | {'crc': _crc(content)}


def _crc(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _inspect(path: pathlib.Path) -> _Sealed:
    """Reads what lies beside the arrays of a checkpoint, and sees that its files are whole.

    Raises:
        Damaged: a mark that Orbax leaves when all is written is missing or unreadable.
    """
    marks = [path / '_CHECKPOINT_METADATA', path / 'commit_success.txt']
    for mark in marks:
        if not mark.is_file():
            missing = mark.relative_to(path.parent)
            raise Damaged(f'checkpoint {path} is not whole: {missing} is missing')
    with _unreadable(path):
        content = dict(json.loads(marks[0].read_text(encoding='utf-8'))['custom_metadata'])
        if content.pop('crc') != _crc(content):
            raise ValueError(f'the checksum of {marks[0].name} differs')
    miou = content['miou']
    if content['evaluated'] and miou is None:
        miou = float('-inf')
    return _Sealed(miou, content['checksums'])


def _load(path: pathlib.Path, trees: dict[str, Any]) -> dict[str, Any]:
    """Reads the named trees of a checkpoint onto the host.

    Args:
        path: of the checkpoint.
        trees: name -> tree of arrays or shapes.

    Raises:
        Damaged: it cannot be read or its checksums differ.
        InputError: it is of another model.
    """
    sealed = _inspect(path)
    with _unreadable(path), _alone():
        metadata = ocp.checkpointables_metadata(path).metadata
        saved = {name: _by_path(metadata[name]) for name in trees}
    for name, tree in trees.items():
        if not saved[name]:
            raise Damaged(f'checkpoint {path} is damaged: {name!r} is not in it')
        _compare(saved[name], _by_path(tree), path)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), trees
    )
    with _unreadable(path), _alone():
        loaded = ocp.load_checkpointables(path, abstract)
    loaded = jax.device_get(loaded)
    for name in trees:
        if checksums(loaded[name]) != sealed.checksums[name]:
            raise Damaged(f'checkpoint {path} is damaged: the checksums of {name!r} differ')
    return loaded


@contextlib.contextmanager
def _unreadable(path: pathlib.Path):
    """Orbax, TensorStore and json raise whatever they stumble over in damaged files."""
    try:
        yield
    except Exception as error:
        raise Damaged(f'checkpoint {path} cannot be read ({_first_line(error)})') from error


def _alone() -> ocp.Context:
    """Orbax works for this process only and waits for no other."""
    own = jax.process_index()
    context = ocp.Context()
    context.multiprocessing.primary_host = own
    context.multiprocessing.active_processes = {own}
    return context


def _spread(found: Any, tree: Any) -> Any:
    """Process 0's host arrays `found` on every process, with the shardings of `tree`."""
    if not processes.is_first():
        found = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)
    found = processes.from_first(found)
    return jax.tree.map(lambda x, like: mesh_lib.place(x, like.sharding), found, tree)


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


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'


def _free(directory: pathlib.Path) -> str:
    return f'{shutil.disk_usage(directory).free / 2**20:.0f} MiB are free there'
