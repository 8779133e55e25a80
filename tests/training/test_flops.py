"""FLOPs counted from traced functions, against formulas."""

import jax
import jax.numpy as jnp
import pytest

from ggcf_jax import models
from ggcf_jax.training import flops


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
