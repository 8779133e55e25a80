"""Attention over FULL graphs: every position attends to every position."""

import math

import jax.numpy as jnp

from ggcf_jax.attention import cudnn, flash, position_bias, pruning, tpu_full
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.flash import Schedule
from ggcf_jax.attention.graphs import Full
from ggcf_jax.attention.layout import as_map, as_rows, sums_as_map, valid_as_rows
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.pruning import Prune


def attend(inputs: Inputs, graph: Full, options: Options) -> Partial:
    """FULL attention; `engine.Attend`. The map of keys may have more rows than that of queries."""
    if inputs.bias is not None:
        table = position_bias.of_size(inputs.bias, *inputs.q.shape[1:3])
        return position_bias.attend_table(inputs, table, options)
    q, k, v, valid, _, _ = inputs
    b, h, w, heads, _ = q.shape
    if options.kernels == 'cudnn':
        rows = [x.reshape(b, -1, *x.shape[3:]) for x in (q, k, v)]
        inside = None if valid is None else valid.reshape(b, -1, 1, 1)
        o, lse = cudnn.attend(rows[0], rows[1], rows[2], options, inside)
        return Partial(o.reshape(*q.shape[:4], -1), lse.reshape(q.shape[:4]))
    if options.kernels == 'pallas':
        return tpu_full.attend(inputs, options.scale)
    chunks = flash.choose_chunks(h * w, b * heads, options, math.prod(k.shape[1:3]))
    q, k, v = (as_rows(x) for x in (q, k, v))
    o, lse = flash.attend_rows(q, k, v, valid_as_rows(valid), None, Schedule(chunks, options))
    return Partial(as_map(o, h, w), sums_as_map(lse, h, w))


def attend_pruned(inputs: Inputs, graph: Full, options: Options, prune: Prune) -> Partial:
    """FULL attention with Context Pruning; `engine.AttendPruned`."""
    q, k, v, valid, _, _ = inputs
    h, w = q.shape[1:3]
    q, k, v = (as_rows(x) for x in (q, k, v))
    o, lse = pruning.attend_rows(q, k, v, valid_as_rows(valid), jnp.arange(h * w), prune, options)
    return Partial(as_map(o, h, w), sums_as_map(lse, h, w))
