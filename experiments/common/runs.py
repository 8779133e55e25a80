"""The trained models that an analysis compares, as its command line names them.

    --workdir=runs/table1/full --workdir=mine=runs/mine

Each is the workdir of a run, or a folder of such: the seeds of one model. Without a name of its own
a model is called after its context module, as the paper writes it.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from experiments.common import trained
from ggcf_jax import data
from ggcf_jax.attention import graphs
from ggcf_jax.errors import InputError
from ggcf_jax.workdir import config as workdir_config


@dataclasses.dataclass(frozen=True)
class Chosen:
    """One run.

    Attributes:
        model: name of the model, the same for all its seeds.
        title: name of the run, with its seed where the model has several.
        workdir: of the run.
    """

    model: str
    title: str
    workdir: pathlib.Path


def add_workdirs(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds --workdir, whose values `choose` takes."""
    parser.add_argument(
        '--workdir',
        required=required,
        action='extend',
        nargs='+',
        metavar='[NAME=]DIR',
        help='of a run, or a folder of runs: the seeds of a model; may be repeated',
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint, which `load` takes."""
    parser.add_argument('--checkpoint', default='best', help='best, latest or a step [best]')


def choose(texts: Sequence[str]) -> list[Chosen]:
    """The runs that the values of --workdir name, in their order.

    Raises:
        InputError: a folder without runs, or a run that is named twice.
    """
    found = []
    for text in texts:
        name, _, folder = ('', '', text) if pathlib.Path(text).is_dir() else text.rpartition('=')
        for workdir in workdirs(pathlib.Path(folder)):
            config = workdir_config.load(workdir)
            found.append((name or name_of(config.model), workdir, config.seed))
    for i, (_, workdir, _) in enumerate(found):
        if any(workdir.resolve() == other.resolve() for _, other, _ in found[:i]):
            raise InputError(f'--workdir: {workdir} is named twice')
    models = [model for model, _, _ in found]
    return [
        Chosen(model, model if models.count(model) == 1 else f'{model}, seed {seed}', workdir)
        for model, workdir, seed in found
    ]


def load(chosen: Sequence[Chosen], which: str) -> Iterator[tuple[Chosen, trained.Trained]]:
    """Yields each run with its model, one after the other; the data set is opened once.

    Raises:
        InputError: runs on different data sets (before any checkpoint is read), or whatever
            `trained.load` finds wrong.
    """
    dataset = common_dataset(chosen)
    for run in chosen:
        yield run, trained.load(run.workdir, int(which) if which.isdigit() else which, dataset)


def common_dataset(chosen: Sequence[Chosen]):
    """The data set of all these runs.

    Raises:
        InputError: they are not of one, or its data are not there.
    """
    configs = [workdir_config.load(run.workdir).data for run in chosen]
    datasets = {each.to_json(): data.build(each) for each in configs}
    first = datasets[configs[0].to_json()]
    for run, each in zip(chosen, configs):
        other = datasets[each.to_json()]
        if (other.name, other.identity) != (first.name, first.identity):
            raise InputError(
                f'{run.workdir} and {chosen[0].workdir} are not of the same data: '
                f'{other.identity!r}, {first.identity!r}'
            )
    return first


def name_of(model) -> str:
    """The context module of `config.model` as the paper writes it, 'FULL, LOCAL_{8,16,24}'."""
    if model.context != 'ggcf':
        return {'none': 'Baseline'}.get(model.context, model.context.upper())
    kinds: list[tuple[str, list[str]]] = []
    for graph in graphs.parse(model.heads):
        kind, _, size = str(graph).partition(':')
        if size and kinds and kinds[-1][0] == kind:
            kinds[-1][1].append(size)
        else:
            kinds.append((kind, [size] if size else []))
    parts: list[str] = []
    sizes_of_local = None
    for kind, sizes in kinds:
        name = {'learned': 'Trainable E'}.get(kind, kind.upper())
        subscript = f'_{sizes[0]}' if len(sizes) == 1 else f'_{{{",".join(sizes)}}}'
        if kind == 'grid' and sizes == sizes_of_local:
            parts[-1] = '{LOCAL, GRID}' + subscript
        else:
            parts.append(name + (subscript if sizes else ''))
        sizes_of_local = sizes if kind == 'local' else None
    return ', '.join(parts)


def workdirs(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folder if it is a workdir, otherwise the workdirs in it."""
    if (folder / workdir_config.FILE_NAME).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f'*/{workdir_config.FILE_NAME}'))
    if not found:
        raise InputError(f'{folder} is neither the workdir of a run nor a folder of runs')
    return found
