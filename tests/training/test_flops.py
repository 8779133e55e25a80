"""FLOPs counted from traced functions, against formulas."""

import jax
import jax.numpy as jnp
import pytest

from ggcf_jax import models
from ggcf_jax.attention import target
from ggcf_jax.models.layers import forms
from ggcf_jax.training import flops, parameter_groups


def counted(f, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return flops.count(jax.jit(f).trace(*arrays).jaxpr)


def conv(x, w, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )  # fmt: skip


def test_products_and_loops():
    product = 2 * 4 * 5 * 6
    assert counted(jnp.matmul, (4, 5), (5, 6)) == product
    assert counted(jnp.matmul, (3, 4, 5), (3, 5, 6)) == 3 * product
    square = 2 * 4**3

    def loop(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(x @ x), None), x, length=7)[0]

    assert counted(loop, (4, 4)) == 7 * square
    assert counted(jax.grad(lambda x: loop(x).sum()), (4, 4)) == 3 * 7 * square
    # With nothing saved the product is computed again.
    again = jax.checkpoint(lambda x: jnp.sin(x @ x))
    assert counted(jax.grad(lambda x: again(x).sum()), (4, 4)) == 4 * square


def test_convolutions():
    forward = 2 * (3 * 8 * 8 * 16) * (5 * 5 * 4)
    assert counted(conv, (3, 8, 8, 4), (5, 5, 4, 16)) == forward
    assert counted(lambda x, w: conv(x, w, 2), (3, 8, 8, 4), (5, 5, 4, 16)) == forward // 4
    assert counted(lambda x, w: conv(x, w, 1, 4), (3, 8, 8, 4), (5, 5, 1, 16)) == forward // 4
    for stride in (1, 2):
        both = jax.grad(lambda x, w: conv(x, w, stride).sum(), (0, 1))  # noqa: B023
        shapes = ((3, 8, 8, 4), (5, 5, 4, 16))
        assert counted(both, *shapes) == 3 * forward // stride**2


def test_branches_and_unknown_loops():
    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)

    assert counted(branch, (4, 4)) == 2 * 4**3
    with pytest.raises(ValueError, match='unknown length'):
        counted(lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ x, x), (4, 4))


def test_model_flops_do_not_count_rematerialisation(tiny_config):
    found = {}
    for remat in ('none', 'block'):
        tiny_config.train.remat = remat
        found[remat] = flops.of_training(*models.abstract(tiny_config, 11), (24, 40))
    assert found['none'] == found['block'] > 0
    twice = flops.of_training(*models.abstract(tiny_config, 11), (24, 80))
    assert 1.9 < twice / found['none'] < 2.2


def test_frozen_parameters_need_no_gradients(tiny_config):
    """Against the gradients that JAX computes, in a network whose attention is not recomputed."""
    tiny_config.model.context = 'none'
    tiny_config.train.remat = 'none'
    graphdef, params, stats = models.abstract(tiny_config, 11)
    images = jax.ShapeDtypeStruct((1, 24, 40, 3), jnp.uint8)

    def executed(frozen):
        def loss(params, stats, images):
            params = jax.tree.map(
                lambda x, stays: jax.lax.stop_gradient(x) if stays else x, params, frozen
            )
            outputs = models.merge(graphdef, params, stats)(
                images, train=True, key=jax.random.key(0)
            )
            return sum(x.sum() for x in jax.tree.leaves(outputs))

        with target.tracing_for('cpu'), forms.keeping_convolutions():
            return flops.count(jax.jit(jax.grad(loss)).trace(params, stats, images).jaxpr)

    found = []
    for pattern in ('nothing', 'backbone', 'backbone.stages.3'):
        groups = parameter_groups.ParameterGroups((pattern,), (), 1.0, frozenset())
        frozen = groups.is_frozen(params)
        found.append(flops.of_training(graphdef, params, stats, (24, 40), frozen))
        assert found[-1] == executed(frozen), pattern
    every, head_only, no_stage = found
    assert every == flops.of_training(graphdef, params, stats, (24, 40))
    assert every > no_stage > head_only
    with target.tracing_for('gpu'):
        assert flops.of_training(graphdef, params, stats, (24, 40)) == every


def test_loops_carry_what_is_trained():
    def loop(w, x, y):
        body = lambda carry, _: ((carry[0] @ w, carry[1] @ x), None)  # noqa: E731
        return jax.lax.scan(body, (x, y), length=5)[0]

    x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    jaxpr = jax.make_jaxpr(loop)(x, x, x).jaxpr
    one = 5 * 2 * 4**3
    assert flops._walk(jaxpr, [False, False, False]) == (2 * one, [False, False])
    assert flops._walk(jaxpr, [True, False, False]) == (4 * one, [True, False])
    assert flops._walk(jaxpr, [False, False, True]) == (3 * one, [False, True])


def test_loops_read_and_write_step_by_step():
    def loop(w, x, rows):
        return jax.lax.scan(lambda carry, row: (carry @ w, (row, row @ w)), x, rows, length=5)

    x, rows = jax.ShapeDtypeStruct((4, 4), jnp.float32), jax.ShapeDtypeStruct((5, 4), jnp.float32)
    jaxpr = jax.make_jaxpr(loop)(x, x, rows).jaxpr
    square, row = 5 * 2 * 4**3, 5 * 2 * 4**2
    assert flops._walk(jaxpr, [False] * 3) == (square + row, [False, False, False])
    for trained, expected, outputs in (
        ([True, False, False], 3 * square + 2 * row, [True, False, True]),
        ([False, True, False], 2 * square + row, [True, False, False]),
        ([False, False, True], square + 2 * row, [False, True, True]),
    ):
        assert flops._walk(jaxpr, trained) == (expected, outputs)
