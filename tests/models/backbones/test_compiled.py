"""The compiled training step: XLA:CPU has a fast form for every convolution of every backbone."""

import jax
import jax.numpy as jnp
import pytest

from ggcf_jax import models
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.models.backbones import convnext, mobilenet, resnet, wide_resnet
from ggcf_jax.models.layers.repeat import scan
from ggcf_jax.training import state as state_lib
from ggcf_jax.training import train_step
from tests.helpers import TINY_MODEL, exchanged, shorten
from tests.models.backbones import tiny

QUICK = ('resnet10', 'resnet18')
# More of the same blocks, which are compiled one by one: those of resnet18, resnet50 and the first.
MORE = ('resnet34', 'resnet101', 'resnet152', 'convnext_small', 'convnext_base')
FAST = 'b01f_01io->b01f'


def slow_convolutions(compiled: jax.stages.Compiled) -> list[str]:
    """The convolutions whose axes are in no order that XLA:CPU has a kernel for.

    It transposes those of the entry computation, and only those: weight gradients inside of loops,
    conditionals and calls keep their order, and run as nested scalar loops, ten times slower
    (xla/service/cpu/conv_canonicalization.cc and ir_emission_utils.cc).
    """
    return [
        line
        for line in compiled.as_text().splitlines()
        if ' convolution(' in line and f'dim_labels={FAST}' not in line
    ]


def compile_step(config, side: int = 17, devices: int = 1) -> jax.stages.Compiled:
    mesh = mesh_lib.make_mesh(jax.devices()[:devices])
    with jax.set_mesh(mesh):
        network = models.abstract(config, 3)
        state = jax.eval_shape(state_lib.creator(config, 3, mesh))
        batch = {
            'image': jax.ShapeDtypeStruct((2, side, side, 3), jnp.uint8),
            'label': jax.ShapeDtypeStruct((2, side, side), jnp.uint8),
        }
        step = train_step.build(config.train, (), network, mesh)
        return step.lower(state, batch).compile()


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for family in (resnet, wide_resnet, mobilenet, convnext)
        for name in family.BACKBONES
        if name not in MORE
    ]
    + [pytest.param(f'{tiny.__name__}:mit', marks=pytest.mark.slow)],
)
def test_every_convolution_of_a_training_step_is_fast(tiny_config, name, monkeypatch):
    if name == 'convnext_tiny':
        shorten(monkeypatch, convnext, name, (1, 1, 2, 1))
    if name == 'resnet50':  # stages of one repeated block, and of two
        shorten(monkeypatch, resnet, name, (2, 3, 3, 2))
    tiny_config.update_from_flattened_dict(
        {**TINY_MODEL, 'model.backbone.name': name, 'model.context': 'none'}
    )
    tiny_config.model.backbone.width = 2
    tiny_config.train.accumulate = 2 if name == 'resnet10' else 1  # a loop, too
    if name.endswith(':mit'):
        tiny_config.model.backbone.stride = 32
        compiled = compile_step(tiny_config, 97)  # of smaller maps XLA makes kernels
    else:
        compiled = compile_step(tiny_config)
    assert name == 'convnext_tiny' or FAST in compiled.as_text()  # whose layers are products
    assert slow_convolutions(compiled) == []


@pytest.mark.parametrize(
    ('name', 'side'),
    [
        ('resnet10', 65),
        pytest.param('mobilenet_v2', 33, marks=pytest.mark.slow),
        pytest.param('convnext', 32, marks=pytest.mark.slow),
        pytest.param('swin', 32, marks=pytest.mark.slow),
        pytest.param('dinov2', 42, marks=pytest.mark.slow),
        ('mit_shallow', 64),
    ],
)
def test_devices_exchange_gradients_and_statistics_alone(tiny_config, name, side):
    """No map, nor parts that a gradient is put together from."""
    tiny_config.update_from_flattened_dict({**TINY_MODEL, 'train.ema_decay': 0.0})
    backbone = tiny_config.model.backbone
    own = hasattr(tiny, name)
    backbone.name = f'{tiny.__name__}:{name}' if own else name
    backbone.width = 64 if name == 'resnet10' else 8  # with Winograd's products
    backbone.stride = {'mit_shallow': 32, 'dinov2': 14}.get(name, 8)
    compiled = compile_step(tiny_config, side, devices=2)
    _, params, stats = models.abstract(tiny_config, 3)
    found = exchanged(compiled)
    assert {kind for kind, _ in found} == {'all-reduce'}
    numbers = sum(sum(sizes) for _, sizes in found)
    needed = sum(x.size for x in jax.tree.leaves((params, stats)))
    # Of Swin's biases each pair of positions in a window, and not each offset.
    assert 0.95 * needed < numbers < (1.5 if name == 'swin' else 1.05) * needed


@pytest.mark.parametrize('steps', [1, 3])
@pytest.mark.parametrize(('loop', 'slow'), [(scan, False), (jax.lax.scan, True)])
def test_slow_convolutions_are_found(loop, slow, steps):
    def step(x, kernel):
        numbers = ('NHWC', 'HWIO', 'NHWC')
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=numbers), x

    x, kernels = jnp.ones((2, 5, 6, 4)), jnp.ones((steps, 3, 3, 4, 4))
    total = lambda kernels: (loop(step, x, kernels)[0] ** 2).sum()  # noqa: E731
    compiled = jax.jit(jax.grad(total)).lower(kernels).compile()
    assert bool(slow_convolutions(compiled)) == slow
