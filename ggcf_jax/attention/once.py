"""Kernels with a gradient that cannot be differentiated again: the refusal in words."""

import functools
from typing import Any, TypeVar

import jax

_Arrays = TypeVar('_Arrays')


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def only(kernels: str, arrays: _Arrays) -> _Arrays:
    """The same arrays; whoever differentiates what is computed from them is refused.

    For the forward and backward functions of a `jax.custom_vjp`: they see arrays that are being
    differentiated only where a gradient is differentiated.

    Args:
      kernels: what has no second derivative, for the message.
      arrays: what the forward or the backward function is given.
    """
    del kernels
    return arrays


def _refuse(kernels: str, *_: Any) -> Any:
    raise NotImplementedError(
        f"attention by {kernels} is differentiable once: for jax.hessian take implementation='xla'"
    )


only.defvjp(_refuse, _refuse)
