import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from ggcf_jax.errors import InputError
from ggcf_jax.training import optim


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
    )
    return ConfigDict(values | changes)


@pytest.mark.parametrize('power', [2.0, 0.9])
def test_schedule_is_the_papers(power):
    schedule = optim.schedule(_train(poly_power=power))
    expected = [0.02 * (1 - step / 10) ** power for step in range(11)]
    np.testing.assert_allclose([schedule(step) for step in range(11)], expected, atol=1e-8)


@pytest.mark.slow
def test_updates_equal_torch(rng):
    torch = pytest.importorskip('torch', reason="needs the extra 'parity'")
    start, gradients = rng.normal(size=5), rng.normal(size=(10, 5))
    weight = torch.nn.Parameter(torch.tensor(start))
    sgd = torch.optim.SGD([weight], lr=0.02, momentum=0.9, weight_decay=5e-4)
    poly = torch.optim.lr_scheduler.PolynomialLR(sgd, total_iters=10, power=2.0)
    tx = optim.optimizer(_train())
    params = jnp.float32(start)
    state = tx.init(params)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        sgd.step()
        poly.step()
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
    tx = optim.optimizer(_train(learning_rate=1.0, weight_decay=0.1, **changes))
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
    ours = optim.optimizer(train)
    optax_lars = optax.chain(
        optax.lars(optim.schedule(train), 5e-4, trust_ratio_mask=optim.kernels, momentum=0.9)
    )
    results = []
    for tx, params, grads in (
        (ours, stack(blocks), stack(gradients)),
        (ours, blocks, gradients),
        (optax_lars, blocks, gradients),
    ):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(grads, state, params)
        results.append(updates)
    stacked, single, expected = results
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), single, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stacked, stack(expected))
    # A list under the same name is no stack.
    plain = {'blocks': {'0': {'kernel': blocks['conv1']['kernel']}}}
    updates, _ = ours.update(plain, ours.init(plain), plain)
    assert jax.tree.structure(updates) == jax.tree.structure(plain)


@pytest.mark.parametrize(('field', 'value'), [('optimizer', 'adam'), ('decay', 'norms')])
def test_unknown_names(field, value):
    with pytest.raises(InputError, match=f"config.train.{field}='{value}' is not one of"):
        optim.optimizer(_train(**{field: value}))


def test_parameters_of_the_model_have_the_names_that_masks_look_for(tiny_config):
    from ggcf_jax import models

    _, params, _ = models.abstract(tiny_config, 5)
    kernels = jax.tree.leaves(optim.kernels(params))
    outside = jax.tree.leaves(optim.outside_backbone(params))
    assert 5 < sum(kernels) < len(kernels) - 5
    assert 5 < sum(outside) < len(outside) - 5
    for leaf, kernel in zip(jax.tree.leaves(params), kernels):
        assert kernel or leaf.ndim <= 2  # biases and scales, stacked or not
