"""Augmentations of one image and its labels: plain functions of (image, label, rng).

Images are uint8 [h, w, 3] RGB, labels uint8 [h, w] of train ids with 255 = ignore. All randomness
comes from the numpy Generator that is passed in, so an augmented sample is reproducible.
"""

import dataclasses

import cv2
import numpy as np

from ggcf_jax.data.dataset import IGNORE

MEAN_COLOR = (124, 116, 104)  # ImageNet mean in 8-bit RGB: padding that is zero once normalised


def rescaled_crop(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    scale_range: tuple[float, float],
    crop_size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Rescales by a factor drawn uniformly from `scale_range` and crops at a random place.

    The source window of the crop is cut first and only that is resized, which costs the same at
    every image size. Where the rescaled image is smaller than the crop, the rest below and to the
    right is padded with the mean colour and the ignore label.

    Returns:
        (image [*crop_size, 3], label [*crop_size]).
    """
    scale = rng.uniform(*scale_range)
    (top, rows, out_rows), (left, columns, out_columns) = (
        _window(length, crop, scale, rng) for length, crop in zip(label.shape, crop_size)
    )
    image = image[top : top + rows, left : left + columns]
    label = label[top : top + rows, left : left + columns]
    size = (out_columns, out_rows)  # OpenCV's order
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    # INTER_NEAREST samples pixel corners and would shift the labels against the image.
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return pad_to(image, label, crop_size)


def _window(length: int, crop: int, scale: float, rng: np.random.Generator) -> tuple[int, int, int]:
    """One axis of a rescaled crop: (source start, source length, output length)."""
    source = max(1, round(crop / scale))
    if source <= length:
        return int(rng.integers(0, length - source + 1)), source, crop
    return 0, length, min(crop, max(1, round(length * scale)))


def pad_to(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Pads below and to the right to `size` (h, w) with the mean colour and the ignore label."""
    rows, columns = size[0] - label.shape[0], size[1] - label.shape[1]
    if rows == columns == 0:
        return image, label
    border = (0, rows, 0, columns, cv2.BORDER_CONSTANT)
    return (
        cv2.copyMakeBorder(image, *border, value=MEAN_COLOR),
        cv2.copyMakeBorder(label, *border, value=IGNORE),
    )


def random_flip(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors image and label left to right with probability one half."""
    if rng.random() < 0.5:
        return image[:, ::-1], label[:, ::-1]
    return image, label


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """The paper's training augmentation: random rescaling, crop and horizontal flip (4.1).

    Attributes:
        crop_size: (h, w) of the output.
        scale_range: (smallest, largest) rescaling factor.
    """

    crop_size: tuple[int, int]
    scale_range: tuple[float, float]

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        image, label = rescaled_crop(image, label, rng, self.scale_range, self.crop_size)
        image, label = random_flip(image, label, rng)
        return np.ascontiguousarray(image), np.ascontiguousarray(label)
