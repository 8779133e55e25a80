"""Convolutions of patches: kernels of even sides beside each other, as in patch embeddings."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, DTypeLike, Float

from ggcf_jax.models.layers.extent import Extent, zero_outside
from ggcf_jax.models.layers.forms import rewritten_for_cpu
from ggcf_jax.models.layers.layer_norm import layer_norm
from ggcf_jax.models.layers.linear import NORMAL
from ggcf_jax.models.layers.product import product


class PatchConv(nnx.Module):
    """A convolution of square patches that do not overlap, or of a dilated window instead.

    Maps are padded with zeros at the bottom and on the right to whole patches.

    Attributes:
        stride: distance between the first pixels of neighbouring outputs.
        centre: position that output 0 is centred on, of those of the input.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        side: int,
        *,
        dilation: int | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises kernel and bias.

        Args:
            in_features: number of channels of the input.
            out_features: number of channels of the output.
            side: height and width of a patch.
            dilation: None: patches do not overlap, and their side is the stride. A number: the
                stride is 1, and this the distance between neighbouring taps; zeros are added as
                TensorFlow's 'SAME' does, of an odd number one more at the far border.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        shape = (side, side, in_features, out_features)
        self.kernel = nnx.Param(NORMAL(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_features, jnp.float32))
        self.stride = side if dilation is None else 1
        self.dilation = dilation or 1
        reach = self.dilation * (side - 1)
        self.before = 0 if dilation is None else reach // 2
        self.centre = reach / 2 - self.before
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, 'b h w in_features'], *, extent: Extent | None = None
    ) -> Float[Array, 'b ceil(h/stride) ceil(w/stride) out_features']:
        """Convolves.

        Args:
            x: features.
            extent: extent of x; None where the maps are filled.
        """
        x = zero_outside(x, extent).astype(self.dtype)
        kernel, bias = (y[...].astype(self.dtype) for y in (self.kernel, self.bias))
        side = kernel.shape[0]
        if self.stride == 1:
            after = self.dilation * (side - 1) - self.before
            padding = ((self.before, after), (self.before, after))
            return bias + lax.conv_general_dilated(
                x,
                kernel,
                (1, 1),
                padding,
                rhs_dilation=(self.dilation, self.dilation),
                dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            )
        rest = [-length % side for length in x.shape[1:3]]
        x = jnp.pad(x, ((0, 0), (0, rest[0]), (0, rest[1]), (0, 0)))
        if rewritten_for_cpu():
            return bias + _product(x, kernel)
        numbers = ('NHWC', 'HWIO', 'NHWC')
        return bias + lax.conv_general_dilated(
            x, kernel, (side, side), 'VALID', dimension_numbers=numbers
        )


class PatchEmbedding(nnx.Module):
    """Patches of an image, and the norm behind them."""

    def __init__(
        self, features: int, side: int, *, epsilon: float, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        """Initialises the layers.

        Args:
            features: number of channels of the output.
            side: height and width of a patch in pixels.
            epsilon: added to the variance in the norm.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.conv = PatchConv(3, features, side, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(features, epsilon=epsilon, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, 'b h w 3'], *, extent: Extent | None = None
    ) -> Float[Array, 'b ceil(h/side) ceil(w/side) features']:
        """Applies convolution and norm.

        Args:
            x: normalised images.
            extent: extent of the images; None where they are filled.
        """
        return self.norm(self.conv(x, extent=extent))


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Patches as rows of a matrix."""
    side, _, channels, features = kernel.shape
    b, h, w, _ = x.shape
    x = x.reshape(b, h // side, side, w // side, side, channels).swapaxes(2, 3)
    y = product(x.reshape(-1, side * side * channels), kernel.reshape(-1, features))
    return y.reshape(b, h // side, w // side, features)
