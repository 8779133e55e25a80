"""Batch normalisation followed by its activation (activated batch norm)."""

from typing import Literal

import jax
from flax import nnx

Activation = Literal['relu', 'leaky_relu', 'identity']

ACTIVATIONS = {
    'relu': jax.nn.relu,
    'leaky_relu': jax.nn.leaky_relu,  # slope 0.01, as InPlace-ABN
    'identity': lambda x: x,
}


class ActivatedNorm(nnx.Module):
    """Batch norm over batch, rows and columns, then an activation.

    Inside `jax.jit` over a batch-sharded array the statistics are those of the global batch, so
    the norm is synchronised over all devices by construction. Statistics are computed in float32;
    the running ones decay by 0.9 (momentum 0.1 in PyTorch's words), epsilon is 1e-5.
    """

    def __init__(
        self,
        features: int,
        activation: Activation,
        *,
        scale_init=nnx.initializers.ones_init(),
        dtype,
        rngs: nnx.Rngs,
    ):
        self.norm = nnx.BatchNorm(
            features, momentum=0.9, epsilon=1e-5, scale_init=scale_init, dtype=dtype, rngs=rngs
        )
        self.activation = activation

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises x [b, h, w, features]; `train` uses and updates the batch statistics."""
        return ACTIVATIONS[self.activation](self.norm(x, use_running_average=not train))
