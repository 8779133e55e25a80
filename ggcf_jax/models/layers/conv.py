"""Convolutions with PyTorch's symmetric padding, alone and with an activated norm."""

from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from ggcf_jax.models.layers.dilated import conv_general_dilated
from ggcf_jax.models.layers.extent import Extent, zero_outside
from ggcf_jax.models.layers.norm import ActivatedNorm, Activation, Norm
from ggcf_jax.models.layers.remat import mark_convolution

HE_FAN_OUT = nnx.initializers.variance_scaling(2.0, 'fan_out', 'normal')
# What torch.nn.Conv2d starts from; keeps unscaled affinities (Eq. 3) small at the start.
TORCH_UNIFORM = nnx.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def conv(
    in_features: int,
    out_features: int,
    kernel: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    use_bias: bool = False,
    kernel_init: nnx.Initializer = HE_FAN_OUT,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Builds a square convolution whose output i is centred on input `stride * i`.

    'SAME' padding would shift the grid by a pixel at even sizes; symmetric padding keeps features
    on multiples of the output stride, where published weights and our upsampling expect them.

    Args:
        in_features: number of channels of the input.
        out_features: number of channels of the output.
        kernel: side of the kernel, an odd number.
        stride: distance between the centres of neighbouring outputs.
        dilation: distance between neighbouring taps of the kernel.
        use_bias: whether a bias is added.
        kernel_init: initializer of the kernel.
        dtype: dtype of the computation; parameters are float32.
        rngs: source of the initial parameters.
    """
    padding = dilation * (kernel // 2)
    return nnx.Conv(
        in_features,
        out_features,
        (kernel, kernel),
        strides=stride,
        padding=((padding, padding), (padding, padding)),
        kernel_dilation=dilation,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=dtype,
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )


def convolve(
    layer: nnx.Conv, x: Float[Array, 'b h w c'], extent: Extent | None = None
) -> Float[Array, 'b _ _ _']:
    """Applies a convolution of `conv`, to which maps of a given extent end there.

    Args:
        layer: the convolution.
        x: features.
        extent: extent of x; None where the maps are filled.

    Returns:
        Features of the extent `strided(extent, stride of the layer)`.
    """
    is_pointwise = set(layer.kernel_size) == {1}  # reads no position but its own
    return layer(x if is_pointwise else zero_outside(x, extent))


class ConvNorm(nnx.Module):
    """Convolution without bias -> batch norm -> activation.

    Attributes:
        stride: stride of the convolution.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel: int,
        activation: Activation,
        *,
        stride: int = 1,
        dilation: int = 1,
        norm: Norm = 'batch_norm',
        scale_init: nnx.Initializer = nnx.initializers.ones_init(),
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises the layers.

        Args:
            in_features: number of channels of the input.
            out_features: number of channels of the output.
            kernel: side of the kernel, an odd number.
            activation: activation behind the norm.
            stride: stride of the convolution.
            dilation: dilation of the convolution.
            norm: form of the norm's scale, see `ActivatedNorm`.
            scale_init: initializer of the norm's scale.
            dtype: dtype of the computation; parameters are float32.
            rngs: source of the initial parameters.
        """
        self.stride = stride
        self.conv = conv(
            in_features,
            out_features,
            kernel,
            stride=stride,
            dilation=dilation,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = ActivatedNorm(
            out_features, activation, norm=norm, scale_init=scale_init, dtype=dtype, rngs=rngs
        )

    def __call__(
        self, x: Float[Array, 'b h w in_features'], *, train: bool, extent: Extent | None = None
    ) -> Float[Array, 'b ceil(h/stride) ceil(w/stride) out_features']:
        """Applies convolution, norm and activation.

        Args:
            x: features.
            train: whether batch statistics are used and updated.
            extent: extent of x; None where the maps are filled.
        """
        return self.norm(mark_convolution(convolve(self.conv, x, extent)), train=train)
