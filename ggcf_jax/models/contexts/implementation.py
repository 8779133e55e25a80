"""What computes the attention of a context module: `config.model.attention`, checked."""

from collections.abc import Iterable

from jaxtyping import DTypeLike

from ggcf_jax.attention import Graph, resolve_implementation
from ggcf_jax.attention.implementations import Implementation
from ggcf_jax.errors import InputError


def check(
    name: Implementation,
    heads: Iterable[Graph],
    *,
    dtype: DTypeLike,
    key_channels: int,
    value_channels: int,
) -> Implementation:
    """The implementation, where it can attend on the graphs of all heads.

    Args:
        name: `config.model.attention`.
        heads: graph of each head.
        dtype: dtype of the computation.
        key_channels: number of channels of queries and keys.
        value_channels: number of channels of values.

    Raises:
        InputError: it was named and cannot.
    """
    for graph in heads:
        try:
            resolve_implementation(
                graph,
                implementation=name,
                dtype=dtype,
                key_channels=key_channels,
                value_channels=value_channels,
            )
        except ValueError as error:
            raise InputError(f'config.model.attention={name}: {error}') from error
    return name
