"""A trained model read from its workdir: the Python API, and where every mode and analysis starts.

model = ggcf_jax.load('runs/camvid')
labels = model.predict('photo.jpg')            # uint8 [h, w], indices of model.classes
labels = model.predict(['a.png', 'b.png'])     # a list of such arrays
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, overload

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from ggcf_jax import models, places
from ggcf_jax.data.records import codec
from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.dataset import identity_label_map
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.errors import InputError
from ggcf_jax.evaluation import inference, metrics
from ggcf_jax.evaluation.results import Evaluation
from ggcf_jax.models import stacking
from ggcf_jax.models.contexts.pruning_rules import pruned
from ggcf_jax.models.layers import extent as extent_lib
from ggcf_jax.models.layers.extent import Extent
from ggcf_jax.models.layers.resize import nearest_positions
from ggcf_jax.models.segmenter import Segmenter
from ggcf_jax.prediction import batches, inputs, large_images
from ggcf_jax.prediction.batches import Prediction
from ggcf_jax.workdir import checkpoints
from ggcf_jax.workdir import classes as classes_lib
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir.checkpoint_files import checksums

Image = str | os.PathLike | UInt8[np.ndarray, 'h w 3']
Labels = UInt8[np.ndarray, 'h w']
Color = tuple[int, int, int]

# Compiled programs of `run` that are kept, the most recently used ones; as many for each scale of
# the plan, which may be a program of its own.
_PROGRAMS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained network with what it takes to use it; made by `load`.

    Images are RGB, uint8 [h, w, 3], or paths of image files. Files are turned as their EXIF
    orientation says, so that photographs are seen upright, and labels have the size of the upright
    image; only `evaluate`, whose labels fit the stored pixels, takes them as they are stored.

    The network computes in `config.train.dtype`; class scores and attention are float32. A new size
    of images is compiled at its first use, which takes seconds; sizes are rounded up to multiples
    of `config.eval.size_multiple`, so that images of similar sizes share a program.

    Attributes:
        workdir: directory of the training run.
        config: its configuration; `eval` and `predict` can be changed through `load`.
        step: number of training steps done at the checkpoint.
        classes: class names; labels index them.
        colors: RGB of each class, 0 to 255.
        plan: how the class scores of an image are found (`config.eval`).
        mesh: devices that share a batch.
        graphdef: structure of the network.
        params: its float32 parameters, replicated on the mesh.
        stats: its float32 batch statistics, likewise.
    """

    workdir: pathlib.Path
    config: ConfigDict
    step: int
    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    plan: inference.Plan
    mesh: Mesh
    graphdef: nnx.GraphDef = dataclasses.field(repr=False)
    params: nnx.State = dataclasses.field(repr=False)
    stats: nnx.State = dataclasses.field(repr=False)

    @overload
    def predict(self, images: Image) -> Labels: ...

    @overload
    def predict(self, images: list[Image] | tuple[Image, ...]) -> list[Labels]: ...

    def predict(self, images: Image | list[Image] | tuple[Image, ...]) -> Labels | list[Labels]:
        """Finds the class of every pixel, exactly as `main.py --mode=predict` does.

        Images of a list are padded to at most `config.eval.max_sizes` common sizes and go through
        the network in batches of `config.eval.batch_size`; an image with a side of more than
        `config.predict.max_side` pixels goes through in overlapping parts.

        Args:
            images: an image, or a list or tuple of images of any sizes.

        Returns:
            Index into `classes` for each pixel, uint8 [h, w]; a list of such arrays for a list.

        Raises:
            InputError: a file that cannot be read or decoded, or an array of another dtype or
                shape.
        """
        if not isinstance(images, list | tuple):
            return self.predict([images])[0]
        return [each.labels for each in self._predict(images, self.config.predict.max_side)]

    def probabilities(self, image: Image) -> Float[np.ndarray, 'h w classes']:
        """The probability of each class at each pixel; `argmax(-1)` is `predict` but for ties.

        Args:
            image: an image of any size.

        Returns:
            float32 [h, w, C], one in sum over the classes up to rounding.

        Raises:
            InputError: as `predict`.
        """
        (found,) = self._predict([image], self.config.predict.max_side, probabilities=True)
        assert found.probabilities is not None
        return found.probabilities

    def attention(
        self, image: Image, position: tuple[int, int]
    ) -> Float[np.ndarray, 'heads rows columns']:
        """Where each head looks from one pixel: the weights 1/C_ik E_k(i, j) exp(..) of Eq. 3.

        The heads see the whole image at once, pruned as `config.eval.pruning` says. Weight (i, j)
        belongs to pixel (first + i * stride, first + j * stride), both of `network`.

        Args:
            image: an image that fits the device's memory at once.
            position: row and column of a pixel; the nearest position of the map is taken.

        Returns:
            float32 [heads, ceil(h / stride), ceil(w / stride)], one in sum over the map.

        Raises:
            InputError: as `predict`; a pixel outside of the image, or a network without heads.
        """
        network = self.network
        if not network.heads:
            context = self.config.model.context
            raise InputError(f'config.model.context={context!r} has no attention heads')
        pixels = inputs.of_any(image, upright=True, bits=self.config.data.image_bits).decode()
        height, width = pixels.shape[:2]
        if not (0 <= position[0] < height and 0 <= position[1] < width):
            raise InputError(
                f'pixel {tuple(position)} lies outside of the image of {height} x {width}'
            )
        at = nearest_positions(np.array([position]), network.stride, (height, width), network.first)
        weights = self.run_padded(self._attend, pixels, at)
        rows, columns = (-(-side // network.stride) for side in (height, width))
        return weights[:, :rows, :columns]

    def evaluate(
        self,
        images: Sequence[Image],
        labels: Sequence[str | os.PathLike | Labels],
    ) -> Evaluation:
        """Compares the predictions of images with their labels.

        Images go through the network whole, as in `main.py --mode=evaluate`, however large they
        are, and as they are stored, without a turn by EXIF. Splits of the run's own data set are
        evaluated by `ggcf_jax.evaluate`.

        Args:
            images: images of any sizes.
            labels: index into `classes` for each pixel, 255 where it does not count; as uint8
                arrays of the images' sizes, or paths of PNG files.

        Returns:
            Confusion matrix and metrics: `miou`, `iou` by class, `scores` by `config.eval.metrics`.

        Raises:
            InputError: another number of labels than images, sizes that differ, or a label value
                that is not a class; or as `predict`.
        """
        if len(images) != len(labels):
            raise InputError(f'there are {len(images)} images, but {len(labels)} labels')
        shown = metrics.build(self.config)
        count = len(self.classes)
        matrix = np.zeros((count, count), np.int64)
        for i, found in enumerate(self._predict(images, max_side=None, upright=False)):
            name, truth = f'label {i}', labels[i]
            if isinstance(truth, str | os.PathLike):
                name = str(truth)
                truth = codec.decode_label(_read(truth), name)
            truth = np.asarray(truth)
            if truth.dtype != np.uint8 or truth.shape != found.labels.shape:
                raise InputError(
                    f'{name} is {truth.dtype} {list(truth.shape)}; its image needs uint8 '
                    f'{list(found.labels.shape)}'
                )
            truth = codec.map_labels(truth, identity_label_map(count, IGNORE), name)
            matrix += metrics.confusion_matrix(truth, found.labels, count, IGNORE)
        return Evaluation('images', self.classes, categories=(), matrix=matrix, metrics=shown)

    @functools.cached_property
    def digest(self) -> str:
        """A text that changes with the parameters and statistics."""
        sums = np.asarray(checksums((self.params, self.stats)))
        return hashlib.sha256(sums.tobytes()).hexdigest()[:12]

    @functools.cached_property
    def unstacked_params(self) -> nnx.State:
        """`params` in the form that the devices of the mesh run fastest, see `models.stacking`.

        On CPUs a second copy of the parameters of equal blocks.
        """
        stacks = models.unstacked_for(self.mesh, self.graphdef, self.params, self.stats)
        return stacking.unstacked(self.params, stacks)

    @functools.cached_property
    def network(self) -> Segmenter:
        """The network as a module, to be called outside of `jax.jit`; see `run` for inside."""
        return models.merge(self.graphdef, self.params, self.stats)

    def run(self, function: Callable[..., Any], *arrays: np.ndarray) -> Any:
        """Calls a function of the network and of arrays, compiled for the arrays' shapes.

        The programs of the 16 most recent functions and shapes are kept, 16 for each scale of the
        plan. Give the same function
        object every time, not a new lambda.

        Args:
            function: called as function(network, *arrays) inside `jax.jit`.
            arrays: further arguments.

        Returns:
            What the function returns, as host arrays.
        """
        shapes = tuple((x.shape, x.dtype.name) for x in map(np.asarray, arrays))
        program = self._program(function, *shapes)
        return jax.device_get(program(self.unstacked_params, self.stats, *arrays))

    def run_padded(
        self, function: Callable[..., Any], image: UInt8[np.ndarray, 'h w 3'], *arrays: np.ndarray
    ) -> Any:
        """As `run`, on an image that is padded to multiples of `config.eval.size_multiple`.

        Args:
            function: called as function(network, images, extent, *arrays), the image being the only
                one of a batch and extent its size there.
            image: an image of any size.
            arrays: further arguments.

        Returns:
            What the function returns, as host arrays: arbitrary outside of the image.
        """
        multiple = self.config.eval.size_multiple
        height, width = (-(-side // multiple) * multiple for side in image.shape[:2])
        batch = np.zeros((1, height, width, 3), np.uint8)
        batch[0, : image.shape[0], : image.shape[1]] = image
        sizes = np.array([image.shape[:2]], np.int32)
        return self.run(self._with_extent(function), batch, sizes, *arrays)

    @functools.cached_property
    def _with_extent(self) -> Callable[[Callable], Callable]:
        """Makes of a function for `run_padded` one for `run`, the same one every time."""

        @functools.lru_cache(_PROGRAMS)
        def wrap(function: Callable) -> Callable:
            def call(network: Segmenter, images: Any, sizes: Any, *arrays: Any) -> Any:
                return function(network, images, extent_lib.of_sizes(sizes), *arrays)

            return call

        return wrap

    def batch_run(self, probabilities: np.dtype | None) -> batches.Network:
        """The network on batches of host arrays, as `batches.make_run` builds it, built once.

        Args:
            probabilities: dtype of the probabilities; None leaves them out.
        """
        if probabilities not in self._runs:
            self._runs[probabilities] = batches.make_run(
                self.graphdef,
                self.unstacked_params,
                self.stats,
                num_classes=len(self.classes),
                plan=self.plan,
                mesh=self.mesh,
                probabilities=probabilities,
            )
        return self._runs[probabilities]

    @functools.cached_property
    def _runs(self) -> dict[np.dtype | None, batches.Network]:
        return {}

    @functools.cached_property
    def _program(self) -> Callable[..., Callable]:
        """Compiles functions for `run`; an `lru_cache` of this object's own."""

        @functools.lru_cache(_PROGRAMS * len(self.plan.scales))
        def program(function: Callable, *shapes: tuple[tuple[int, ...], str]) -> Callable:
            def call(params: nnx.State, stats: nnx.State, *arrays: jax.Array) -> Any:
                return function(models.merge(self.graphdef, params, stats), *arrays)

            abstract = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
            return jax.jit(call).lower(self.unstacked_params, self.stats, *abstract).compile()

        return program

    def _attend(
        self,
        network: Segmenter,
        images: UInt8[Array, '1 h w 3'],
        extent: Extent,
        at: Int[Array, '1 2'],
    ) -> Float[Array, 'heads rows columns']:
        return pruned(network, self.plan.pruning).attention(images, at, extent=extent)[0, 0]

    def _predict(
        self,
        images: Sequence[Image],
        max_side: int | None,
        *,
        upright: bool = True,
        probabilities: bool = False,
    ) -> list[Prediction]:
        """The predictions of images in their order; in parts from `max_side` on, if it is given."""
        run = self.batch_run(np.dtype(np.float32) if probabilities else None)
        run_parts = self.batch_run(np.dtype(np.float32))  # parts are blended by probabilities
        bits = self.config.data.image_bits
        given = [inputs.of_any(image, upright=upright, bits=bits) for image in images]
        sizes = [each.size() for each in given]
        if max_side is None:
            sizes = [size or each.decode().shape[:2] for size, each in zip(sizes, given)]
        jobs = batches.plan_jobs(
            self.config, sizes, devices=self.mesh.shape['data'], max_side=max_side
        )
        found: dict[int, Prediction] = {}
        with jax.set_mesh(self.mesh):
            for job in jobs:
                decoded = [given[i].decode(job.largest) for i in job.members]
                if job.in_parts:
                    results = [self._predict_in_parts(run_parts, decoded[0], job, probabilities)]
                else:
                    results = batches.predict_padded(run, decoded, job)
                found |= zip(job.members, results)
        return [found[i] for i in range(len(given))]

    def _predict_in_parts(
        self, run: batches.Run, image: np.ndarray, job: batches.Job, probabilities: bool
    ) -> Prediction:
        shape = image.shape[:2]
        into = Prediction(
            np.empty(shape, np.uint8),
            np.empty((*shape, len(self.classes)), np.float32) if probabilities else None,
        )
        large_images.predict(run, image, into, job)
        return into


def load(
    workdir: str | os.PathLike,
    checkpoint: checkpoints.Which = 'best',
    *,
    config: ConfigDict | None = None,
    classes: classes_lib.Classes | None = None,
    mesh: Mesh | None = None,
) -> TrainedModel:
    """Reads a trained model from the workdir of its run, also while that is still training.

    Args:
        workdir: directory of a training run.
        checkpoint: the one with the highest validation mIoU, the latest, or a step number.
        config: configuration with other ways of inference (`eval`, `predict`); its `model` must be
            the run's. None takes the configuration that the run saved.
        classes: names and colours of the classes; None takes those that the run saved, or, for a
            run that saved none, those of its data set.
        mesh: devices to compute on; None takes all devices of this process.

    Raises:
        InputError: no such run or checkpoint, a damaged one, one of another network, or a plan of
            inference that is not valid.
    """
    workdir = places.expand(workdir)
    if config is None:
        config = workdir_config.load(workdir)
    else:
        workdir_config.check_model(config, workdir)
    plan = inference.build(config)
    classes = classes_lib.of_run(config, workdir) if classes is None else classes
    mesh = mesh_lib.make_mesh(jax.local_devices()) if mesh is None else mesh
    graphdef, params, stats = models.abstract(config, len(classes.names))
    restored = checkpoints.restore(workdir, params, stats, mesh_lib.replicated(mesh), checkpoint)
    return TrainedModel(
        workdir=workdir,
        config=config,
        step=restored.step,
        classes=classes.names,
        colors=classes.colors,
        plan=plan,
        mesh=mesh,
        graphdef=graphdef,
        params=restored.params,
        stats=restored.stats,
    )


def _read(path: str | os.PathLike) -> bytes:
    try:
        return places.expand(path).read_bytes()
    except OSError as error:
        raise InputError(str(error)) from error
