"""Attention over LEARNED graphs: FULL attention with log E added to the affinities.

log E is a position bias: a table over the (2h-1)(2w-1) offsets, the same for all heads.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ggcf_jax.attention import position_bias, pruning
from ggcf_jax.attention.block_sizes import Options
from ggcf_jax.attention.graphs import Learned
from ggcf_jax.attention.layout import as_map, as_rows, sums_as_map, valid_as_rows
from ggcf_jax.attention.partial import Inputs, Partial
from ggcf_jax.attention.pruning import Prune


def attend(inputs: Inputs, graph: Learned, options: Options) -> Partial:
    """LEARNED attention; `engine.Attend`."""
    table = graph.log_table(*inputs.q.shape[1:3])
    return position_bias.attend_table(inputs, table[None], options)


def attend_pruned(inputs: Inputs, graph: Learned, options: Options, prune: Prune) -> Partial:
    """LEARNED attention with Context Pruning; `engine.AttendPruned`."""
    q, k, v, valid, _, _ = inputs
    h, w = q.shape[1:3]
    turned = graph.log_table(h, w)[::-1, ::-1]
    # Row and column of each query; divisions inside loops have no counterpart in ONNX files.
    rows, columns = jnp.repeat(jnp.arange(h), w), jnp.tile(jnp.arange(w), h)

    def bias(i: jax.Array) -> jax.Array:
        def one(at: jax.Array) -> jax.Array:
            # log E of one query to the whole map is a window of the turned table.
            corner = (h - 1 - rows[at], w - 1 - columns[at])
            return lax.dynamic_slice(turned, corner, (h, w)).reshape(-1)

        # On CPUs a slice is a copy of memory, and a gather is not.
        return jax.vmap(one)(i) if options.sizes.few_steps else lax.map(one, i)

    q, k, v = (as_rows(x) for x in (q, k, v))
    o, lse = pruning.attend_rows(
        q, k, v, valid_as_rows(valid), jnp.arange(h * w), prune, options, bias
    )
    return Partial(as_map(o, h, w), sums_as_map(lse, h, w))
