import cv2
import numpy as np
import pytest

from ggcf_jax.evaluation.boundary import BoundaryCounts, near_contours


def _contour(mask, distance):
    """The pixels of a mask near its contour, as the authors find them: by erosion."""
    framed = np.pad(mask.astype(np.uint8), 1)
    eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return mask & (eroded == 0)


@pytest.mark.parametrize(('share', 'distance'), [(0.02, 1), (0.06, 3), (0.3, 15)])
def test_counts_equal_the_definition(rng, share, distance):
    total = BoundaryCounts(4, share)
    inside, either = np.zeros(4, int), np.zeros(4, int)
    for _ in range(3):
        label, prediction = (
            cv2.resize(rng.integers(0, 3, (5, 6), dtype=np.uint8), (40, 30), interpolation=0)
            for _ in range(2)
        )
        total.add(label, prediction)
        for c in range(4):
            truth, guess = (_contour(x == c, distance) for x in (label, prediction))
            inside[c] += (truth & guess).sum()
            either[c] += (truth | guess).sum()
    np.testing.assert_array_equal(total.intersection, inside)
    np.testing.assert_array_equal(total.union, either)
    assert total.iou()[:3] == pytest.approx(inside[:3] / either[:3]) and total.iou()[3] is None
    assert total.mean() == pytest.approx((inside[:3] / either[:3]).mean())


def test_what_is_not_labelled_counts_nowhere():
    label = np.zeros((20, 20), np.uint8)
    label[:, 10:] = 255
    prediction = np.zeros((20, 20), np.uint8)
    prediction[:, 12:] = 1
    total = BoundaryCounts(2, 0.05)
    total.add(label, prediction)
    assert total.iou() == [1.0, None]
    assert np.isnan(BoundaryCounts(2, 0.05).mean())


def test_the_border_of_the_image_is_a_contour():
    near = near_contours(np.zeros((9, 9), np.uint8), 2)
    assert not near[2:-2, 2:-2].any() and near.sum() == 81 - 25
