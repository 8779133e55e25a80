"""Layer normalisation over channels, with float32 statistics, scale and bias (Ba et al., 2016)."""

import functools
from typing import NamedTuple

import jax
from flax import nnx
from jax import lax
from jaxtyping import Array, DTypeLike, Float

from ggcf_jax.attention.row_sums import sum_of_products
from ggcf_jax.models.layers.batch_norm import widened
from ggcf_jax.models.layers.forms import in_memory, rewritten_for_cpu
from ggcf_jax.models.layers.norm import promote_input
from ggcf_jax.models.layers.shares import of_own_images


class LayerNorm(nnx.LayerNorm):
    """As `nnx.LayerNorm`; on CPUs with a backward pass of its own (`_normalize`)."""

    def __call__(
        self, x: Float[Array, '*positions c'], *, mask: jax.Array | None = None
    ) -> Float[Array, '*positions c']:
        """Normalises each position.

        Args:
            x: features.
            mask: which channels count; None: all.
        """
        if mask is not None or not rewritten_for_cpu():
            return super().__call__(x, mask=mask)
        assert self.scale is not None and self.bias is not None  # as built
        x, scale, bias = self.promote_dtype((x, self.scale[...], self.bias[...]), dtype=self.dtype)
        return _normalize(x, scale, bias, self.epsilon)


def layer_norm(
    features: int, *, epsilon: float = 1e-6, dtype: DTypeLike, rngs: nnx.Rngs
) -> LayerNorm:
    """Builds a norm of each position by itself.

    It reads no other position and has no running statistics: padding, batches and training change
    nothing. The variance is that of the centred values, as PyTorch computes it.

    Args:
        features: number of channels.
        epsilon: added to the variance.
        dtype: dtype of the output.
        rngs: source of the initial parameters.
    """
    return LayerNorm(
        features,
        epsilon=epsilon,
        use_fast_variance=False,
        dtype=dtype,
        promote_dtype=promote_input,
        rngs=rngs,
    )


class _Kept(NamedTuple):
    """What the backward pass needs; mean and inverse of the standard deviation have one channel."""

    x: jax.Array
    mean: jax.Array
    inverse: jax.Array
    scale: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """The normalised features, in the dtype of x.

    The gradient of x that JAX derives ends with adding a number for each position. XLA:CPU computes
    such a sum anew for each operation that reads it, and in a chain of residual blocks that is the
    gradient of all blocks behind. Here it ends with the difference of two maps.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, _Kept]:
    # Else XLA:CPU would hand YNNPACK the sums with all that x is computed from, back to the
    # activation before a product (docs/benchmark.md).
    wide = widened(in_memory(x))
    mean = wide.mean(-1, keepdims=True)
    centred = wide - mean
    inverse = lax.rsqrt(lax.square(centred).mean(-1, keepdims=True) + epsilon)
    y = centred * (inverse * scale) + bias
    return y.astype(x.dtype), _Kept(x, mean, inverse, scale)


def _backward(epsilon: float, kept: _Kept, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon
    x, mean, inverse, scale = kept
    normal = (x.astype(mean.dtype) - mean) * inverse
    dy = dy.astype(mean.dtype)
    each = dy * scale
    along = sum_of_products(each, normal) / x.shape[-1]
    dx = inverse * each - inverse * (normal * along + each.mean(-1, keepdims=True))
    positions = tuple(range(x.ndim - 1))
    dscale, dbias = dy * normal, dy
    if positions:
        dscale, dbias = of_own_images(lambda *maps: [a.sum(positions) for a in maps], dscale, dbias)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


_normalize.defvjp(_forward, _backward)
