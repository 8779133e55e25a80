import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from ggcf_jax.errors import InputError
from ggcf_jax.training import optim

NO_STACKS = frozenset()


def _train(**changes):
    values = dict(
        optimizer='sgd',
        learning_rate=0.02,
        end_learning_rate=0.0,
        warmup_steps=0,
        poly_power=2.0,
        steps=10,
        schedule_steps=0,
        momentum=0.9,
        weight_decay=5e-4,
        decay='all',
        head_multiplier=1.0,
        clip_norm=0.0,
        schedule='poly',
        adamw=ConfigDict({'beta2': 0.999, 'epsilon': 1e-8}),
        frozen='',
        multipliers='',
        layer_decay=1.0,
    )
    return ConfigDict(values | changes)


@pytest.mark.parametrize('power', [2.0, 0.9])
def test_schedule_is_the_papers(power):
    schedule = optim.schedule(_train(poly_power=power))
    expected = [0.02 * (1 - step / 10) ** power for step in range(11)]
    np.testing.assert_allclose([schedule(step) for step in range(11)], expected, atol=1e-8)


@pytest.mark.parametrize('name', ['poly', 'cosine', 'constant'])
def test_the_end_stays_the_end_in_a_compiled_step(name):
    """Where XLA multiplies by 1 / steps and subtracts in one operation, rounding once."""
    for steps in range(9, 15):
        train = _train(schedule=name, end_learning_rate=0.01, poly_power=0.9, steps=steps)
        schedule = jax.jit(optim.schedule(train))
        end = 0.02 if name == 'constant' else 0.01
        found = [schedule(step) for step in (steps, steps + 1, 3 * steps)]
        np.testing.assert_allclose(found, end, rtol=1e-6)


def test_cosine_falls_to_its_end_and_stays_there():
    schedule = optim.schedule(_train(schedule='cosine', end_learning_rate=0.01, warmup_steps=2))
    expected = [0.0, 0.01, *(0.01 + 0.005 * (1 + np.cos(np.pi * i / 8)) for i in range(9)), 0.01]
    np.testing.assert_allclose([schedule(step) for step in range(12)], expected, atol=1e-8)


def test_constant_does_not_fall():
    schedule = optim.schedule(_train(schedule='constant', warmup_steps=2))
    np.testing.assert_allclose(
        [schedule(step) for step in (0, 1, 2, 9, 30)], [0, 0.01] + [0.02] * 3
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_updates_equal_torch(rng, name):
    torch = pytest.importorskip('torch', reason="needs the extra 'parity'")
    start, gradients = rng.normal(size=5), rng.normal(size=(10, 5))
    weight = torch.nn.Parameter(torch.tensor(start))
    if name == 'sgd':
        optimizer = torch.optim.SGD([weight], lr=0.02, momentum=0.9, weight_decay=5e-4)
        scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=10, power=2.0)
        tx = optim.optimizer(_train(), NO_STACKS)
    else:
        optimizer = torch.optim.AdamW(
            [weight], lr=0.02, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
        changes = dict(optimizer='adamw', schedule='cosine', momentum=0.8, weight_decay=0.1)
        adamw = ConfigDict({'beta2': 0.99, 'epsilon': 1e-6})
        tx = optim.optimizer(_train(adamw=adamw, **changes), NO_STACKS)
    params = jnp.float32(start)
    state = tx.init(params)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        scheduler.step()
        updates, state = tx.update(jnp.float32(gradient), state, params)
        params = params + updates
        np.testing.assert_allclose(params, weight.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_warm_up_and_end_value():
    schedule = optim.schedule(_train(warmup_steps=4, end_learning_rate=0.01, poly_power=1.0))
    expected = [0.0, 0.005, 0.01, 0.015, *(0.01 + 0.01 * (1 - i / 6) for i in range(7))]
    np.testing.assert_allclose([schedule(step) for step in range(11)], expected, atol=1e-8)


PARAMS = {
    'backbone': {'conv': {'kernel': 2.0}, 'norm': {'scale': 2.0, 'bias': 2.0}},
    'classifier': {'kernel': 2.0, 'bias': 2.0},
}


def _update(gradient=1.0, **changes):
    """The first update of PARAMS for equal gradients everywhere."""
    params = jax.tree.map(lambda x: jnp.full((2, 2), x), PARAMS)
    tx = optim.optimizer(_train(learning_rate=1.0, weight_decay=0.1, **changes), NO_STACKS)
    gradients = jax.tree.map(lambda x: jnp.full_like(x, gradient), params)
    updates, _ = tx.update(gradients, tx.init(params), params)
    return jax.tree.map(lambda x: round(float(x[0, 0]), 5), updates)


def test_decay_of_everything():
    assert set(jax.tree.leaves(_update(decay='all'))) == {-1.2}


def test_decay_of_kernels_only():
    assert _update(decay='kernels') == {
        'backbone': {'conv': {'kernel': -1.2}, 'norm': {'scale': -1.0, 'bias': -1.0}},
        'classifier': {'kernel': -1.2, 'bias': -1.0},
    }


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'lars'])
def test_frozen_parameters_and_multipliers(name):
    """Whatever the optimiser, weight decay included: factors are those on the learning rate."""
    plain = _update(optimizer=name)
    close = functools.partial(pytest.approx, abs=2e-4)  # `_update` rounds
    changed = _update(
        optimizer=name,
        frozen='backbone.norm,classifier.b*',
        multipliers='*:2,backbone:0.5,classifier.kernel:10',
    )
    assert changed == {
        'backbone': {
            'conv': {'kernel': close(0.5 * plain['backbone']['conv']['kernel'])},
            'norm': {'scale': 0.0, 'bias': 0.0},
        },
        'classifier': {'kernel': close(10 * plain['classifier']['kernel']), 'bias': 0.0},
    }


def test_head_multiplier_leaves_the_backbone():
    assert _update(decay='kernels', head_multiplier=10.0) == {
        'backbone': {'conv': {'kernel': -1.2}, 'norm': {'scale': -1.0, 'bias': -1.0}},
        'classifier': {'kernel': -12.0, 'bias': -10.0},
    }


def test_clipping_bounds_the_global_norm():
    clipped = _update(decay='kernels', gradient=7.0, clip_norm=1.0)['backbone']['norm']['scale']
    np.testing.assert_allclose(clipped, -1 / np.sqrt(5 * 4), atol=1e-5)


def test_lars_scales_kernels_by_their_norms():
    """rate * 0.001 * |w| / |g + decay w| * (g + decay w), and plain SGD elsewhere."""
    updates = _update(optimizer='lars', decay='kernels')
    ratio = 0.001 * 2.0 / 1.2
    np.testing.assert_allclose(updates['classifier']['kernel'], -ratio * 1.2, atol=1e-5)
    assert updates['classifier']['bias'] == -1.0


def test_lars_scales_every_block_of_a_stack_by_its_own_norm(rng):
    """Stacked blocks, blocks one by one and `optax.lars` on the latter do the same steps."""
    blocks = {
        f'conv{i}': {'kernel': jnp.float32(rng.normal(size=(2, 3)) * 10**i)} for i in range(3)
    }
    gradients = jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), blocks)

    def stack(tree):
        return {'blocks': {'conv': jax.tree.map(lambda *x: jnp.stack(x), *tree.values())}}

    train = _train(optimizer='lars', learning_rate=1.0)
    ours = optim.optimizer(train, frozenset({'blocks'}))
    plain = optim.optimizer(train, NO_STACKS)
    optax_lars = optax.chain(
        optax.lars(optim.schedule(train), 5e-4, trust_ratio_mask=optim.kernels, momentum=0.9)
    )
    results = []
    for tx, params, grads in (
        (ours, stack(blocks), stack(gradients)),
        (plain, blocks, gradients),
        (optax_lars, blocks, gradients),
    ):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(grads, state, params)
        results.append(updates)
    stacked, single, expected = results
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), single, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stacked, stack(expected))
    # A module of the same name that is no stack is one layer.
    other = {'blocks': {'conv': stack(blocks)['blocks']['conv']}}
    one = plain.update(other, plain.init(other), other)[0]['blocks']['conv']['kernel']
    assert np.unique(np.round(one / other['blocks']['conv']['kernel'], 6)).size == 1


@pytest.mark.parametrize(
    ('field', 'value'), [('optimizer', 'adam'), ('decay', 'norms'), ('schedule', 'step')]
)
def test_unknown_names(field, value):
    with pytest.raises(InputError, match=f"config.train.{field}='{value}' is not one of"):
        optim.optimizer(_train(**{field: value}), NO_STACKS)


def test_parameters_of_the_model_have_the_names_that_masks_look_for(tiny_config):
    from ggcf_jax import models

    _, params, _ = models.abstract(tiny_config, 5)
    kernels = jax.tree.leaves(optim.kernels(params))
    outside = jax.tree.leaves(optim.outside_backbone(params))
    assert 5 < sum(kernels) < len(kernels) - 5
    assert 5 < sum(outside) < len(outside) - 5
    for leaf, kernel in zip(jax.tree.leaves(params), kernels):
        assert kernel or leaf.ndim <= 2  # biases and scales, stacked or not
