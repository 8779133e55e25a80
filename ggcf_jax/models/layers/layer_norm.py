"""Layer normalisation over channels, with float32 statistics, scale and bias."""

from flax import nnx
from jaxtyping import DTypeLike

from ggcf_jax.models.layers.norm import promote_input


def layer_norm(
    features: int, *, epsilon: float = 1e-6, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.LayerNorm:
    """Builds a norm of each position by itself (Ba et al., 2016).

    It reads no other position and has no running statistics: padding, batches and training change
    nothing. The variance is that of the centred values, as PyTorch computes it.

    Args:
        features: number of channels.
        epsilon: added to the variance.
        dtype: dtype of the output.
        rngs: source of the initial parameters.
    """
    return nnx.LayerNorm(
        features,
        epsilon=epsilon,
        use_fast_variance=False,
        dtype=dtype,
        promote_dtype=promote_input,
        rngs=rngs,
    )
