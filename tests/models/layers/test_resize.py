import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax.models.layers.resize import nearest_positions, upsample


def _definition(x, stride, size):
    """Bilinear interpolation at p / stride, clamped to the last feature."""
    out = np.zeros((x.shape[0], *size, x.shape[3]))
    for p in range(size[0]):
        for q in range(size[1]):
            y, z = p / stride, q / stride
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, x.shape[1] - 1), min(z0 + 1, x.shape[2] - 1)
            fy, fz = y - y0, z - z0
            top = x[:, y0, z0] * (1 - fz) + x[:, y0, z1] * fz
            bottom = x[:, y1, z0] * (1 - fz) + x[:, y1, z1] * fz
            out[:, p, q] = top * (1 - fy) + bottom * fy
    return out


@pytest.mark.parametrize(
    ('stride', 'size'), [(8, (33, 24)), (8, (1, 7)), (4, (10, 17)), (1, (3, 5))]
)
def test_equals_definition(rng, stride, size):
    x = rng.normal(size=(2, *(-(-length // stride) for length in size), 3))
    np.testing.assert_allclose(
        upsample(jnp.float32(x), stride, size), _definition(x, stride, size), atol=1e-5
    )


def test_gradient_equals_definition(rng):
    x = rng.normal(size=(1, 3, 2, 2))
    weight = rng.normal(size=(1, 20, 13, 2))
    gradient = jax.grad(lambda x: (upsample(x, 8, (20, 13)) * weight).sum())(jnp.float32(x))
    expected = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        unit = np.zeros_like(x)
        unit[index] = 1
        expected[index] = (_definition(unit, 8, (20, 13)) * weight).sum()
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


def test_odd_sizes_align_corners(rng):
    x = jnp.float32(rng.normal(size=(1, 5, 5, 1)))
    y = upsample(x, 8, (33, 33))
    np.testing.assert_array_equal(y[:, ::8, ::8], x)


def test_wrong_size_is_refused():
    with pytest.raises(ValueError, match=r'features of \(4, 4\) cannot be upsampled by 8 to'):
        upsample(jnp.zeros((1, 4, 4, 1)), 8, (33, 32))


def test_nearest_positions():
    # Features at 0, 8 and 16 of 20 rows; at 0 and 8 of 9 columns.
    found = nearest_positions([[3, 3], [4, 4], [11, 8], [12, 0], [19, 8]], 8, (20, 9))
    assert found.tolist() == [[0, 0], [1, 1], [1, 1], [2, 0], [2, 1]]
