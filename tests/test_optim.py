import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ggcf_jax import optim


def _train(**changes):
    values = dict(learning_rate=0.02, poly_power=2.0, steps=10, momentum=0.9, weight_decay=5e-4)
    return ConfigDict(values | changes)


@pytest.mark.parametrize('power', [2.0, 0.9])
def test_schedule_is_the_papers(power):
    schedule = optim.schedule(_train(poly_power=power))
    expected = [0.02 * (1 - step / 10) ** power for step in range(11)]
    np.testing.assert_allclose([schedule(step) for step in range(11)], expected, atol=1e-8)


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
