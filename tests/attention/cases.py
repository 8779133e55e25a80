"""Graphs, inputs and comparisons that the attention tests share."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax.attention import (
    GRAPHS,
    Cross,
    Grid,
    Local,
    Union,
    attend,
    parse,
    resolve_implementation,
)


def every_graph(numbers=(1, 3, 30)):
    """Instances of every graph of the head grammar; those that need a number with each of these.

    Graphs with a number per axis are `per_axis`.
    """
    fixed = [cls() for cls in GRAPHS.values() if not _needs_number(cls)]
    bound = [
        graph.bind(jax.tree.map(lambda x: x + 0.2, graph.init(jax.random.key(0))))
        for graph in fixed
    ]
    return [*bound, *numbered(numbers)]


def numbered(numbers):
    """Instances of the graphs that need a number, with each of these."""
    return [cls(number) for cls in GRAPHS.values() if _needs_number(cls) for number in numbers]


def _needs_number(cls):
    first = next(iter(inspect.signature(cls).parameters.values()), None)
    return first is not None and first.default is first.empty


def inputs(b, h, w, heads, dk, dv, *, v_heads=None, dtype=jnp.float32, seed=0):
    """q, k, v and a weight of the output, random."""
    rng = np.random.default_rng(seed)
    shapes = ((heads, dk), (heads, dk), (v_heads or heads, dv), (heads, dv))
    return [
        jnp.asarray(rng.standard_normal((b, h, w, n, c)) * 0.7, jnp.float32).astype(dtype)
        for n, c in shapes
    ]


def adjacency(graph, h, w):
    """Its edges on a map as a NumPy array; one program, where uncompiled calls compile many."""
    return np.asarray(jax.jit(lambda: graph.adjacency(h, w))())


def attending(graph, **options):
    """`attend` with these options as one program; uncompiled calls compile every primitive."""
    return jax.jit(lambda *arrays: attend(*arrays, graph, **options))


def values_and_gradients(f, weight, *arguments):
    """f's output and the gradients of its weighted sum, in one compiled call."""

    def loss(*arguments):
        o = f(*arguments)
        return (o.astype(jnp.float32) * weight.astype(jnp.float32)).sum(), o

    every = tuple(range(len(arguments)))
    (_, o), gradients = jax.jit(jax.value_and_grad(loss, every, has_aux=True))(*arguments)
    return o, gradients


def assert_close(actual, expected, rel):
    """Every array within rel of the largest magnitude among the expected ones of its tree."""
    actual, expected = (
        [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)] for tree in (actual, expected)
    )
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        assert a.shape == e.shape
        # A gradient that is zero in theory is rounding noise of terms of order 1.
        assert np.abs(a - e).max(initial=0) <= rel * max(np.abs(e).max(initial=0), 1.0)


def with_options():
    """Graphs with dilation, shifted borders and shifted blocks, and combinations of graphs."""
    return [
        *parse('local:1@3,2x1@2x5,1@30,30@2,local:2:shift,30:shift,1x2@2x3:shift'),
        *parse('block:4+3,3x5+1x2,30+4,7x1+5'),
        *parse('local:2|cross,local:1|grid:3|row,block:3|local:1,local:7&grid:3,block:4&cross'),
        *parse('(local:2:shift|column)&grid:2,row&local:2@2'),
    ]


def is_joined(graph):
    """Whether its engine joins parts by log-sum-exps, which are rounded as affinities are."""
    return isinstance(graph, (Cross, Union))


def with_engine():
    """Those of them that an engine attends to, and some that it attends to once simplified."""
    extra = parse('local:7&grid:3,row&local:3,row|local:2x0')
    return [
        g for g in [*with_options(), *extra] if resolve_implementation(g).implementation == 'xla'
    ]


def per_axis():
    """Graphs with different numbers for rows and for columns."""
    return [Local((1, 4)), Local((0, 2)), Grid((2, 3)), Grid((30, 2))]


def slow(values):
    """The values as parameters of tests that are marked slow."""
    return slow_cases((value,) for value in values)


def slow_cases(cases):
    """The same of cases, tuples of the values of several parameters."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]
