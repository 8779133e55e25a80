"""The compiled gradient: XLA:CPU computes what many operations read once, not for each of them."""

import collections
import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ggcf_jax.models.backbones import dinov2, resnet
from tests.helpers import shorten
from tests.models.backbones import tiny

ARITHMETIC = ('add', 'subtract', 'multiply', 'maximum', 'minimum', 'select', 'erf', 'exponential')
CALLED = re.compile(r'(?:calls|to_apply|body)=%?([\w.-]+)')
COMPUTED = re.compile(rf' = \w+\[([\d,]*)\]\S* (?:{"|".join(ARITHMETIC)})\(')


def computed(program: str) -> int:
    """Number of elements that the arithmetic of a program in HLO computes; loops run once."""
    bodies = {}
    for found in re.finditer(r'^(ENTRY )?%?([\w.-]+) .*\{\n((?:  .*\n)*)\}', program, re.M):
        bodies['ENTRY' if found[1] else found[2]] = found[3]

    @functools.cache
    def of(name: str) -> int:
        shapes = COMPUTED.findall(bodies[name])
        own = sum(math.prod(map(int, filter(None, shape.split(',')))) for shape in shapes)
        called = collections.Counter(CALLED.findall(bodies[name]))
        return own + sum(of(each) * number for each, number in called.items())

    return of('ENTRY')


def gradient(config, build, side):
    """The gradient of a network's outputs, lowered."""
    network = functools.partial(build, config.model, remat='none', dtype=jnp.float32)
    graphdef, *state = nnx.split(
        nnx.eval_shape(lambda: network(rngs=nnx.Rngs(0))), nnx.Param, nnx.BatchStat
    )

    def loss(params, stats, x):
        outputs = nnx.merge(graphdef, params, stats, copy=True)(x, train=True)
        return sum((y**2).sum() for y in outputs[2:])

    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.jit(jax.grad(loss)).lower(*state, image)


@pytest.mark.parametrize(
    ('name', 'stride', 'width', 'side'),
    [
        ('resnet50', 8, 8, 65),
        ('resnet10', 8, 64, 64),  # with Winograd's products
        ('convnext', 8, 32, 96),
        ('dinov2', 14, 32, 84),
        ('mit', 32, 16, 128),
    ],
)
def test_arithmetic_of_a_gradient(tiny_config, monkeypatch, name, stride, width, side):
    tiny_config.model.backbone.update({'name': name, 'width': width, 'stride': stride})
    if name == 'resnet50':
        shorten(monkeypatch, resnet, name, (1, 1, 8, 1))
    deep = functools.partial(dinov2.build, dinov2.Architecture(depth=9, heads=2, grid=3))
    builds = {**resnet.BACKBONES, 'dinov2': deep, 'convnext': tiny.convnext, 'mit': tiny.mit}
    lowered = gradient(tiny_config, builds[name], side)
    ratio = computed(lowered.compile().as_text()) / computed(lowered.as_text(dialect='hlo'))
    assert 0.3 < ratio < 1.6
