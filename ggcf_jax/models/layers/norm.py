"""Activations, and batch normalisation followed by one (activated batch norm)."""

from typing import Any, Literal, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, DTypeLike, Float

from ggcf_jax.models.layers.batch_norm import normalize, widened
from ggcf_jax.models.layers.forms import rewritten_for_cpu

Activation = Literal['relu', 'leaky_relu', 'relu6', 'gelu', 'identity']
Norm = Literal['batch_norm', 'abs_gamma']


def gelu(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
    """x times the normal distribution function of x, without the usual approximation by tanh.

    As PyTorch: by erf, in float32 at least (`jax.nn.gelu` takes erfc, six times slower on CPUs).
    """
    if rewritten_for_cpu():
        return _gelu_of_cpu(x)
    wide = widened(x)
    return (0.5 * wide * (1 + _erf(wide))).astype(x.dtype)


def _erf(x: jax.Array) -> jax.Array:
    return lax.erf(x * np.sqrt(0.5).astype(x.dtype))


@jax.custom_vjp
def _gelu_of_cpu(x: jax.Array) -> jax.Array:
    """With a backward pass in which x meets the gradient first.

    So XLA:CPU keeps x in memory. It would compute x for the one pass and for the other, and where
    that is a depthwise convolution its nine products.
    """
    return _gelu_forward(x)[0]


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    wide = widened(x)
    erf = _erf(wide)
    return (0.5 * wide * (1 + erf)).astype(x.dtype), (x, erf)


def _gelu_backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array]:
    x, erf = saved
    wide, dy = widened(x), widened(dy)
    density = jnp.exp(-0.5 * wide * wide) * np.sqrt(0.5 / np.pi).astype(wide.dtype)
    return (((dy * wide) * density + dy * (0.5 * (1 + erf))).astype(x.dtype),)


_gelu_of_cpu.defvjp(_gelu_forward, _gelu_backward)


def relu(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
    """The positive part of x; the gradient at 0 is 0.

    On CPUs it is a selection: XLA:CPU computes a maximum of x and a number anew for each operation
    that reads it, and what is in it with it. For a residual connection that is the connection
    before, so that each block of a stage would add up all blocks before it.
    """
    return _selected(x) if rewritten_for_cpu() else jax.nn.relu(x)


@jax.custom_jvp
def _selected(x: jax.Array) -> jax.Array:
    return jnp.where(x < 0, 0, x)  # NaN stays


@_selected.defjvp
def _selected_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return _selected(x), jnp.where(x > 0, dx, 0)


ACTIVATIONS = {
    'relu': relu,
    'leaky_relu': jax.nn.leaky_relu,  # slope 0.01, as InPlace-ABN
    'relu6': jax.nn.relu6,
    'gelu': gelu,
    'identity': lambda x: x,
}
NORMS = ('batch_norm', 'abs_gamma')
STATISTICS = ('batch', 'running')
EPSILON = 1e-5
_MOMENTUM = 0.9

_Arrays = TypeVar('_Arrays', bound=tuple[Any, ...])


class ActivatedNorm(nnx.Module):
    """Batch norm over batch, rows and columns, then an activation.

    Inside `jax.jit` over a batch-sharded array the statistics are those of the global batch, so
    the norm is synchronised over all devices by construction. Statistics, scale and bias are
    float32 whatever the dtype of x; the running statistics decay by 0.9 (PyTorch's momentum 0.1),
    epsilon is 1e-5.

    Attributes:
        statistics: statistics that training normalises with: 'batch', or 'running' after `freeze`.
    """

    def __init__(
        self,
        features: int,
        activation: Activation,
        *,
        norm: Norm = 'batch_norm',
        scale_init: nnx.Initializer = nnx.initializers.ones_init(),
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialises scale, bias and statistics.

        Args:
            features: number of channels.
            activation: activation behind the norm.
            norm: 'batch_norm' scales by gamma; 'abs_gamma' by |gamma| + 1e-5, so that the norm can
                be inverted (InPlace-ABN, Rota Bulo et al., 2018, and its published weights).
            scale_init: initializer of gamma.
            dtype: dtype of the output.
            rngs: source of the initial parameters.
        """
        self.norm = nnx.BatchNorm(
            features,
            momentum=_MOMENTUM,
            epsilon=EPSILON,
            scale_init=scale_init,
            dtype=dtype,
            promote_dtype=promote_input if norm == 'batch_norm' else _promote_abs_gamma,
            rngs=rngs,
        )
        self.activation = activation
        self.statistics = 'batch'

    def __call__(
        self, x: Float[Array, 'b h w features'], *, train: bool
    ) -> Float[Array, 'b h w features']:
        """Applies norm and activation.

        Args:
            x: features.
            train: whether batch statistics are used and updated.
        """
        activation = ACTIVATIONS[self.activation]
        norm = self.norm
        if not train or self.statistics == 'running':
            return activation(norm(x, use_running_average=True))
        assert norm.scale is not None and norm.bias is not None  # as built
        arrays = (x, norm.mean[...], norm.var[...], norm.scale[...], norm.bias[...])
        x, mean, var, scale, bias = norm.promote_dtype(arrays, dtype=norm.dtype)
        batch = normalize(x, scale, bias, EPSILON, norm.dtype)
        norm.mean[...] = _MOMENTUM * mean + (1 - _MOMENTUM) * lax.stop_gradient(batch.mean)
        norm.var[...] = _MOMENTUM * var + (1 - _MOMENTUM) * lax.stop_gradient(batch.var)
        return activation(batch.y)


def freeze(module: object) -> None:
    """Freezes the running statistics of every norm in a module; training uses them, too.

    For fine-tuning published weights with batches too small for statistics of their own. Scales and
    biases are still trained.

    Args:
        module: network or part of one; its `ActivatedNorm`s are changed in place.
    """
    for _, node in nnx.iter_graph(module):
        if isinstance(node, ActivatedNorm):
            node.statistics = 'running'


def promote_input(arrays: _Arrays, /, *, dtype: Any = None, inexact: bool = True) -> _Arrays:
    """The hook for casting of norms of nnx, (x, mean, var, scale, bias) or fewer: only x is cast.

    The default would round scale, bias and the running statistics to bfloat16.
    """
    del inexact
    x, *others = arrays
    return cast(_Arrays, (x.astype(dtype), *others))


def _promote_abs_gamma(arrays: _Arrays, /, *, dtype: Any = None, inexact: bool = True) -> _Arrays:
    """As `promote_input`, with |gamma| + epsilon for gamma.

    Unlike |gamma| its derivative at 0 is 1: a residual branch that starts there must learn.
    """
    x, mean, var, scale, bias = promote_input(arrays, dtype=dtype, inexact=inexact)
    scale = jnp.where(scale < 0, -scale, scale) + EPSILON
    return cast(_Arrays, (x, mean, var, scale, bias))
