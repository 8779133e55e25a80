"""No context module: the row "Baseline" of the paper's tables."""

from flax import nnx
from jaxtyping import Array, DTypeLike, Float
from ml_collections import ConfigDict

from ggcf_jax.models.layers.conv import ConvNorm
from ggcf_jax.models.layers.extent import Extent
from ggcf_jax.models.layers.norm import Activation, Norm


class NoContext(nnx.Module):
    """Only the 3x3 reduction that stands before GGCF, so that the two differ by the context.

    Attributes:
        features: number of channels of the output.
    """

    def __init__(
        self,
        in_features: int,
        *,
        channels: int,
        activation: Activation,
        norm: Norm = 'batch_norm',
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the convolution.

        Args:
            in_features: number of channels of the backbone's features.
            channels: number of channels of the output.
            activation: activation behind the convolution.
            norm: norm behind the convolution.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.features = channels
        self.reduce = ConvNorm(
            in_features, channels, 3, activation, norm=norm, dtype=dtype, rngs=rngs
        )

    def __call__(
        self, x: Float[Array, 'b h w in_features'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b h w features']:
        """Reduces the features.

        Args:
            x: features of the backbone.
            train: whether batch statistics are used and updated.
            extent: extent of x; None where the maps are filled.
        """
        return self.reduce(x, train=train, extent=extent)


def build(model: ConfigDict, in_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> NoContext:
    """Builds the module from `config.model` (reads `activation`, `norm` and `ggcf.channels`)."""
    return NoContext(
        in_features,
        channels=model.ggcf.channels,
        activation=model.activation,
        norm=model.norm,
        dtype=dtype,
        rngs=rngs,
    )


CONTEXTS = {'none': build}
