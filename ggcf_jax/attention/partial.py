"""Attention over a part of the keys, and how parts are joined.

The output over a set of keys and the logarithm of the sum of its exponentials are all that is
needed to join it with the output over another set (FlashAttention's split over keys, Dao et al.,
2022; NATTEN's `merge_attentions`). Registers and graphs that are unions work this way.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ggcf_jax.attention import softmax


class Inputs(NamedTuple):
    """The arrays of one attention.

    Attributes:
      q: queries [b, h, w, heads, dk].
      k: keys [b, h, w, heads, dk].
      v: values [b, h, w, heads or 1, dv].
      valid: which positions may be attended to, bool [b, h, w]; None for all.
      bias: bias of the scores by offset, [heads or 1, 2 R + 1, 2 C + 1], see `position_bias`; or
        None.
      frame: which positions lie in the `frame` of the valid ones, bool [b, h, w]; None where
        nothing is padded, and for graphs that do not know where an image ends.
    """

    q: Float[Array, 'b h w heads dk']
    k: Float[Array, 'b h w heads dk']
    v: Float[Array, 'b h w #heads dv']
    valid: Bool[Array, 'b h w'] | None = None
    bias: Float[Array, '#heads _ _'] | None = None
    frame: Bool[Array, 'b h w'] | None = None


class Partial(NamedTuple):
    """Attention over some of the keys.

    Attributes:
      o: output [b, h, w, heads, dv] in the dtype of v; zeros for a query that sees none of them.
      lse: logarithm of the sum of exp(scale * q . k) over those keys, weighted by E, float32
        [b, h, w, heads]; minus infinity for a query that sees none of them, or only such whose
        affinity is minus infinity (its output is NaN). NaN where the implementation does not give
        it.
    """

    o: Float[Array, 'b h w heads dv']
    lse: Float[Array, 'b h w heads']


class Registers(NamedTuple):
    """Additional keys that have no position and that every query sees (Darcet et al., 2024).

    Attributes:
      k: keys [b or 1, tokens, heads, dk].
      v: values [b or 1, tokens, heads or 1, dv].
    """

    k: Float[Array, '#b tokens heads dk']
    v: Float[Array, '#b tokens #heads dv']


def merge(*parts: Partial) -> Partial:
    """Joins attentions of the same queries over sets of keys without common members.

    A key that is in two sets counts twice. Differentiable in all outputs and sums.

    Args:
      *parts: what `attend` returns with return_lse=True, at least one.

    Returns:
      The attention over the union of the keys, in the dtype of the first output.

    Raises:
      ValueError: no part, or parts of different shapes.
    """
    if not parts:
        raise ValueError('merge needs at least one part')
    for part in parts[1:]:
        if part.o.shape != parts[0].o.shape or part.lse.shape != parts[0].lse.shape:
            raise ValueError(
                f'the parts have different shapes: o {parts[0].o.shape} and {part.o.shape}, '
                f'lse {parts[0].lse.shape} and {part.lse.shape}'
            )
    return _joined(parts)


@jax.checkpoint  # the backward pass keeps the parts alone
def _joined(parts: tuple[Partial, ...]) -> Partial:
    lses = jnp.stack([part.lse for part in parts])
    weightless = lses == softmax.HIDDEN
    nobody = weightless.all(0)
    # Where no part has a key, differences of infinities would be NaN, in gradients as well.
    safe = jnp.where(nobody, 0, lses)
    top = jax.lax.stop_gradient(safe.max(0))
    weights = jnp.exp(safe - top)
    total = weights.sum(0)
    share = jnp.where(nobody, 0, weights / total)
    o = jnp.zeros((), lses.dtype)
    for part, hidden, x in zip(parts, weightless, share):
        own = part.o.astype(lses.dtype)
        o = o + jnp.where(hidden[..., None], 0, own) * x[..., None]
        # Keys of affinity minus infinity alone give NaN, which counts where there are no others.
        o = o + jnp.where(nobody[..., None], jax.lax.stop_gradient(own), 0)
    lse = jnp.where(nobody, softmax.HIDDEN, top + jnp.log(total))
    return Partial(o.astype(parts[0].o.dtype), lse)


def attend_registers(q: jax.Array, v: jax.Array, registers: Registers, scale: float) -> Partial:
    """Attention of all queries to the registers alone.

    Args:
      q: queries [b, h, w, heads, dk].
      v: values of the map, whose dtype the output gets.
      registers: the keys and values.
      scale: factor of the affinities.
    """
    b, h, w, heads, _ = q.shape
    rows = q.reshape(b, h * w, heads, -1).swapaxes(1, 2)
    k, values = (
        jnp.broadcast_to(x.swapaxes(1, 2), (b, n, x.shape[1], x.shape[3]))
        for x, n in ((registers.k, heads), (registers.v, registers.v.shape[2]))
    )
    o, lse = softmax.normalise(softmax.scores(rows, k, scale), values)
    o = o.swapaxes(1, 2).reshape(b, h, w, heads, -1).astype(v.dtype)
    return Partial(o, lse.swapaxes(1, 2).reshape(b, h, w, heads))
