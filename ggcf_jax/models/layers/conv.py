"""Convolutions with PyTorch's symmetric padding, alone and with an activated norm."""

from flax import nnx
from jaxtyping import Array, DTypeLike, Float

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
        rngs=rngs,
    )


class ConvNorm(nnx.Module):
    """Convolution without bias -> batch norm -> activation."""

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
        self, x: Float[Array, 'b h w in_features'], *, train: bool
    ) -> Float[Array, 'b ceil(h/stride) ceil(w/stride) out_features']:
        """Applies convolution, norm and activation.

        Args:
            x: features.
            train: whether batch statistics are used and updated.
        """
        return self.norm(mark_convolution(self.conv(x)), train=train)
