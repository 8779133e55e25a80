"""Freezing, multipliers and decay by layer, on the names of a network with stacked blocks."""

import jax
import numpy as np
import pytest

from ggcf_jax import models
from ggcf_jax.errors import InputError
from ggcf_jax.models import parameters
from ggcf_jax.training import parameter_groups


@pytest.fixture
def build(tiny_config):
    """(groups, shapes of the parameters) of fields of a ResNet-50; it has 3 + 4 + 6 + 3 blocks."""
    tiny_config.model.backbone.name = 'resnet50'
    network = models.abstract(tiny_config, 5)

    def build(**fields):
        tiny_config.train.update(fields)
        return parameter_groups.build(tiny_config.train, models.stacks(*network)), network[1]

    return build


def _flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {parameters.name(path): leaf for path, leaf in leaves}


def test_default_is_one_group(build):
    groups, _ = build()
    assert groups.are_equal


def test_frozen_arrays(build):
    groups, params = build(frozen='backbone.stem,backbone.stages.0.*,*.norm')
    groups.check(params)
    frozen = {path for path, is_frozen in _flat(groups.is_frozen(params)).items() if is_frozen}
    assert frozen == {
        path
        for path in _flat(params)
        if path.startswith(('backbone.stem.', 'backbone.stages.0.')) or '.norm.' in path
    }


def test_factors_fall_by_block_through_stacks(build):
    """1 for heads, 1/2 in the last of 16 blocks, 2**-17 in the stem."""
    groups, params = build(layer_decay=0.5)
    factors = _flat(groups.factors(params))
    assert factors['classifier.kernel'] == factors['context.reduce.conv.kernel'] == 1
    assert factors['backbone.stages.3.0.layers.0.conv.kernel'] == 2.0**-3
    last = factors['backbone.stages.3.1.blocks.layers.0.conv.kernel']
    np.testing.assert_array_equal(last, np.float32([0.25, 0.5]).reshape(2, 1, 1, 1, 1))
    assert factors['backbone.stages.0.0.layers.0.conv.kernel'] == 2.0**-16
    assert factors['backbone.stem.0.conv.kernel'] == 2.0**-17


def test_multipliers_come_on_top_and_the_last_one_counts(build):
    groups, params = build(
        layer_decay=0.5, multipliers='backbone:3, backbone.stages.3.2:5,classifier.bias:0'
    )
    groups.check(params)
    factors = _flat(groups.factors(params))
    assert factors['backbone.stem.0.conv.kernel'] == np.float32(3 * 2.0**-17)
    last = factors['backbone.stages.3.1.blocks.layers.1.norm.norm.bias']
    np.testing.assert_array_equal(last, np.float32([[3 / 4], [5 / 2]]))
    assert factors['classifier.bias'] == 0 and factors['classifier.kernel'] == 1


def test_end_of_a_backbone_belongs_to_its_last_block(tiny_config):
    tiny_config.model.backbone.name = 'wide_resnet38'
    tiny_config.train.layer_decay = 0.5
    network = models.abstract(tiny_config, 5)
    groups = parameter_groups.build(tiny_config.train, models.stacks(*network))
    factors = _flat(groups.factors(network[1]))
    assert factors['backbone.norm.norm.scale'] == 0.5
    assert factors['backbone.mods.5.0.skip.kernel'] == 0.5
    assert factors['backbone.stem.kernel'] == min(x.min() for x in factors.values())


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'frozen': 'backbone.stage1'}, r"frozen: 'backbone.stage1' names no .*backbone.stages.0"),
        ({'multipliers': 'head:10'}, r"multipliers: 'head' names no parameter; .*context"),
        ({'frozen': 'backbone.stages.2.5'}, r'frozen names .*2.5.* and not .*one array'),
        ({'frozen': '*'}, 'leaves no parameter to be trained'),
        ({'frozen': 'backbone,'}, "frozen='backbone,': write patterns"),
        ({'multipliers': 'context'}, "multipliers='context': write PATTERN:FACTOR"),
        ({'multipliers': 'context:-1'}, 'multipliers=.*factors of at least 0'),
        ({'multipliers': 'context:nan'}, 'multipliers=.*factors of at least 0'),
    ],
)
def test_groups_that_mean_nothing(build, fields, message):
    with pytest.raises(InputError, match=message):
        groups, params = build(**fields)
        groups.check(params)
