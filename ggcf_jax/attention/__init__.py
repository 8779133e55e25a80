"""Exact attention over neighbourhood graphs of 2-D maps, with memory linear in the map.

from ggcf_jax.attention import Local, attend

o = attend(q, k, v, Local(8))  # q, k, v: [batch, height, width, heads, channels]
"""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PRNGKeyArray

from ggcf_jax.attention import (
    arguments,
    attention_maps,
    block_sizes,
    implementations,
    reference,
    sharded,
    softmax,
    target,
    varying,
)
from ggcf_jax.attention import frame as frames
from ggcf_jax.attention.arguments import Priority
from ggcf_jax.attention.block_sizes import Kernel, Options
from ggcf_jax.attention.cudnn_rules import needs_sums
from ggcf_jax.attention.engine import ENGINES, Engine, engine_of
from ggcf_jax.attention.frame import Frame
from ggcf_jax.attention.graph import knows_border
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
from ggcf_jax.attention.implementations import (
    IMPLEMENTATIONS,
    KERNELS,
    Implementation,
    Resolution,
)
from ggcf_jax.attention.kernels import EXTRAS, Case, Extra
from ggcf_jax.attention.partial import Inputs, Partial, Registers, attend_registers, merge
from ggcf_jax.attention.pruning import Prune
from ggcf_jax.attention.simplify import simplify

__all__ = [
    'GRAPHS',
    'KINDS',
    'Block',
    'Column',
    'Cross',
    'Frame',
    'Full',
    'Graph',
    'Grid',
    'Intersection',
    'Learned',
    'Local',
    'OffsetGraph',
    'Partial',
    'Registers',
    'Resolution',
    'Row',
    'SeparableGraph',
    'Union',
    'attend',
    'attend_across',
    'attention_weights',
    'merge',
    'neighbor_mask',
    'parse',
    'resolve_implementation',
    'simplify',
]


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
      implementation: 'xla' (the engine of the graph), 'cudnn' (its form for NVIDIA GPUs),
        'pallas' (for TPUs), 'reference' (dense mask, any graph), or 'auto': the fastest of them for
        the device that the program is lowered for; see `resolve_implementation`.
      return_lse: whether the logarithms of the denominators are returned as well, for `merge`.

    Returns:
      The sums in the dtype of v, or with return_lse a `Partial(o, lse)`; scores, softmax and sums
      are float32, or float64 where q, k and v are. Differentiable in reverse mode in q, k, v,
      bias, registers and the parameters of a learned graph, also twice (`jax.hessian`) but by
      'cudnn' and 'pallas'; when pruned, only through the reference, which alone prunes with a bias.
      A query with a NaN among its affinities gives NaN; one without any neighbour gives zeros, with
      zero gradients.

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
        given = {'registers': registers is not None, 'return_lse': return_lse}
        wanted = _Wanted(implementation, frozenset(name for name, is_so in given.items() if is_so))
        part = _attend_runs(Inputs(q, k, v, valid, bias), runs, factor, prune, wanted)
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


def attend_across(
    q: Float[Array, 'b h w heads dk'],
    k: Float[Array, 'b i j heads dk'],
    v: Float[Array, 'b i j #heads dv'],
    *,
    valid: Bool[Array, 'b i j'] | None = None,
    scale: float = 1.0,
    implementation: Implementation = 'auto',
) -> Float[Array, 'b h w heads dv']:
    """Attention of every position of one map to every position of another, such as a smaller one.

    `attend` on a FULL graph, in memory that is linear in both maps, for keys and values that are
    those of other positions than the queries: PVT's and SegFormer's reduced ones.

    Args:
      q: queries in float16, bfloat16, float32 or float64.
      k: keys of the other map, in the dtype of q.
      v: values of the other map; of one head, if all heads share them.
      valid: positions of the other map that may be attended to; None for all.
      scale: factor of the affinities.
      implementation: what computes it, as for `attend`. The kernels of TPUs know one map only.

    Returns:
      The sums in the dtype of v, as of `attend`; zeros for queries without valid keys.

    Raises:
      ValueError: shapes that do not fit, or an implementation that cannot.
    """
    arguments.check_maps(q, k, v)
    arguments.check_valid(valid, k)
    if valid is not None:  # a weight of zero does not hide what is not finite
        k, v = (jnp.where(valid[..., None, None], x, 0) for x in (k, v))
    inputs = Inputs(q, k, v, valid)
    if implementation == 'reference':
        return reference.attend_across(inputs, scale)
    return _attend(inputs, Full(), scale, None, _Wanted(implementation, frozenset({'other_map'}))).o


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What the caller wants beside the arrays.

    Attributes:
      implementation: the one that was asked for.
      extras: what else the attention has.
    """

    implementation: Implementation
    extras: frozenset[str]


def _attend_runs(
    inputs: Inputs,
    runs: Sequence[tuple[Graph, int]],
    scale: float,
    prune: Prune | None,
    wanted: _Wanted,
) -> Partial:
    """Attention with one graph for each run of (graph, number of heads)."""
    if len(runs) == 1:
        return _attend(inputs, runs[0][0], scale, prune, wanted)
    q, k, v, valid, bias, _ = inputs
    parts: list[Partial] = []
    first = 0
    for graph, count in runs:
        end = first + count
        own = slice(first, end)
        values = v if v.shape[3] == 1 else v[:, :, :, own]
        draws = None if prune is None else prune.of_head(first)
        table = bias if bias is None or bias.shape[0] == 1 else bias[own]
        part = Inputs(q[:, :, :, own], k[:, :, :, own], values, valid, table)
        parts.append(_attend(part, graph, scale, draws, wanted))
        first = end
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=3), *parts)


def _attend(
    inputs: Inputs,
    graph: Graph,
    scale: float,
    prune: Prune | None,
    wanted: _Wanted,
) -> Partial:
    """Attention with one graph for all heads, of checked arguments."""
    implementation = wanted.implementation
    _check_implementation(graph, implementation)
    engine = engine_of(simplify(graph)) if implementation != 'reference' else None
    if engine is not None and inputs.bias is None:
        graph = simplify(graph)
    elif not (isinstance(graph, Cross) or type(graph) in ENGINES):
        engine = None  # members of a combination may count offsets in other steps
    explicit = _explicit_sharding(inputs.q)
    if explicit is not None:  # shardings are in the types: inside, the partitioner finds them

        def run(inputs: Inputs, graph: Graph, prune: Prune | None) -> tuple[jax.Array, jax.Array]:
            part = _attend(inputs, graph, scale, prune, wanted)
            return part.o, part.lse

        sums = NamedSharding(explicit.mesh, PartitionSpec(*explicit.spec[:4]))
        automatic = jax.sharding.auto_axes(run, out_sharding=(explicit, sums))
        return Partial(*automatic(inputs, graph, prune))
    if engine is not None and inputs.valid is not None and knows_border(graph):
        inputs = inputs._replace(frame=frames.mask(inputs.valid))
    if engine is not None and prune is not None:
        if prune.keeps_all(graph.max_degree(*inputs.q.shape[1:3])):
            prune = None
        elif inputs.bias is not None:
            raise ValueError(
                'Context Pruning with a bias has no engine: drop one of them, or use '
                "implementation='reference' on small maps"
            )
    if engine is None:
        if implementation == 'auto':
            _warn_of_reference(inputs, graph)
        return reference.attend(inputs, graph, scale=scale, prune=prune)
    case = _case(inputs, graph, scale, prune, wanted.extras)
    names = _names(case, implementation)

    def by(device: target.Device, name: Kernel) -> Callable[..., Partial]:
        def attend(inputs: Inputs, graph: Graph, prune: Prune | None) -> Partial:
            with contextlib.ExitStack() as stack:
                if len(names) > 1:
                    stack.enter_context(target.tracing_for(*device))
                most, sums = 0, False
                if name != 'xla':
                    most, sums = KERNELS[name].most_channels(device), needs_sums(case)
                options = Options(scale, block_sizes.current(inputs.q.shape[0]), name, most, sums)
                return _attend_by(engine, inputs, graph, options, prune)

        return attend

    if len(set(names.values())) == 1:
        return by(*next(iter(names.items())))(inputs, graph, prune)
    branches = {
        _LOWERED_FOR[device.platform]: by(device, name)
        for device, name in names.items()
        if name != 'xla'
    }
    rest = [by(device, name) for device, name in names.items() if name == 'xla']
    return jax.lax.platform_dependent(
        inputs, graph, prune, default=rest[0] if rest else None, **branches
    )


# Platforms by the names of `jax.lax.platform_dependent`. Kernels for GPUs are NVIDIA's.
_LOWERED_FOR = {'cpu': 'cpu', 'gpu': 'cuda', 'tpu': 'tpu'}


def _attend_by(
    engine: Engine, inputs: Inputs, graph: Graph, options: Options, prune: Prune | None
) -> Partial:
    """Attention by the engine of a graph, on XLA or on the kernels of an accelerator."""
    if prune is not None:
        return _forward_only(
            lambda inputs, graph, prune: engine.attend_pruned(inputs, graph, options, prune),
            inputs, graph, prune,
        )  # fmt: skip
    shares = 1 if options.kernels == 'xla' else sharded.num_shares()
    alone = options.kernels != 'pallas' or not sharded.is_partly_manual()
    if sharded.num_devices() == shares == 1 and alone:
        return engine.attend(inputs, graph, options)
    # Each device sees its own arrays there.
    sizes = dataclasses.replace(options.sizes, devices=1)
    options = dataclasses.replace(options, sizes=sizes)
    rows = engine.attend if sharded.num_devices() == 1 else engine.attend_sharded
    return sharded.attend(rows, inputs, graph, options)


def _case(
    inputs: Inputs, graph: Graph, scale: float, prune: Prune | None, extras: frozenset[str]
) -> Case:
    q, _, v = inputs[:3]
    given: dict[Extra, Any] = {'valid': inputs.valid, 'bias': inputs.bias}
    if prune is not None:
        given['pruning' if prune.seed is None else 'random_pruning'] = prune
    mesh = jax.sharding.get_abstract_mesh()
    return Case(
        graph,
        (q.dtype, v.dtype),
        (q.shape[-1], v.shape[-1]),
        scale,
        extras | {name for name, value in given.items() if value is not None},
        (q.shape[0], q.shape[1], q.shape[2]),
        tuple((name, n) for name, n in mesh.shape.items() if name not in mesh.manual_axes),
        bool(varying.axes(*inputs[:3])),
    )


def _names(case: Case, implementation: Implementation) -> dict[target.Device, Kernel]:
    """What computes the attention on each kind of device that it may be compiled for."""
    devices = target.candidates()
    if implementation in KERNELS:  # named: for its platform, where that is possible
        own = [d for d in devices if d.platform == KERNELS[implementation].platform]
        devices = tuple(own) or devices
    found: dict[target.Device, Kernel] = {}
    for device in devices:
        resolved = implementations.resolve(
            case, implementation, device, has_engine=True, here=True
        ).implementation
        assert resolved != 'reference'
        found[device] = resolved
    return found


def _check_implementation(graph: Graph, implementation: Implementation) -> None:
    """Refuses names that are none, and 'xla' for a graph without an engine."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f'implementation {implementation!r} is not one of {", ".join(IMPLEMENTATIONS)}'
        )
    arguments.check_graph(graph)
    if implementation not in ('auto', 'reference') and engine_of(simplify(graph)) is None:
        raise ValueError(
            f'implementation {implementation!r} has no engine for {graph!r}; use '
            "'reference', or 'auto'"
        )


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
    graph: Graph,
    *,
    implementation: Implementation = 'auto',
    dtype: DTypeLike = 'float32',
    key_channels: int = 128,
    value_channels: int = 128,
    scale: float = 1.0,
    extras: Sequence[Extra] = (),
    platform: str | None = None,
    compute_capability: tuple[int, int] | None = None,
    kind: str = '',
) -> Resolution:
    """The implementation that `attend` runs, and why no faster one.

        resolve_implementation(Full(), dtype='bfloat16', platform='gpu', compute_capability=(8, 0))

    Args:
      graph: any graph.
      implementation: 'auto' takes the fastest that applies, and the reference for a graph without
        an engine; the others are taken as they are.
      dtype: dtype of q, k and v.
      key_channels: number of channels of q and k.
      value_channels: number of channels of v.
      scale: factor of the affinities.
      extras: what else `attend` is given.
      platform: 'cpu', 'gpu' or 'tpu'; None for the device that programs are compiled for here,
        which is then asked whether it has what is needed.
      compute_capability: that of the NVIDIA GPU of `platform`, (8, 0) for an A100, (9, 0) for an
        H100; None if it is not known, as in a program that is exported.
      kind: `jax.Device.device_kind` of the TPU of `platform`, 'TPU v5 lite'; '' if it is not known.

    Returns:
      A `Resolution`; it does not know maps and meshes, which may be further reasons.

    Raises:
      ValueError: an unknown name, something that is no graph, or a named implementation that
        cannot.
    """
    _check_implementation(graph, implementation)
    for extra in extras:
        if extra not in EXTRAS:
            raise ValueError(f'extras {extra!r} is not one of {", ".join(EXTRAS)}')
    if platform not in (None, 'cpu', 'gpu', 'tpu'):
        raise ValueError(f'platform {platform!r} is not one of cpu, gpu, tpu')
    simplified = simplify(graph)
    item = jnp.dtype(dtype)
    case = Case(simplified, (item, item), (key_channels, value_channels), scale, frozenset(extras))
    device = target.candidates()[0]
    if platform is not None:
        device = target.Device(platform, compute_capability, kind)
    return implementations.resolve(
        case,
        implementation,
        device,
        has_engine=engine_of(simplified) is not None,
        here=platform is None,
    )


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


def _warn_of_reference(inputs: Inputs, graph: Graph) -> None:
    """Says once how much memory a graph without an engine needs, and refuses what cannot be meant.

    Args:
      inputs: the arrays of the attention.
      graph: the graph; it may have an engine without a bias.

    Raises:
      ValueError: the scores of all pairs are larger than the limit.
    """
    b, h, w, heads, _ = inputs.q.shape
    pairs = (h * w) ** 2 * heads * (b if isinstance(b, int) else 1)
    bias_alone = inputs.bias is not None and engine_of(simplify(graph)) is not None
    lack = 'no engine for a bias' if bias_alone else 'no engine'
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
