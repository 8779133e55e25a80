"""Selection of the trained models that an experiment compares.

    --workdir=runs/table1/full --workdir=mine=runs/mine

Each value is the workdir of a run, or a folder of workdirs: the seeds of one model. Without a name
of its own a model is named after its context module, as in the paper.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
from ml_collections import ConfigDict

from ggcf_jax import data, places
from ggcf_jax.attention import graphs
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.distributed.mesh import make_mesh
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir import model as workdir_model
from ggcf_jax.workdir.classes import Classes
from ggcf_jax.workdir.model import TrainedModel


@dataclasses.dataclass(frozen=True)
class SelectedRun:
    """One run.

    Attributes:
        model: name of the model, the same for all its seeds.
        title: name of the run, with its seed where the model has several.
        workdir: workdir of the run.
    """

    model: str
    title: str
    workdir: pathlib.Path


def add_workdirs(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds --workdir, whose values `select` takes.

    Args:
        parser: command line of the script.
        required: whether the script needs a run.
    """
    parser.add_argument(
        '--workdir',
        required=required,
        action='extend',
        nargs='+',
        metavar='[NAME=]DIR',
        help='workdir of a run, or a folder of workdirs: the seeds of a model; may be repeated',
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint, which `load_each` takes."""
    parser.add_argument(
        '--checkpoint',
        default='best',
        help='checkpoint to use: best, latest or a step number [best]',
    )


def select(texts: Sequence[str]) -> list[SelectedRun]:
    """Finds the runs that the values of --workdir name, in their order.

    Args:
        texts: workdirs or folders of workdirs, each with 'NAME=' before it or without.

    Raises:
        InputError: a folder without runs, or a run that is named twice.
    """
    found = []
    for text in texts:
        is_folder = places.expand(text, '--workdir').is_dir()
        name, _, folder = ('', '', text) if is_folder else text.rpartition('=')
        for workdir in find_workdirs(places.expand(folder, '--workdir')):
            config = workdir_config.load(workdir)
            found.append((name or paper_name(config.model), workdir, config.seed))
    for i, (_, workdir, _) in enumerate(found):
        if any(workdir.resolve() == other.resolve() for _, other, _ in found[:i]):
            raise InputError(f'--workdir: {workdir} is named twice')
    models = [model for model, _, _ in found]
    return [
        SelectedRun(model, model if models.count(model) == 1 else f'{model}, seed {seed}', workdir)
        for model, workdir, seed in found
    ]


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A trained model and the data set that it was trained on.

    Attributes:
        model: trained model, on the first device.
        dataset: data set of the run.
    """

    model: TrainedModel
    dataset: Dataset

    def identity(self, split: str) -> dict[str, str | int]:
        """What results on a split depend on besides the experiment: for keys of `cache`.

        Args:
            split: name of the split.
        """
        return {
            'workdir': str(self.model.workdir.resolve()),
            'step': self.model.step,
            'weights': self.model.digest,
            'split': split,
            'data': self.dataset.identity_of(split),
        }


def load(
    workdir: pathlib.Path,
    checkpoint: Literal['best', 'latest'] | int = 'best',
    dataset: Dataset | None = None,
) -> LoadedRun:
    """Loads a run for an experiment on one device.

    Args:
        workdir: workdir of the run.
        checkpoint: checkpoint with the highest validation mIoU, the latest, or a step number.
        dataset: data set of the run where it is open already; None opens it.

    Raises:
        InputError: no such run or checkpoint, a damaged one, or data that are missing.
    """
    if dataset is None:
        dataset = data.build(workdir_config.load(workdir).data)
    model = workdir_model.load(
        workdir,
        checkpoint,
        classes=Classes(dataset.classes, dataset.colors),
        mesh=make_mesh(jax.local_devices()[:1]),
    )
    return LoadedRun(model, dataset)


def load_each(
    selected: Sequence[SelectedRun], checkpoint: str
) -> Iterator[tuple[SelectedRun, LoadedRun]]:
    """Yields each run with its model, loaded one after the other; the data set is opened once.

    Args:
        selected: runs to load.
        checkpoint: 'best', 'latest' or a step number.

    Raises:
        InputError: runs on different data sets (before any checkpoint is read), or whatever is
            wrong with a checkpoint.
    """
    dataset = common_dataset(selected)
    which = parse_checkpoint(checkpoint)
    for run in selected:
        yield run, load(run.workdir, which, dataset)


def parse_checkpoint(text: str) -> Literal['best', 'latest'] | int:
    """Parses the value of --checkpoint.

    Raises:
        InputError: a text that is neither 'best' nor 'latest' nor a step number.
    """
    if text == 'best':
        return 'best'
    if text == 'latest':
        return 'latest'
    if not text.isdecimal():
        raise InputError(f'--checkpoint={text} is not best, latest or a step number')
    return int(text)


def common_dataset(selected: Sequence[SelectedRun]) -> Dataset:
    """Opens the data set that all the runs were trained on.

    Args:
        selected: runs, at least one.

    Raises:
        InputError: runs on different data sets, or data that are missing.
    """
    configs = [workdir_config.load(run.workdir).data for run in selected]
    datasets = {each.to_json(): data.build(each) for each in configs}
    first = datasets[configs[0].to_json()]
    for run, each in zip(selected, configs):
        other = datasets[each.to_json()]
        if _identity(other) != _identity(first):
            raise InputError(
                f'{run.workdir} and {selected[0].workdir} are not of the same data: '
                f'{_identity(other)!r}, {_identity(first)!r}'
            )
    return first


def _identity(dataset: Dataset) -> str:
    # Not of all splits: some are prepared on first use.
    return f'{dataset.name}: {dataset.identity_of("validation")}'


_NAMES = {'none': 'Baseline', 'nonlocal': 'Non-local', 'psp': 'PSPNet', 'ccnet': 'CCNet'}


def paper_name(model: ConfigDict) -> str:
    """Names a context module as the paper does, 'FULL, LOCAL_{8,16,24}'.

    Args:
        model: `config.model`.
    """
    if model.context != 'ggcf':
        return _NAMES.get(model.context, model.context.upper())
    kinds: list[tuple[str, list[str]]] = []
    for graph in graphs.parse(model.heads):
        kind = graph.kind()
        size = str(graph).removeprefix(kind).removeprefix(':')
        if size and kinds and kinds[-1][0] == kind:
            kinds[-1][1].append(size)
        else:
            kinds.append((kind, [size] if size else []))
    parts: list[str] = []
    sizes_of_local: list[str] | None = None
    for kind, sizes in kinds:
        name = {'learned': 'Trainable E'}.get(kind, kind.upper())
        subscript = f'_{sizes[0]}' if len(sizes) == 1 else f'_{{{",".join(sizes)}}}'
        if kind == 'grid' and sizes == sizes_of_local:
            parts[-1] = '{LOCAL, GRID}' + subscript
        else:
            parts.append(name + (subscript if sizes else ''))
        sizes_of_local = sizes if kind == 'local' else None
    return ', '.join(parts)


def find_workdirs(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folder itself if it is a workdir, otherwise the workdirs in it.

    Raises:
        InputError: there is none.
    """
    if (folder / workdir_config.FILE_NAME).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f'*/{workdir_config.FILE_NAME}'))
    if not found:
        raise InputError(f'{folder} is neither the workdir of a run nor a folder of runs')
    return found
