"""Sums of products over the last axis, in the form that the platform runs fast."""

from jax import lax
from jaxtyping import Array, Float

from ggcf_jax.attention import target


def sum_of_products(
    a: Float[Array, '*rows channels'], b: Float[Array, '*rows channels']
) -> Float[Array, '*rows 1']:
    """Sums of a * b over the channels.

    On CPUs they are products of vectors: where any axis has length one, XLA:CPU of jaxlib 0.10
    takes seven times as long for a sum of products (docs/benchmark.md). Elsewhere a product may be
    rounded to fewer bits than a sum.

    Args:
        a: float32 or float64.
        b: in the dtype and shape of a.
    """
    if target.current() != 'cpu':
        return (a * b).sum(-1, keepdims=True)
    rows, channels = tuple(range(a.ndim - 1)), (a.ndim - 1,)
    return lax.dot_general(a, b, ((channels, channels), (rows, rows)))[..., None]
