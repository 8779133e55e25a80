import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ggcf_jax.models.layers import extent as extent_lib
from ggcf_jax.models.layers.resize import nearest_positions, pixels_of_positions, upsample


def _definition(x, stride, size, first=0.0):
    """Bilinear interpolation at (p - first) / stride, clamped to the outermost features."""
    out = np.zeros((x.shape[0], *size, x.shape[3]))
    for p in range(size[0]):
        for q in range(size[1]):
            y, z = (max(0, i - first) / stride for i in (p, q))
            y, z = (min(i, n - 1) for i, n in zip((y, z), x.shape[1:3]))
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, x.shape[1] - 1), min(z0 + 1, x.shape[2] - 1)
            fy, fz = y - y0, z - z0
            top = x[:, y0, z0] * (1 - fz) + x[:, y0, z1] * fz
            bottom = x[:, y1, z0] * (1 - fz) + x[:, y1, z1] * fz
            out[:, p, q] = top * (1 - fy) + bottom * fy
    return out


@pytest.mark.parametrize(
    ('stride', 'size', 'first'),
    [
        (8, (33, 24), 0.0),
        (8, (1, 7), 0.0),
        (4, (10, 17), 0.0),
        (1, (3, 5), 0.0),
        (8, (32, 21), 3.5),
        (4, (10, 3), 1.5),
        (16, (40, 33), 15.5),
    ],
)
def test_equals_definition(rng, stride, size, first):
    x = rng.normal(size=(2, *(-(-length // stride) for length in size), 3))
    found = upsample(jnp.float32(x), stride, size, first=first)
    np.testing.assert_allclose(found, _definition(x, stride, size, first), atol=1e-5)


def test_maps_of_an_extent_are_upsampled_as_alone(rng):
    x = jnp.float32(rng.normal(size=(1, 5, 4, 2)))
    own = extent_lib.of_sizes(jnp.array([[3, 2]]))
    found = upsample(x, 4, (20, 16), own, first=1.5)
    alone = upsample(x[:, :3, :2], 4, (12, 8), first=1.5)
    np.testing.assert_allclose(found[:, :12, :8], alone, atol=1e-6)


def test_patches_are_upsampled_as_by_torch(rng):
    torch = pytest.importorskip('torch')
    x = rng.normal(size=(1, 3, 5, 2)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.tensor(x).permute(0, 3, 1, 2), scale_factor=8, mode='bilinear', align_corners=False
    )
    found = upsample(jnp.asarray(x), 8, (24, 40), first=3.5)
    np.testing.assert_allclose(found, theirs.permute(0, 2, 3, 1), atol=1e-5)


def test_a_first_feature_outside_of_its_cell_is_refused():
    with pytest.raises(ValueError, match=r'lies on pixel 8, which is not in \[0, 8\)'):
        upsample(jnp.zeros((1, 2, 2, 1)), 8, (16, 16), first=8)


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
    # At 3.5, 11.5 and 19.5, the last one beyond the image.
    found = nearest_positions([[0, 0], [7, 3], [8, 8], [18, 9]], 8, (19, 10), 3.5)
    assert found.tolist() == [[0, 0], [0, 0], [1, 1], [2, 1]]
    assert pixels_of_positions(8, 19, 3.5).tolist() == [3, 11, 18]
    assert pixels_of_positions(8, 17).tolist() == [0, 8, 16]
