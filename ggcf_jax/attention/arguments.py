"""The arguments of the public functions: checked, and brought into one form.

Every refusal is a ValueError that names the argument and its value.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from ggcf_jax.attention import position_bias
from ggcf_jax.attention.graphs import Graph
from ggcf_jax.attention.partial import Registers
from ggcf_jax.attention.pruning import Prune

Priority = Literal['top', 'random']

PRIORITIES: tuple[Priority, ...] = ('top', 'random')


def check_maps(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    """Refuses queries of one map, and keys and values of another, that do not fit together."""
    _check_forms(q, k, v)
    if (q.shape[0], *q.shape[3:]) != (k.shape[0], *k.shape[3:]):
        raise ValueError(
            f'q and k must be alike in batch, heads and channels, not {q.shape} and {k.shape}'
        )
    _check_values(k, v)


def check_arrays(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    """Refuses arrays that do not fit together."""
    _check_forms(q, k, v)
    if q.shape != k.shape:
        raise ValueError(f'q and k must have one shape, not {q.shape} and {k.shape}')
    _check_values(q, v)


def _check_forms(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    for name, x in (('q', q), ('k', k), ('v', v)):
        if jnp.ndim(x) != 5:
            raise ValueError(
                f'{name} must be [batch, height, width, heads, channels], not of shape '
                f'{jnp.shape(x)}'
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f'{name} must be floating point, not {x.dtype}')
        if 0 in x.shape:
            raise ValueError(f'{name} is empty: shape {x.shape}')
    if q.dtype != k.dtype:
        raise ValueError(f'q and k must have one dtype, not {q.dtype} and {k.dtype}')


def _check_values(k: jax.Array, v: jax.Array) -> None:
    if v.shape[:3] != k.shape[:3] or v.shape[3] not in (1, k.shape[3]):
        raise ValueError(
            f'v must be [batch, height, width, heads or 1, channels] for k {k.shape}, not {v.shape}'
        )


def check_valid(valid: jax.Array | None, q: jax.Array) -> None:
    """Refuses what does not say for each position whether it may be attended to."""
    if valid is None:
        return
    if jnp.shape(valid) != q.shape[:3]:
        raise ValueError(
            f'valid must be [batch, height, width] = {q.shape[:3]}, not of shape {jnp.shape(valid)}'
        )
    if not jnp.issubdtype(jnp.result_type(valid), bool):
        raise ValueError(f'valid must be bool, not {jnp.result_type(valid)}')


def check_bias(bias: jax.Array | None, graphs: Sequence[Graph], q: jax.Array) -> None:
    """Refuses a table that does not have every offset between neighbours."""
    if bias is None:
        return
    _, h, w, heads, _ = q.shape
    shape = jnp.shape(bias)
    if len(shape) != 3 or shape[0] not in (1, heads) or not (shape[1] % 2 and shape[2] % 2):
        raise ValueError(
            f'bias must be [1 or {heads}, 2 R + 1, 2 C + 1] for {heads} heads, with the offset '
            f'(0, 0) in the middle, not of shape {shape}'
        )
    if not jnp.issubdtype(bias.dtype, jnp.floating):
        raise ValueError(f'bias must be floating point, not {bias.dtype}')
    for graph in graphs:
        if graph.trainable:
            raise ValueError(f'{graph.kind()} has a bias of its own: give no other')
        rows, columns = position_bias.reach(graph, h, w)
        if shape[1] // 2 < rows or shape[2] // 2 < columns:
            raise ValueError(
                f'bias of shape {shape} ends before the neighbours of {graph} on a map of {h} x '
                f'{w}: it needs [., {2 * rows + 1}, {2 * columns + 1}] or more'
            )


def check_registers(registers: Registers | None, q: jax.Array, v: jax.Array) -> None:
    """Refuses registers that do not fit to queries and values."""
    if registers is None:
        return
    if not isinstance(registers, Registers):
        raise ValueError(f'registers must be Registers(k, v), not {registers!r}')
    b, _, _, heads, dk = q.shape
    tokens = registers.k.shape[1]
    k_shapes = [(n, tokens, heads, dk) for n in (1, b)]
    v_shapes = [(n, tokens, m, v.shape[-1]) for n in (1, b) for m in (1, heads)]
    if registers.k.shape not in k_shapes or registers.v.shape not in v_shapes or not tokens:
        raise ValueError(
            f'registers must be k [1 or {b}, tokens, {heads}, {dk}] and v [1 or {b}, tokens, 1 or '
            f'{heads}, {v.shape[-1]}], not {registers.k.shape} and {registers.v.shape}'
        )
    if registers.k.dtype != q.dtype or registers.v.dtype != v.dtype:
        raise ValueError(
            f'registers must have the dtypes of q and v, {q.dtype} and {v.dtype}, not '
            f'{registers.k.dtype} and {registers.v.dtype}'
        )


def check_graph(graph: object) -> Graph:
    """The graph; what is none is refused."""
    if isinstance(graph, type) and issubclass(graph, Graph):
        raise ValueError(
            f'{graph.__name__} is a class: make a graph of it, such as Full(), Local(8)'
        )
    if not isinstance(graph, Graph):
        raise ValueError(
            f'{graph!r} is no graph: write one such as Local(8), parse a text with '
            'ggcf_jax.attention.parse, or subclass ggcf_jax.attention.Graph'
        )
    return graph


def head_runs(graph: object, count: int) -> list[tuple[Graph, int]]:
    """Neighbouring heads of one graph: (graph, number of heads) each.

    Args:
      graph: one graph for all heads, or one per head.
      count: number of heads.

    Raises:
      ValueError: something else, or another number of graphs.
    """
    if not isinstance(graph, (tuple, list)):
        return [(check_graph(graph), count)]
    for head in graph:
        check_graph(head)
    if len(graph) != count:
        raise ValueError(f'{len(graph)} graphs were given for {count} heads')
    runs: list[tuple[Graph, int]] = []
    for head in graph:
        # Graphs with parameters are equal only to themselves.
        if runs and (head is runs[-1][0] or (not head.trainable and head == runs[-1][0])):
            runs[-1] = (head, runs[-1][1] + 1)
        else:
            runs.append((head, 1))
    return runs


def check_positions(positions: Any, h: int, w: int) -> jax.Array:
    """Positions as an integer array [m, 2] inside an h x w map."""
    traced = isinstance(positions, jax.core.Tracer)
    positions = positions if traced else np.asarray(positions)
    if positions.ndim != 2 or positions.shape[1] != 2:
        raise ValueError(f'positions must be [queries, 2], not of shape {positions.shape}')
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise ValueError(f'positions must be integers, not {positions.dtype}')
    if not traced:
        outside = ((positions < 0) | (positions >= (h, w))).any(1)
        if outside.any():
            raise ValueError(
                f'position {positions[outside][0].tolist()} lies outside the map of {(h, w)}'
            )
    return positions


def scaled(q: jax.Array, scale: object) -> tuple[jax.Array, float]:
    """Queries and the factor that is left for their affinities: arrays go into the queries."""
    if isinstance(scale, numbers.Real) and math.isfinite(scale):
        return q, float(scale)
    if isinstance(scale, jax.Array) and scale.ndim == 0 and scale.dtype != bool:
        return q * scale.astype(q.dtype), 1.0
    raise ValueError(f'scale must be a finite number or a scalar array, not {scale!r}')


def prune(
    keep: int | None,
    drop_rate: float | None,
    pruning: Priority,
    key: PRNGKeyArray | None,
    *,
    width: int,
) -> Prune | None:
    """The checked options of Context Pruning on maps of a width; None if nothing is pruned."""
    if pruning not in PRIORITIES:
        raise ValueError(f"pruning {pruning!r} is not one of 'top', 'random'")
    if keep is not None and drop_rate is not None:
        raise ValueError(f'give keep={keep!r} or drop_rate={drop_rate!r}, not both')
    if keep is None and drop_rate is None:
        if pruning == 'random':
            raise ValueError("pruning='random' needs keep or drop_rate")
        return None
    if keep is not None and (
        isinstance(keep, bool) or not isinstance(keep, numbers.Integral) or keep < 1
    ):
        raise ValueError(f'keep must be an integer of at least 1, not {keep!r}')
    if drop_rate is not None and not (isinstance(drop_rate, numbers.Real) and 0 <= drop_rate < 1):
        raise ValueError(f'drop_rate must lie in [0, 1), not {drop_rate!r}')
    if (pruning == 'random') != (key is not None):
        raise ValueError("pruning='random' needs a PRNG key=, and only it takes one")
    seed = None if key is None else jax.random.bits(key, (2,), 'uint32')
    return Prune(
        None if keep is None else int(keep),
        None if drop_rate is None else round(float(drop_rate) * 10000),
        seed,
        width,
    )
