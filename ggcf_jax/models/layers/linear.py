"""Linear layers of channels, in the form that the platform runs fast."""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from ggcf_jax.models.layers.forms import for_cpu
from ggcf_jax.models.layers.product import product

# timm's trunc_normal_ cuts at 2, which are 100 of these deviations.
NORMAL = nnx.initializers.normal(0.02)


def linear(
    in_features: int,
    out_features: int,
    *,
    use_bias: bool = True,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """Builds a layer whose kernel starts as those of ConvNeXt, Swin and ViT: N(0, 0.02^2).

    Args:
        in_features: number of channels of the input.
        out_features: number of channels of the output.
        use_bias: whether a bias, 0 at first, is added.
        dtype: dtype of the computation; parameters are float32.
        rngs: source of the initial parameters.
    """
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=use_bias,
        kernel_init=NORMAL,
        dtype=dtype,
        dot_general=_dot_general,
        rngs=rngs,
    )


def _dot_general(
    x: Float[Array, '*b c'],
    kernel: Float[Array, 'c features'],
    dimension_numbers: Any,
    *,
    precision: Any = None,
    out_sharding: Any = None,
) -> Float[Array, '*b features']:
    """`jax.lax.dot_general`; on CPUs of one matrix, whose gradient transposes no operand."""
    if out_sharding is None and for_cpu():
        y = product(x.reshape(-1, x.shape[-1]), kernel, precision)
        return y.reshape(*x.shape[:-1], -1)
    return jax.lax.dot_general(
        x, kernel, dimension_numbers, precision=precision, out_sharding=out_sharding
    )
