"""A trained model as the page sees it: classes of the pixels of an image, and where heads look."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from ggcf_jax.data.records import depth
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.evaluation import inference
from ggcf_jax.models.layers.extent import Extent
from ggcf_jax.models.segmenter import Segmenter
from ggcf_jax.serving import examples
from ggcf_jax.serving.examples import Example
from ggcf_jax.workdir import model as model_lib
from ggcf_jax.workdir.checkpoints import Which


@dataclasses.dataclass(frozen=True)
class Viewer:
    """What the page needs of a model; tests give one that needs no time.

    Attributes:
        name: name of the data set.
        classes: class names in train-id order.
        colors: RGB of each class, 0 to 255.
        heads: graph of each head, such as 'local:8'; () where the network has no heads.
        stride: pixels between neighbouring positions of the heads' map.
        first: pixel, down and across, that the first position is centred on.
        step: number of training steps done at the checkpoint.
        plan: how the classes of pixels are found, in words.
        segment: RGB image -> class of each pixel.
        attend: (RGB image, row and column of a pixel) -> weights
            [heads, ceil(h / stride), ceil(w / stride)], one in sum over the map: where each head
            looks from the position nearest to the pixel.
        examples: pictures that the page offers.
        image_bits: bits that the samples of 16-bit images use, `config.data.image_bits`.
    """

    name: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    heads: tuple[str, ...]
    stride: int
    first: float
    step: int
    plan: str
    segment: Callable[[UInt8[np.ndarray, 'h w 3']], UInt8[np.ndarray, 'h w']]
    attend: Callable[
        [UInt8[np.ndarray, 'h w 3'], tuple[int, int]], Float[np.ndarray, 'heads rows columns']
    ]
    examples: tuple[Example, ...] = ()
    image_bits: int = depth.FULL


def load(config: ConfigDict, workdir: str | pathlib.Path, checkpoint: Which) -> Viewer:
    """Restores a checkpoint of a run, on one device.

    Classes of pixels are found with the inference plan of `config.eval`; heads always see the whole
    image, pruned as the plan says. Images are padded to multiples of `config.eval.size_multiple`,
    and a new size of these is compiled first.

    Args:
        config: configuration of the run; `eval` may differ from what it was trained with.
        workdir: directory of the run.
        checkpoint: 'best', 'latest' or a step number.

    Raises:
        InputError: no such run or checkpoint, one of another network, or an invalid plan.
    """
    one_device = mesh_lib.make_mesh(jax.local_devices()[:1])
    model = model_lib.load(workdir, checkpoint, config=config, mesh=one_device)

    return Viewer(
        name=config.data.name,
        classes=model.classes,
        colors=model.colors,
        heads=tuple(map(str, model.network.heads)),
        stride=model.network.stride,
        first=model.network.first,
        step=model.step,
        plan=str(model.plan),
        segment=_segment(model),
        attend=model.attention,
        examples=examples.of_run(model.workdir),
        image_bits=config.data.image_bits,
    )


def _segment(
    model: model_lib.TrainedModel,
) -> Callable[[UInt8[np.ndarray, 'h w 3']], UInt8[np.ndarray, 'h w']]:
    """Finds the classes of pixels; each of several scales is a program of its own (`by_scale`)."""

    def classes(
        network: Segmenter, images: UInt8[Array, '1 h w 3'], extent: Extent
    ) -> UInt8[Array, 'h w']:
        scores = inference.scores(network, images, model.plan, extent)
        return scores[0].argmax(-1).astype(jnp.uint8)

    def of_scale(
        network: Segmenter, images: UInt8[Array, '1 h w 3'], extent: Extent, *, scale: float
    ) -> Float[Array, 'h w classes']:
        return inference.of_scale(network, images, model.plan, scale, extent)[0]

    scales = [functools.partial(of_scale, scale=scale) for scale in model.plan.scales]

    def segment(image: UInt8[np.ndarray, 'h w 3']) -> UInt8[np.ndarray, 'h w']:
        height, width = image.shape[:2]
        if len(scales) == 1:
            return model.run_padded(classes, image)[:height, :width]
        total = sum(model.run_padded(each, image)[:height, :width] for each in scales)
        return np.argmax(total, -1).astype(np.uint8)

    return segment
