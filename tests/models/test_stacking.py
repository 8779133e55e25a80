"""Equal blocks in arrays of their own: another form of the same trees, which needs no copies."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ggcf_jax import models
from ggcf_jax.distributed import mesh as mesh_lib
from ggcf_jax.models import parameters, stacking
from ggcf_jax.models.layers.linear import linear
from ggcf_jax.models.layers.repeat import Repeated
from ggcf_jax.training import optim, parameter_groups


def _network(config, name):
    config.model.backbone.name = name
    config.model.context = 'none'
    return models.abstract(config, 3)


def _unstacked(tree, stacks):
    return jax.eval_shape(functools.partial(stacking.unstack, stacks=stacks), tree)


def _assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ('name', 'stride', 'counts'),
    [
        ('resnet34', 8, [2, 2, 3, 5]),
        ('wide_resnet38', 8, [2, 2, 2, 5]),
        ('dinov2_small', 14, [1, 1, 1, 9]),
        ('mit_b2', 32, [3, 3, 4, 6]),
        ('convnext_tiny', 8, [3, 3, 3, 9]),
        ('swin_tiny', 8, [1, 1, 1, 3]),  # pairs of blocks
        ('mobilenet_v2', 8, [1, 2, 2, 2, 3]),
    ],
)
def test_blocks_have_the_names_that_they_have_in_stacks(tiny_config, name, stride, counts):
    tiny_config.model.backbone.stride = stride
    network = _network(tiny_config, name)
    stacks = models.unstacked_for(mesh_lib.make_mesh(), *network)
    assert sorted(stacks.values()) == counts
    all_stacks = models.stacks(*network)
    assert {*stacks} == all_stacks
    params = _unstacked(network[1], stacks)
    stacked, alone = (
        parameters.layer_names(parameters.shapes(tree), all_stacks) for tree in (network[1], params)
    )
    assert sorted(sum(stacked.values(), ())) == sorted(sum(alone.values(), ()))
    assert {len(names) for names in alone.values()} == {1}
    assert not any(parameters.is_stacked(path, all_stacks) for path in alone)
    layers = [parameter_groups.layers(tree, all_stacks) for tree in (params, network[1])]
    assert {*layers[0]} == {*layers[1]}
    whole = jax.eval_shape(stacking.stack, params)
    assert jax.tree.structure(whole) == jax.tree.structure(network[1])
    assert [x.shape for x in jax.tree.leaves(whole)] == [
        x.shape for x in jax.tree.leaves(network[1])
    ]
    assert models.unstacked_for(mesh_lib.make_mesh(), network[0], params, network[2]) == stacks


def test_other_platforms_keep_stacks(tiny_config):
    class Device:
        platform = 'gpu'

    class Mesh:
        devices = np.array([Device()])

    assert models.unstacked_for(Mesh(), *_network(tiny_config, 'resnet34')) == {}


STACKS = {'backbone.stages.0.1.blocks': 3}


@pytest.fixture
def params(rng):
    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    block = {'conv': {'kernel': array(3, 2, 4)}, 'norm': {'scale': array(3, 4)}}
    return nnx.State(
        {
            'backbone': {
                'stem': {'kernel': array(4, 4)},
                'stages': {0: {0: {'kernel': array(4, 4)}, 1: {'blocks': block}}},
            },
            'classifier': {'kernel': array(4, 2), 'bias': array(2)},
        }
    )


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'optimizer': 'adamw', 'decay': 'kernels', 'clip_norm': 0.1},
        {'optimizer': 'lars', 'decay': 'kernels'},
        {'layer_decay': 0.5, 'head_multiplier': 10.0},
        {'multipliers': 'backbone.stages.0.2.*:7,*.scale:3', 'frozen': 'backbone.stem,*.bias'},
    ],
    ids=['sgd', 'adamw', 'lars', 'decay', 'groups'],
)
def test_optimizers_take_the_same_steps(tiny_config, params, changes):
    """Rates of layers, masks by name and norms are those of stacks; so is what they keep."""
    train = tiny_config.train
    train.update(changes)
    tx = optim.optimizer(train, frozenset(STACKS))

    @jax.jit
    def steps(params):
        state = tx.init(params)
        for i in range(2):
            gradients = jax.tree.map(lambda x: jnp.sin(x * 10 + i), params)  # noqa: B023
            updates, state = tx.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    found = steps(stacking.unstacked(params, STACKS))
    expected = steps(params)
    _assert_equal(stacking.stacked(found), expected)
    # The state that a checkpoint has goes on in the same form.
    assert jax.tree.structure(stacking.unstacked(expected, STACKS)) == jax.tree.structure(found)


def test_the_state_of_an_optimiser_that_leaves_blocks_out(params):
    tx = optax.multi_transform(
        {'all': optax.trace(0.9), 'none': optax.set_to_zero()},
        lambda tree: jax.tree_util.tree_map_with_path(
            lambda path, _: 'none' if 'backbone' in parameters.name(path) else 'all', tree
        ),
    )
    stacked, alone = tx.init(params), tx.init(stacking.unstacked(params, STACKS))
    unstacked = stacking.unstack(stacked, STACKS)
    assert jax.tree.structure(unstacked) == jax.tree.structure(alone)
    _assert_equal(stacking.stack(unstacked), stacked)


def test_what_has_no_blocks_is_returned_as_it_is(params):
    assert stacking.stacked(params) is params
    assert stacking.unstacked(params, {}) is params
    alone = stacking.unstacked(params, STACKS)
    assert stacking.unstacked(alone, STACKS) is alone


def test_no_kernel_is_copied():
    """XLA takes the parts of what has just been put together for what they are, in gradients too.

    With stacks each kernel is cut out and each gradient put in: the control.
    """

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.layer = linear(96, 96, dtype=jnp.float32, rngs=rngs)

        def __call__(self, x, *, train, extent):
            return x + jnp.tanh(self.layer(x))

    class Network(nnx.Module):
        def __init__(self):
            self.repeated = Repeated(Block, 3, rngs=nnx.Rngs(0))

    network = Network()
    graphdef, params = nnx.split(network)

    @jax.jit
    def gradient(params, x):
        def loss(params):
            own = nnx.merge(graphdef, stacking.stack(params), copy=True)
            return (own.repeated(x, train=True) ** 2).mean()

        return jax.value_and_grad(loss)(params)

    stacks = stacking.unstacked_for(mesh_lib.make_mesh(), network)
    assert stacks == {'repeated.blocks': 3}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 96)), jnp.float32)
    alone = stacking.unstacked(params, stacks)
    copies = []
    for tree in (params, alone):
        text = gradient.lower(tree, x).compile().as_text()
        copies.append(len(re.findall(r'f32\[(?:3|1),96,96\]\S* (?:slice|concatenate)\(', text)))
    assert copies[0] >= 3
    assert copies[1] == 0
    (loss, found), (expected_loss, expected) = gradient(alone, x), gradient(params, x)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    _assert_equal(stacking.stacked(found), expected)
