"""A trained model with its data set, from a workdir: where every analysis starts."""

import dataclasses
import pathlib
from typing import Literal

import jax
from flax import nnx
from ml_collections import ConfigDict

from ggcf_jax import data, models
from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.models.segmenter import Segmenter
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir import model as model_lib
from ggcf_jax.workdir.classes import Classes


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model of one checkpoint, on the first device.

    Attributes:
        workdir: of the run. config: of the run. dataset: that it was trained on.
        graphdef, params, stats: of the model. step: of the checkpoint.
    """

    workdir: pathlib.Path
    config: ConfigDict
    dataset: Dataset
    graphdef: nnx.GraphDef
    params: nnx.State
    stats: nnx.State
    step: int

    @property
    def model(self) -> Segmenter:
        """To be called outside of `jax.jit`; inside, merge params and stats given as arguments."""
        return models.merge(self.graphdef, self.params, self.stats)


def load(
    workdir: pathlib.Path,
    which: Literal['best', 'latest'] | int = 'best',
    dataset: Dataset | None = None,
) -> Trained:
    """Reads a checkpoint of a run.

    Args:
        workdir: of the run.
        which: the checkpoint with the highest validation mIoU, the latest, or a step.
        dataset: the run's data set where it is open already; None opens it.

    Raises:
        InputError: no such run or checkpoint, a damaged one, or data that are not there.
    """
    if dataset is None:
        dataset = data.build(workdir_config.load(workdir).data)
    model = model_lib.load(
        workdir,
        which,
        classes=Classes(dataset.classes, dataset.colors),
        mesh=mesh_lib.make_mesh(jax.local_devices()[:1]),
    )
    return Trained(
        model.workdir,
        model.config,
        dataset,
        model.graphdef,
        model.params,
        model.stats,
        model.step,
    )
