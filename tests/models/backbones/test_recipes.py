"""The recipes of configs/ade20k.py with modern backbones, in small, from training to evaluation."""

import pytest

from ggcf_jax import train
from tests.helpers import load_config, read_rows
from tests.models.backbones import tiny

# Builder, width and output stride of a small network by the variant of the recipe.
NETWORKS = {
    'convnext_t': ('convnext', 4, 16),
    'swin_t': ('swin', 4, 16),
    'mit_b0': ('mit_shallow', 2, 32),
}


@pytest.mark.slow
@pytest.mark.parametrize('variant', NETWORKS)
def test_a_step_and_an_evaluation(variant, tiny_config, tmp_path):
    recipe = load_config('ade20k', variant)
    assert recipe.model.backbone.drop_path > 0
    names = ('optimizer', 'decay', 'learning_rate', 'weight_decay', 'head_multiplier')
    tiny_config.train.update({name: recipe.train[name] for name in names})
    tiny_config.train.update(steps=1, log_every=1, eval_every=1, checkpoint_every=1)
    name, width, stride = NETWORKS[variant]
    tiny_config.model.heads = 'grid:2'
    tiny_config.model.backbone.update(
        name=f'{tiny.__name__}:{name}', width=width, stride=stride, drop_path=0.1
    )
    evaluation = train.train_and_evaluate(tiny_config, tmp_path / 'run')
    assert 0 <= evaluation.miou <= 1
    (loss,) = (row['train/loss'] for row in read_rows(tmp_path / 'run') if 'train/loss' in row)
    assert 0 < loss < 10
