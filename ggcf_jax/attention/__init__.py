"""Exact attention over neighbourhood graphs of 2-D maps, with memory linear in the map."""

import jax
import jax.numpy as jnp

from ggcf_jax.attention import pruning as pruning_lib
from ggcf_jax.attention import reference

IMPLEMENTATIONS = ('auto', 'reference', 'xla')


def attend(
    q, k, v, graph, *, keep=None, drop_rate=None, pruning='top', key=None, scale=1.0,
    implementation='auto',
):  # fmt: skip
    """Each position's sum of v over its neighbours j, weighted by softmax(scale * q_i . k_j) (Eq. 3).

    Args:
      q, k: float32 or bfloat16 [b, h, w, heads, dk].
      v: [b, h, w, heads, dv]; or [b, h, w, 1, dv], one v that all heads share.
      graph: one of `ggcf_jax.graphs`, the same for all heads; or anything with `adjacency(h, w)`.
      keep: keep so many neighbours a query (Context Pruning, section 3.4); at least 1.
      drop_rate: instead of keep, drop this share of each query's own neighbours (counted inside
        the map, the dropped number rounded down); in [0, 1), in steps of 1/10000.
      pruning: 'top' keeps the neighbours of largest affinity; 'random' random ones (needs key).
      key: PRNG key of random pruning.
      scale: factor of the affinities; 1 is the paper's form.
      implementation: 'auto', 'reference' (dense mask, any graph) or 'xla' (the engine); see
        `chosen`.

    Returns:
      [b, h, w, heads, dv] in the dtype of v; scores, softmax and sums are float32. Differentiable
      in q, k, v and the parameters of a learned graph; pruned, only by the reference.

    Raises:
      ValueError: shapes that do not fit, or options out of range.
    """
    _check_arrays(q, k, v)
    prune = _prune(keep, drop_rate, pruning, key)
    chosen(graph, implementation=implementation)
    return reference.attend(q, k, v, graph, scale=scale, prune=prune)


def chosen(graph, *, implementation='auto'):
    """The implementation that `attend` runs for this graph: 'xla' or 'reference'."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f'implementation {implementation!r} is not one of {", ".join(IMPLEMENTATIONS)}'
        )
    if not callable(getattr(graph, 'adjacency', None)):
        raise ValueError(
            f'graph {graph!r} has no adjacency(h, w); write one of ggcf_jax.graphs, such as '
            'Local(8), or parse a text with ggcf_jax.graphs.parse'
        )
    return 'reference'


def _check_arrays(q, k, v):
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
    if q.shape != k.shape:
        raise ValueError(f'q and k must have one shape, not {q.shape} and {k.shape}')
    if v.shape[:3] != q.shape[:3] or v.shape[3] not in (1, q.shape[3]):
        raise ValueError(
            f'v must be [batch, height, width, heads or 1, channels] like q {q.shape}, not {v.shape}'
        )


def _prune(keep, drop_rate, pruning, key):
    if pruning not in ('top', 'random'):
        raise ValueError(f"pruning {pruning!r} is not one of 'top', 'random'")
    if keep is not None and drop_rate is not None:
        raise ValueError(f'give keep={keep!r} or drop_rate={drop_rate!r}, not both')
    if keep is None and drop_rate is None:
        if pruning == 'random':
            raise ValueError("pruning='random' needs keep or drop_rate")
        return None
    if keep is not None and (not isinstance(keep, int) or keep < 1):
        raise ValueError(f'keep must be an integer of at least 1, not {keep!r}')
    if drop_rate is not None and not 0 <= drop_rate < 1:
        raise ValueError(f'drop_rate must lie in [0, 1), not {drop_rate!r}')
    if (pruning == 'random') != (key is not None):
        raise ValueError("pruning='random' needs a PRNG key=, and only it takes one")
    seed = None
    if key is not None:
        seed = jax.random.bits(key, (2,), 'uint32')
    return pruning_lib.Prune(keep, None if drop_rate is None else round(drop_rate * 10000), seed)
