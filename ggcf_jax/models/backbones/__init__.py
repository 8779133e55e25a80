"""Backbones: one file for each family of networks, and the contract that all of them fulfil.

A module here offers its networks in a dictionary `BACKBONES`, name -> builder; the name is
`config.model.backbone.name`. A backbone of another package is named
`my_package.my_module:builder`. `Backbone` and `BackboneBuilder` say what such code must do; no
class has to inherit from them.
"""

from typing import Any, NamedTuple, Protocol

from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from ggcf_jax.models.layers.extent import Extent
from ggcf_jax.models.layers.remat import Remat


class Backbone(Protocol):
    """A network without classifier: an `nnx.Module` that returns the features of four stages.

    Parameters are `nnx.Param` in float32; running statistics, if there are any, are
    `nnx.BatchStat`. Other kinds of variables are not supported. The module must be built and called
    by functions that JAX can trace, and its parameters must follow from the random streams alone.

    Attributes:
        features: number of channels of each of the four stages.
        stride: pixels per position of the last stage (output stride), such as 8, 16 or 32. For
            images of h x w pixels the last stage has ceil(h / stride) x ceil(w / stride) positions.

    Two more attributes have a value for each stage, and may be left out:

        strides: pixels per position; without it the third stage has that of the fourth. It may have
            half of it, too.
        first: pixel, down and across, that the first feature is centred on, in [0, stride of the
            stage): feature (i, j) on (first + stride * i, first + stride * j). Without it 0;
            features of patches have (stride - 1) / 2.
    """

    features: tuple[int, ...]
    stride: int

    def __call__(
        self,
        x: Float[Array, 'b h w 3'],
        *,
        train: bool,
        key: PRNGKeyArray | None,
        extent: Extent | None = None,
    ) -> tuple[Float[Array, 'b _ _ _'], ...]:
        """Computes the features of a batch of images.

        Args:
            x: images, normalised as `config.model.input` says, in the dtype of the computation.
            train: whether batch statistics are used and updated, and dropout is active. Under
                `jax.jit` over a batch-sharded array a mean over the batch axis is one over all
                devices.
            key: random key for dropout; None unless `train`.
            extent: extent of the images in a padded batch, whose features must be those of each
                image alone: `layers.extent` says how. What x and the features hold outside of it is
                arbitrary. None where the images are filled, and always when training.

        Returns:
            Features of the four stages. The third one feeds the auxiliary head, the fourth one the
            context module.
        """
        ...


class Lattice(NamedTuple):
    """Where the features of a stage lie in the image.

    Attributes:
        stride: pixels per position.
        first: pixel that the first feature is centred on.
    """

    stride: int
    first: float


def lattice(backbone: Backbone, stage: int) -> Lattice:
    """Returns where the features of a stage lie.

    Args:
        backbone: the network.
        stage: 2 for the third, 3 for the fourth.
    """
    strides = getattr(backbone, 'strides', (backbone.stride,) * 4)
    return Lattice(strides[stage], getattr(backbone, 'first', (0.0,) * 4)[stage])


class BackboneBuilder(Protocol):
    """Builds a backbone from the configuration."""

    def __call__(self, model: ConfigDict, *, remat: Remat, dtype: Any, rngs: nnx.Rngs) -> Backbone:
        """Builds a backbone with fresh parameters.

        Args:
            model: `config.model`; `model.backbone` has the fields of the backbone, and
                `model.activation` and `model.norm` those that all parts of the network share.
            remat: `config.train.remat`: what the backward pass keeps in memory. `layers.remat.run`
                applies it to one block; a backbone may ignore it.
            dtype: dtype of the computation; parameters stay float32.
            rngs: random streams; parameters are drawn from `params`.

        Raises:
            InputError: a field has a value that this backbone does not support.
        """
        ...
