"""Whether an operation is computed in a form of its own, because the platform runs that faster."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from ggcf_jax.attention import target


def for_cpu() -> bool:
    """Whether to compute in the forms that XLA:CPU runs fast.

    They are for maps that one device has whole: with the mesh axis `space`, whose devices share the
    rows of an image, XLA exchanges the borders of convolutions and windows, and would gather whole
    maps for products and slices.
    """
    rows = jax.sharding.get_abstract_mesh().shape.get('space', 1)
    return target.current() == 'cpu' and rows == 1


_convolutions_stay: contextvars.ContextVar[bool] = contextvars.ContextVar('stay', default=False)


@contextlib.contextmanager
def keeping_convolutions() -> Iterator[None]:
    """Inside, convolutions and what is behind them are traced as they are, on CPUs, too.

    For another runtime, or to count.

    Those of 1 x 1 are products of matrices all the same.
    """
    token = _convolutions_stay.set(True)
    try:
        yield
    finally:
        _convolutions_stay.reset(token)


def convolutions_stay() -> bool:
    """Whether it is traced inside of `keeping_convolutions`."""
    return _convolutions_stay.get()


def rewritten_for_cpu() -> bool:
    """Whether to compute in forms that XLA:CPU runs fast and no other runtime is to see."""
    return for_cpu() and not convolutions_stay()


def in_memory(x: jax.Array) -> jax.Array:
    """x as an array of its own on CPUs: what reads it does not compute it anew, in its own order.

    As a call that XLA does not inline. It removes optimization barriers before it fuses, but JAX
    removes calls that return what they are given where it takes derivatives.

    Args:
        x: any array; gradients pass.
    """
    with set_xla_metadata(inlineable='false'):
        return jax.jit(lax.optimization_barrier)(x)
