"""Batch normalisation followed by its activation (activated batch norm)."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

Activation = Literal['relu', 'leaky_relu', 'relu6', 'identity']
Norm = Literal['batch_norm', 'abs_gamma']

ACTIVATIONS = {
    'relu': jax.nn.relu,
    'leaky_relu': jax.nn.leaky_relu,  # slope 0.01, as InPlace-ABN
    'relu6': jax.nn.relu6,
    'identity': lambda x: x,
}
NORMS = ('batch_norm', 'abs_gamma')
STATISTICS = ('batch', 'running')
EPSILON = 1e-5


class ActivatedNorm(nnx.Module):
    """Batch norm over batch, rows and columns, then an activation.

    Inside `jax.jit` over a batch-sharded array the statistics are those of the global batch, so
    the norm is synchronised over all devices by construction. Statistics, scale and bias are
    float32 whatever the dtype of x; the running statistics decay by 0.9 (momentum 0.1 in PyTorch's
    words), epsilon is 1e-5.

    Attributes:
        statistics: that training normalises with: 'batch', or 'running' ones, see `freeze`.
    """

    def __init__(
        self,
        features: int,
        activation: Activation,
        *,
        norm: Norm = 'batch_norm',
        scale_init=nnx.initializers.ones_init(),
        dtype,
        rngs: nnx.Rngs,
    ):
        """Args:
        norm: 'batch_norm' scales by gamma; 'abs_gamma' by |gamma| + 1e-5, so that the norm can be
            inverted (InPlace-ABN, Rota Bulo et al., 2018, and its published weights).
        """
        promote = {'batch_norm': _promote, 'abs_gamma': _promote_abs_gamma}[norm]
        self.norm = nnx.BatchNorm(
            features,
            momentum=0.9,
            epsilon=EPSILON,
            scale_init=scale_init,
            dtype=dtype,
            promote_dtype=promote,
            rngs=rngs,
        )
        self.activation = activation
        self.statistics = 'batch'

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises x [b, h, w, features]; `train` uses and updates the batch statistics."""
        running = not train or self.statistics == 'running'
        return ACTIVATIONS[self.activation](self.norm(x, use_running_average=running))


def freeze(module: nnx.Module) -> None:
    """Lets every norm in a module keep its running statistics and use them in training, too.

    For fine-tuning published weights with batches too small for statistics of their own. Scales and
    biases go on learning.
    """
    for _, node in nnx.iter_graph(module):
        if isinstance(node, ActivatedNorm):
            node.statistics = 'running'


def _promote(arrays: tuple, *, dtype) -> tuple:
    """nnx.BatchNorm's hook for casting its (x, mean, var, scale, bias): only x.

    The default would round the running statistics to bfloat16 when evaluating.
    """
    x, *others = arrays
    return (x.astype(dtype), *others)


def _promote_abs_gamma(arrays: tuple, *, dtype) -> tuple:
    """As `_promote`, with |gamma| + epsilon for gamma.

    Unlike |gamma| its derivative at 0 is 1: a residual branch that starts there must learn.
    """
    x, mean, var, scale, bias = _promote(arrays, dtype=dtype)
    return x, mean, var, jnp.where(scale < 0, -scale, scale) + EPSILON, bias
