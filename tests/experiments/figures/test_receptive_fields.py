import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import runs
from experiments.figures import receptive_fields

_STRIDE = 8
# Of the tiny ResNet-10 and the 3x3 convolution after it, by its layers: kernels 7, 3 (pooling),
# then pairs of 3 with dilations 1, 1, 2, 4 at strides 4, 8, 8, 8.
_FIELD = 7 + 2 * 2 + 2 * 4 * 2 + 2 * 4 + 2 * 8 + 2 * 2 * 8 * 2 + 2 * 4 * 8 * 2 + 2 * 8


@pytest.fixture(scope='module')
def models(workdirs):
    selected = runs.select([str(workdirs / name) for name in ('none', 'full')])
    return {run.model: loaded.model for run, loaded in runs.load_each(selected, 'latest')}


def test_occlusion_against_a_loop(models, rng):
    model = models['FULL']
    image = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
    sliding = receptive_fields.Sliding(window=16, step=12, batch=4)
    queries = [(0, 0), (21, 40)]
    found = receptive_fields.make_occlusion(model, sliding)(image, queries)
    respond = jax.jit(lambda images: model.network(images)[0])
    mean = np.round(image.astype(np.float32).mean((0, 1))).astype(np.uint8)
    untouched = np.asarray(respond(image[None]))[0]
    expected = []
    for y in (0, 12, 24):
        for x in (0, 12, 24, 32):
            covered = image.copy()
            covered[y : y + 16, x : x + 16] = mean
            change = np.asarray(respond(covered[None]))[0] - untouched
            expected.append([np.linalg.norm(change[i, j]) for i, j in ((0, 0), (3, 5))])
    assert found.shape == (12, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    corners = [(y, x) for y in (0, 12, 24) for x in (0, 12, 24, 32)]
    np.testing.assert_array_equal(sliding.corners((40, 48)), corners)


def test_fields_of_a_known_size(models, rng):
    """Nothing outside of what convolutions can reach changes anything; attention sees it all."""
    image = rng.integers(0, 256, (8, 400, 3), dtype=np.uint8)
    sliding = receptive_fields.Sliding(window=8, step=8, batch=10)
    reach = (_FIELD - 1) // 2
    query, x = (0, 200), np.arange(400)
    starts = sliding.corners((8, 400))[:, 1]
    seen = (starts + 7 >= 200 - reach) & (starts <= 200 + reach)
    changes = {
        name: receptive_fields.make_occlusion(model, sliding)(image, [query])[:, 0]
        for name, model in models.items()
    }
    np.testing.assert_array_equal(changes['Baseline'][~seen], 0)
    assert (changes['Baseline'][np.abs(starts - 200) < 0.6 * reach] > 0).all()
    # This untrained attention is sharp: only some of the far places count.
    assert (~seen).sum() > 10 and (changes['FULL'][~seen] > 0).any()
    power = receptive_fields.make_gradient(models['Baseline'])(image, [query])[0].sum(0)
    np.testing.assert_array_equal(power[np.abs(x - 200) > reach], 0)
    assert (power[np.abs(x - 200) < 0.6 * reach] > 0).mean() > 0.25


def test_gradient_against_the_jacobian(rng):
    weights = jnp.asarray(rng.normal(size=(3, 3, 3, 4)), jnp.float32)

    def model(images):
        x = jax.lax.conv_general_dilated(
            images.astype(jnp.float32) / 255, weights, (2, 2), 'SAME',
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )  # fmt: skip
        return jnp.tanh(x), None

    image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    found = receptive_fields.gradient_power(model, image, np.array([1, 2]))
    jacobian = jax.jacobian(lambda x: model(x[None])[0][0, 1, 2])(image.astype(np.float32))
    np.testing.assert_allclose(
        found, (np.asarray(jacobian) ** 2).sum((0, 3)), rtol=1e-5, atol=1e-12
    )
    assert (np.asarray(found) > 0).sum() == 9


def test_maps_against_loops(rng):
    power = rng.random((10, 13))
    found = receptive_fields.cell_means(power, 4)
    for y, x in np.ndindex(10, 13):
        block = power[y // 4 * 4 : y // 4 * 4 + 4, x // 4 * 4 : x // 4 * 4 + 4]
        assert found[y, x] == pytest.approx(np.sqrt(block.mean()))
    corners = np.array([(0, 0), (0, 3), (2, 3)])
    found = receptive_fields.spread_out(np.array([1.0, 2.0, 5.0]), corners, 4, (7, 8))
    assert found[0, 0] == 1 and found[1, 3] == 1.5 and found[2, 3] == 8 / 3 and found[5, 6] == 5
    assert found[6, 0] == 0 and found[0, 7] == 0


def test_numbers_of_maps():
    even = receptive_fields.measure(np.full((10, 10), 3.0), (0, 0))
    assert even.half_area == 0.5 and even.largest == 3
    point = np.zeros((10, 20))
    point[3, 4] = 2
    assert receptive_fields.measure(point, (0, 0)) == (2, 1 / 200, 5)
    assert np.isnan(receptive_fields.measure(np.zeros((2, 2)), (0, 0)).half_area)
