"""Boundary IoU: intersection over union of the pixels that lie close to the contours of a class.

Cheng, Girshick, Dollár, Berg and Kirillov (2021), "Boundary IoU: Improving object-centric image
segmentation evaluation", Eq. 2: the pixels of a class that lie within a distance of its contour, in
the ground truth and in the prediction. As in the authors' code, the distance is a share of the
image's diagonal (2 % by default there), steps are those of a king, and the border of the image is
a contour. The pixels are summed over the images of a split before they are divided, as for the IoU.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Int, UInt8

from ggcf_jax.data.records.codec import IGNORE

_OUTSIDE = 254  # no class: data sets have at most 254


class BoundaryCounts:
    """Pixels close to contours, by class, summed over images.

    Attributes:
        share: distance to the contour, as a share of the image's diagonal.
        intersection: pixels close to a contour of a class in both, int64 [C].
        union: pixels close to a contour of a class in either, int64 [C].
    """

    def __init__(self, num_classes: int, share: float):
        """
        Args:
            num_classes: number of classes C.
            share: distance to the contour, as a share of the image's diagonal.
        """
        self.share = share
        self.intersection: Int[np.ndarray, ' classes'] = np.zeros(num_classes, np.int64)
        self.union: Int[np.ndarray, ' classes'] = np.zeros(num_classes, np.int64)

    def add(self, label: UInt8[np.ndarray, 'h w'], prediction: UInt8[np.ndarray, 'h w']) -> None:
        """Counts the pixels of an image.

        Pixels without label count nowhere, and both maps have a contour around them.

        Args:
            label: train id of each pixel, or 255.
            prediction: predicted train id of each pixel.
        """
        distance = max(1, round(self.share * float(np.hypot(*label.shape))))
        prediction = np.where(label == IGNORE, np.uint8(IGNORE), prediction)
        truth = np.where(near_contours(label, distance), label, np.uint8(IGNORE))
        guess = np.where(near_contours(prediction, distance), prediction, np.uint8(IGNORE))
        in_truth, in_guess, in_both = (
            np.bincount(x.reshape(-1), minlength=256)[: len(self.union)]
            for x in (truth, guess, truth[truth == guess])
        )
        self.intersection += in_both
        self.union += in_truth + in_guess - in_both

    def iou(self) -> list[float | None]:
        """Boundary IoU of each class; None for a class in neither ground truth nor prediction."""
        pairs = zip(self.intersection.tolist(), self.union.tolist())
        return [inside / either if either else None for inside, either in pairs]

    def mean(self) -> float:
        """Mean over the classes present; NaN if there is none."""
        present = [value for value in self.iou() if value is not None]
        return sum(present) / len(present) if present else float('nan')


def near_contours(labels: UInt8[np.ndarray, 'h w'], distance: int) -> Bool[np.ndarray, 'h w']:
    """Whether a pixel is within a distance of another class or of the border of the image.

    Args:
        labels: class of each pixel.
        distance: number of pixels, along rows, columns and diagonals alike.
    """
    framed = np.pad(labels, distance, constant_values=_OUTSIDE)
    window = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    # Far from contours all values of the window are one: the least and the largest are equal.
    near = cv2.erode(framed, window) != cv2.dilate(framed, window)
    return near[distance:-distance, distance:-distance]
