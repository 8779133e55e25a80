"""Exact attention over neighbourhood graphs of 2-D maps, with memory linear in the map.

from ggcf_jax.attention import Local, attend

o = attend(q, k, v, Local(8))  # q, k, v: [batch, height, width, heads, channels]
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ggcf_jax.attention import arguments, attention_maps, block_sizes, reference, sharded, softmax
from ggcf_jax.attention.arguments import Priority
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.engine import ENGINES, engine_of
from ggcf_jax.attention.graphs import (
    GRAPHS,
    KINDS,
    Block,
    Column,
    Cross,
    Full,
    Graph,
    Grid,
    Intersection,
    Learned,
    Local,
    OffsetGraph,
    Row,
    SeparableGraph,
    Union,
    parse,
)
from ggcf_jax.attention.partial import Inputs, Partial, Registers, attend_registers, merge
from ggcf_jax.attention.pruning import Prune
from ggcf_jax.attention.simplify import simplify

__all__ = [
    'GRAPHS',
    'KINDS',
    'Block',
    'Column',
    'Cross',
    'Full',
    'Graph',
    'Grid',
    'Intersection',
    'Learned',
    'Local',
    'OffsetGraph',
    'Partial',
    'Registers',
    'Row',
    'SeparableGraph',
    'Union',
    'attend',
    'attention_weights',
    'merge',
    'neighbor_mask',
    'parse',
    'resolve_implementation',
    'simplify',
]

Implementation = Literal['auto', 'reference', 'xla']

IMPLEMENTATIONS: tuple[Implementation, ...] = ('auto', 'reference', 'xla')


@overload
def attend(
    q: Float[Array, 'b h w heads dk'],
    k: Float[Array, 'b h w heads dk'],
    v: Float[Array, 'b h w #heads dv'],
    graph: Graph | Sequence[Graph],
    *,
    valid: Bool[Array, 'b h w'] | None = ...,
    bias: Float[Array, '#heads _ _'] | None = ...,
    registers: Registers | None = ...,
    keep: int | None = ...,
    drop_rate: float | None = ...,
    pruning: Priority = ...,
    key: PRNGKeyArray | None = ...,
    scale: float | Float[Array, ''] = ...,
    implementation: Implementation = ...,
    return_lse: Literal[False] = ...,
) -> Float[Array, 'b h w heads dv']: ...


@overload
def attend(
    q: Float[Array, 'b h w heads dk'],
    k: Float[Array, 'b h w heads dk'],
    v: Float[Array, 'b h w #heads dv'],
    graph: Graph | Sequence[Graph],
    *,
    valid: Bool[Array, 'b h w'] | None = ...,
    bias: Float[Array, '#heads _ _'] | None = ...,
    registers: Registers | None = ...,
    keep: int | None = ...,
    drop_rate: float | None = ...,
    pruning: Priority = ...,
    key: PRNGKeyArray | None = ...,
    scale: float | Float[Array, ''] = ...,
    implementation: Implementation = ...,
    return_lse: Literal[True],
) -> Partial: ...


def attend(
    q: Float[Array, 'b h w heads dk'],
    k: Float[Array, 'b h w heads dk'],
    v: Float[Array, 'b h w #heads dv'],
    graph: Graph | Sequence[Graph],
    *,
    valid: Bool[Array, 'b h w'] | None = None,
    bias: Float[Array, '#heads _ _'] | None = None,
    registers: Registers | None = None,
    keep: int | None = None,
    drop_rate: float | None = None,
    pruning: Priority = 'top',
    key: PRNGKeyArray | None = None,
    scale: float | Float[Array, ''] = 1.0,
    implementation: Implementation = 'auto',
    return_lse: bool = False,
) -> Float[Array, 'b h w heads dv'] | Partial:
    """Sums the values of each position's neighbours, weighted by a softmax of affinities (Eq. 3).

    With E the edges of the graph,

        o_i = sum_j E(i, j) exp(scale * q_i . k_j) v_j / sum_j E(i, j) exp(scale * q_i . k_j)

    Works under `jax.jit`, `jax.vmap`, `jax.checkpoint` and `jax.shard_map`, under meshes with axes
    of any type, and with a symbolic batch in `jax.export`. Under a mesh with an Auto axis `space`
    (`jax.set_mesh`) the rows of the map are sharded over its devices, see `sharded`; b and h must
    be divisible.

    Args:
      q: queries in float16, bfloat16, float32 or float64.
      k: keys, in the dtype of q.
      v: values; of one head, if all heads share them.
      graph: graph of all heads, such as Local(8), or one per head, as `parse` returns them.
      valid: positions that may be attended to, such as those that are no padding; None for all.
        The others are nobody's neighbours. They still ask: their own outputs are meaningless.
      bias: added to the affinities (after scale) by offset, one table for each head or one for all:
        bias[:, R + dy, C + dx] for the query dy rows below and dx columns right of the key, counted
        in the graph's `steps` (the stride of GRID, the dilation of LOCAL). It has every offset
        between neighbours. Like E it takes no part in pruning.
      registers: additional keys and values without a position that every query sees; they are
        never pruned.
      keep: number of neighbours to keep per query (Context Pruning, section 3.4), at least 1; a
        query with fewer keeps them all.
      drop_rate: instead of keep, share of each query's own neighbours (counted inside the map,
        valid ones only) to drop, in [0, 1) and steps of 1/10000; the number dropped is rounded
        down.
      pruning: 'top' keeps the neighbours of largest affinity, 'random' random ones (needs key).
      key: PRNG key of random pruning.
      scale: factor of the affinities. 1 is the paper's form; 1/sqrt(dk) is usual elsewhere. An
        array, which may be traced and differentiated, is multiplied into q.
      implementation: 'auto', 'reference' (dense mask, any graph) or 'xla' (the engine of the
        graph); see `resolve_implementation`.
      return_lse: whether the logarithms of the denominators are returned as well, for `merge`.

    Returns:
      The sums in the dtype of v, or with return_lse a `Partial(o, lse)`; scores, softmax and sums
      are float32, or float64 where q, k and v are. Differentiable in reverse mode in q, k, v,
      bias, registers and the parameters of a learned graph, also twice (`jax.hessian`); when
      pruned, only through the reference, which alone prunes with a bias. A query with a NaN among
      its affinities gives NaN; one without any neighbour gives zeros, with zero gradients.

    Raises:
      ValueError: shapes that do not fit, options out of range, or a graph without an engine on a
        map that is too large for the reference, unless that is named.
    """
    arguments.check_arrays(q, k, v)
    arguments.check_valid(valid, q)
    arguments.check_registers(registers, q, v)
    prune = arguments.prune(keep, drop_rate, pruning, key, width=q.shape[2])
    q, factor = arguments.scaled(q, scale)
    runs = arguments.head_runs(graph, q.shape[3])
    arguments.check_bias(bias, [graph for graph, _ in runs], q)
    if bias is not None:
        bias = bias.astype(softmax.accumulator(q, k))
    if valid is not None:  # a weight of zero does not hide what is not finite
        k, v = (jnp.where(valid[..., None, None], x, 0) for x in (k, v))
    try:
        part = _attend_runs(Inputs(q, k, v, valid, bias), runs, factor, prune, implementation)
        if registers is not None:
            part = merge(part, attend_registers(q, v, registers, factor))
    except TypeError as error:
        if 'custom_vjp' not in str(error):
            raise
        raise TypeError(
            'attend is differentiable in reverse mode: jax.grad, jax.vjp, jax.hessian. For '
            "jax.jvp, jax.jacfwd and jax.linearize take implementation='reference'"
        ) from error
    return part if return_lse else part.o


def _attend_runs(
    inputs: Inputs,
    runs: Sequence[tuple[Graph, int]],
    scale: float,
    prune: Prune | None,
    implementation: Implementation,
) -> Partial:
    """Attention with one graph for each run of (graph, number of heads)."""
    if len(runs) == 1:
        return _attend(inputs, runs[0][0], scale, prune, implementation)
    q, k, v, valid, bias = inputs
    parts: list[Partial] = []
    first = 0
    for graph, count in runs:
        end = first + count
        own = slice(first, end)
        values = v if v.shape[3] == 1 else v[:, :, :, own]
        draws = None if prune is None else prune.of_head(first)
        table = bias if bias is None or bias.shape[0] == 1 else bias[own]
        part = Inputs(q[:, :, :, own], k[:, :, :, own], values, valid, table)
        parts.append(_attend(part, graph, scale, draws, implementation))
        first = end
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=3), *parts)


def _attend(
    inputs: Inputs,
    graph: Graph,
    scale: float,
    prune: Prune | None,
    implementation: Implementation,
) -> Partial:
    """Attention with one graph for all heads, of checked arguments."""
    resolved = resolve_implementation(graph, implementation=implementation)
    if resolved == 'xla' and inputs.bias is None:
        graph = simplify(graph)
    elif resolved == 'xla' and not (isinstance(graph, Cross) or type(graph) in ENGINES):
        resolved = 'reference'  # members of a combination may count offsets in other steps
    explicit = _explicit_sharding(inputs.q)
    if explicit is not None:  # shardings are in the types: inside, the partitioner finds them

        def run(inputs: Inputs, graph: Graph, prune: Prune | None) -> tuple[jax.Array, jax.Array]:
            part = _attend(inputs, graph, scale, prune, implementation)
            return part.o, part.lse

        sums = NamedSharding(explicit.mesh, PartitionSpec(*explicit.spec[:4]))
        automatic = jax.sharding.auto_axes(run, out_sharding=(explicit, sums))
        return Partial(*automatic(inputs, graph, prune))
    engine = engine_of(graph) if resolved == 'xla' else None
    attend_pruned = None
    if engine is not None and prune is not None:
        if prune.keeps_all(graph.max_degree(*inputs.q.shape[1:3])):
            prune = None
        elif inputs.bias is not None:
            raise ValueError(
                'Context Pruning with a bias has no engine: drop one of them, or use '
                "implementation='reference' on small maps"
            )
        elif engine.attend_pruned is None and implementation == 'xla':
            raise ValueError(
                f"implementation 'xla' has no Context Pruning for {graph}; use 'reference'"
            )
        else:
            attend_pruned = engine.attend_pruned
    if engine is None or (prune is not None and attend_pruned is None):
        if implementation == 'auto':
            _warn_of_reference(inputs.q, graph, pruned=engine is not None)
        return reference.attend(inputs, graph, scale=scale, prune=prune)
    options = Options(scale, block_sizes.current(inputs.q.shape[0]))
    if attend_pruned is not None:
        return _forward_only(
            lambda inputs, graph, prune: attend_pruned(inputs, graph, options, prune),
            inputs, graph, prune,
        )  # fmt: skip
    if sharded.num_devices() > 1:  # each device sees its own arrays there
        options = dataclasses.replace(options, sizes=dataclasses.replace(options.sizes, devices=1))
        return sharded.attend(engine.attend_sharded, inputs, graph, options)
    return engine.attend(inputs, graph, options)


def attention_weights(
    q: Float[Array, 'b h w heads dk'],
    k: Float[Array, 'b h w heads dk'],
    graph: Graph,
    positions: Int[Array, 'm 2'],
    *,
    valid: Bool[Array, 'b h w'] | None = None,
    bias: Float[Array, '#heads _ _'] | None = None,
    keep: int | None = None,
    drop_rate: float | None = None,
    pruning: Priority = 'top',
    key: PRNGKeyArray | None = None,
    scale: float | Float[Array, ''] = 1.0,
) -> Float[Array, 'b m heads h w']:
    """The weights with which `attend` sums v, for single queries: rows of the attention matrix.

    One query after the other, each against the whole map: no h*w x h*w array is made, except by a
    graph that defines nothing but `adjacency`.

    Args:
      q: queries, as for `attend`.
      k: keys, as for `attend`.
      graph: graph of all heads.
      positions: row and column of each query inside the map.
      valid: positions that may be attended to, as for `attend`.
      bias: added to the affinities by offset, as for `attend`.
      keep: number of neighbours to keep per query, as for `attend`.
      drop_rate: share of each query's neighbours to drop, as for `attend`.
      pruning: which neighbours are kept, as for `attend`.
      key: PRNG key of random pruning.
      scale: factor of the affinities.

    Returns:
      float32: zero for a position that is no neighbour or was dropped, one in sum over the map,
      or zero in sum for a query without neighbours.

    Raises:
      ValueError: shapes that do not fit, options out of range, or positions, where they are not
        traced, outside the map.
    """
    arguments.check_arrays(q, k, k)
    arguments.check_graph(graph)
    arguments.check_valid(valid, q)
    arguments.check_bias(bias, [graph], q)
    prune = arguments.prune(keep, drop_rate, pruning, key, width=q.shape[2])
    q, factor = arguments.scaled(q, scale)
    at = arguments.check_positions(positions, *q.shape[1:3])

    def run(
        q: jax.Array,
        k: jax.Array,
        graph: Graph,
        at: jax.Array,
        valid: jax.Array | None,
        bias: jax.Array | None,
        prune: Prune | None,
    ) -> jax.Array:
        return attention_maps.attention_weights(
            q, k, graph, at, valid=valid, bias=bias, scale=factor, prune=prune
        )

    explicit = _explicit_sharding(q)
    if explicit is None:
        return run(q, k, graph, at, valid, bias, prune)
    images, _, _, heads = explicit.spec
    out = NamedSharding(explicit.mesh, PartitionSpec(images, None, heads))
    automatic = jax.sharding.auto_axes(run, out_sharding=out)
    return automatic(q, k, graph, jnp.asarray(at), valid, bias, prune)


def neighbor_mask(
    graph: Graph, positions: Int[Array, 'm 2'], h: int, w: int
) -> Bool[Array, 'm h w']:
    """Which positions of a map single queries see, one query at a time.

    Args:
      graph: any graph; a learned one needs no parameters.
      positions: row and column of each query inside the map.
      h: height of the map.
      w: width of the map.

    Raises:
      ValueError: positions, where they are not traced, outside the map.
    """
    arguments.check_graph(graph)
    return attention_maps.neighbor_mask(graph, arguments.check_positions(positions, h, w), h, w)


def resolve_implementation(
    graph: Graph, *, implementation: Implementation = 'auto'
) -> Literal['reference', 'xla']:
    """The implementation that `attend` runs for this graph.

    Args:
      graph: any graph.
      implementation: 'auto' takes the engine of the graph or of what it simplifies to, and the
        reference for a graph that has none; the others are taken as they are.

    Raises:
      ValueError: an unknown implementation, something that is no graph, or 'xla' for a graph
        without an engine.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f'implementation {implementation!r} is not one of {", ".join(IMPLEMENTATIONS)}'
        )
    arguments.check_graph(graph)
    has_engine = engine_of(simplify(graph)) is not None
    if implementation == 'xla' and not has_engine:
        raise ValueError(
            f"implementation 'xla' has no engine for {graph!r}; use 'reference', or 'auto'"
        )
    return 'xla' if has_engine and implementation != 'reference' else 'reference'


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward_only(f: Callable[..., Partial], *arguments: Any) -> Partial:
    """f(*arguments), whose gradient is refused."""
    return f(*arguments)


def _refuse(f: Callable[..., Partial], *arguments: Any) -> Any:
    raise NotImplementedError(
        'Context Pruning is for inference: the engine has no gradient with keep or drop_rate. Drop '
        "them for training, or use implementation='reference' on small maps"
    )


_forward_only.defvjp(_refuse, _refuse)


def _explicit_sharding(q: jax.Array) -> NamedSharding | None:
    """Sharding of the output where the axes of a mesh are Explicit; None where none is."""
    sharding = jax.typeof(q).sharding
    if not sharding.mesh.explicit_axes:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:4]))


# The reference keeps about three arrays of all pairs of float32 scores.
_REFERENCE_BYTES = 12
_REFERENCE_LIMIT = 16 * 2**30  # bytes; beyond it the reference has to be asked for by name


def _warn_of_reference(q: jax.Array, graph: Graph, *, pruned: bool) -> None:
    """Says once how much memory a graph without an engine needs, and refuses what cannot be meant.

    Args:
      q: queries.
      graph: the graph.
      pruned: whether it has one without Context Pruning.

    Raises:
      ValueError: the scores of all pairs are larger than the limit.
    """
    b, h, w, heads, _ = q.shape
    pairs = (h * w) ** 2 * heads * (b if isinstance(b, int) else 1)
    lack = 'no engine for Context Pruning' if pruned else 'no engine'
    needed = f'{_REFERENCE_BYTES * pairs / 2**30:.3g} GiB for the {h} x {w} map'
    if _REFERENCE_BYTES * pairs > _REFERENCE_LIMIT:
        raise ValueError(
            f'{graph} has {lack}, and the dense reference needs about {needed}: take a smaller '
            "map, or ask for it with implementation='reference'"
        )
    warnings.warn(
        f'{graph.kind()} has {lack}: it attends through the dense reference, which needs about '
        f'{needed}',
        stacklevel=5,
    )
