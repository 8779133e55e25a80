"""Attention over FULL graphs: every position attends to every position."""

import math

import jax
import jax.numpy as jnp

from ggcf_jax.attention import flash, pruning
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.flash import Schedule
from ggcf_jax.attention.graphs import Full
from ggcf_jax.attention.layout import as_map, as_rows
from ggcf_jax.attention.pruning import Prune


def attend(q: jax.Array, k: jax.Array, v: jax.Array, graph: Full, options: Options) -> jax.Array:
    """FULL attention; `engine.Attend`. The map of keys may have more rows than that of queries."""
    b, h, w, heads, _ = q.shape
    chunks = flash.choose_chunks(h * w, b * heads, options, math.prod(k.shape[1:3]))
    o = flash.attend_rows(as_rows(q), as_rows(k), as_rows(v), None, Schedule(chunks, options))
    return as_map(o, h, w)


def attend_pruned(
    q: jax.Array, k: jax.Array, v: jax.Array, graph: Full, options: Options, prune: Prune
) -> jax.Array:
    """FULL attention with Context Pruning; `engine.AttendPruned`."""
    h, w = q.shape[1:3]
    q, k, v = (as_rows(x) for x in (q, k, v))
    return as_map(pruning.attend_rows(q, k, v, jnp.arange(h * w), prune, options), h, w)
