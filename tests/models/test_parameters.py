"""Names of parameters, whether blocks are stored singly or stacked."""

import pytest
from flax import nnx

from ggcf_jax import models
from ggcf_jax.models import parameters, pretrained


def _names(config):
    network = models.abstract(config, 5)
    stacks = models.stacks(*network)
    return parameters.layer_names(parameters.shapes(network[1]), stacks), stacks


@pytest.mark.parametrize(
    ('backbone', 'stride'),
    [
        ('resnet10', 8),
        ('resnet50', 8),
        ('wide_resnet38', 8),
        ('mobilenet_v2', 8),
        ('convnext_tiny', 8),
        ('swin_tiny', 8),
        ('dinov2_small', 14),
        ('mit_b2', 32),
    ],
)
def test_layers_have_the_names_that_weights_are_stored_under(tiny_config, backbone, stride):
    """As `pretrained.slots` counts them, which knows the stacks by their names."""
    tiny_config.model.backbone.update(name=backbone, stride=stride)
    names, stacks = _names(tiny_config)
    assert all(stack.endswith('.blocks') for stack in stacks)
    assert bool(stacks) == (backbone != 'resnet10')
    inside = 'backbone.'
    own = [each for path, group in names.items() if path.startswith(inside) for each in group]
    _, params, _ = models.abstract(tiny_config, 5)
    slots = pretrained.slots.expand(parameters.shapes(params['backbone']))
    assert own == [inside + name for name in slots] and len(set(own)) == len(own)


def test_a_module_that_is_called_blocks_is_no_stack():
    shapes = {'a.blocks.kernel': (3, 2), 'b.0.kernel': (2,), 'b.1.blocks.kernel': (3, 2), 'c.d': ()}
    assert parameters.layer_names(shapes, {'b.1.blocks'}) == {
        'a.blocks.kernel': ('a.blocks.kernel',),
        'b.0.kernel': ('b.0.kernel',),
        'b.1.blocks.kernel': ('b.1.kernel', 'b.2.kernel', 'b.3.kernel'),
        'c.d': ('c.d',),  # a scalar, such as those of learned graphs
    }
    # Items behind a stack are counted on, and a stack need not be in a list.
    shapes = {'b.0.blocks.kernel': (2, 2), 'b.1.kernel': (2,), 'c.rest.blocks.bias': (2,)}
    assert parameters.layer_names(shapes, {'b.0.blocks', 'c.rest.blocks'}) == {
        'b.0.blocks.kernel': ('b.0.kernel', 'b.1.kernel'),
        'b.1.kernel': ('b.2.kernel',),
        'c.rest.blocks.bias': ('c.rest.0.bias', 'c.rest.1.bias'),
    }


@pytest.mark.parametrize(
    ('pattern', 'expected'),
    [
        ('backbone', True),
        ('backbone.stages.0', True),
        ('backbone.stages.0.*', True),
        ('*.kernel', True),
        ('backbone.stages.[01]', True),
        ('back', False),
        ('stages', False),
        ('backbone.stages.1*', False),
        ('*.bias', False),
    ],
)
def test_patterns(pattern, expected):
    assert parameters.matches('backbone.stages.0.1.conv.kernel', pattern) == expected


def test_norms_of_frozen_layers_keep_their_statistics(tiny_config):
    """Those all of whose parameters are frozen, stacked ones among them."""
    tiny_config.model.backbone.name = 'resnet50'
    tiny_config.train.frozen = 'backbone.stem,backbone.stages.0,*.kernel'
    graphdef, params, stats = models.abstract(tiny_config, 5)
    model = models.merge(graphdef, params, stats)
    norms = {
        '.'.join(map(str, path)): node.statistics
        for path, node in nnx.iter_modules(model)
        if hasattr(node, 'statistics')
    }
    frozen = {path for path, statistics in norms.items() if statistics == 'running'}
    assert frozen == {
        path for path in norms if path.startswith(('backbone.stem.', 'backbone.stages.0.'))
    }
    assert any('.blocks.' in path for path in frozen)
