"""Augmentation of one image and its label: plain functions of (image, label, rng).

All randomness comes from the numpy Generator that is passed in, so an augmented sample is
reproducible.
"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from ggcf_jax.data.records.codec import IGNORE, WindowedImage

Image = UInt8[np.ndarray, 'h w 3']  # RGB
Label = UInt8[np.ndarray, 'h w']  # train ids, 255 = ignore

MEAN_COLOR = (124, 116, 104)  # ImageNet mean in 8-bit RGB: padding that is zero once normalised
CROP_TRIES = 10  # positions of a crop that are tried for `max_class_share`


@dataclasses.dataclass(frozen=True)
class Window:
    """Part of an axis of the source image, and the size it is resized to.

    Attributes:
        start: first source pixel.
        length: number of source pixels.
        output: number of pixels after resizing.
    """

    start: int
    length: int
    output: int

    @property
    def source(self) -> slice:
        """The source pixels."""
        return slice(self.start, self.start + self.length)


def random_scales(
    rng: np.random.Generator,
    scale_range: tuple[float, float],
    scale_step: float = 0.0,
    aspect_jitter: float = 0.0,
) -> tuple[float, float]:
    """Draws the rescaling factors of rows and columns.

    Args:
        rng: source of randomness.
        scale_range: (smallest, largest) factor, drawn uniformly.
        scale_step: distance of the factors that can be drawn, from the smallest on; 0 for any
            factor in the range.
        aspect_jitter: the ratio of width to height changes by a factor in 1 -+ this; the area
            stays that of the drawn scale.

    Returns:
        Factor of the rows, factor of the columns.
    """
    low, high = scale_range
    if scale_step:
        count = int((high - low) / scale_step + 1e-6) + 1
        scale = low + scale_step * int(rng.integers(count))
    else:
        scale = rng.uniform(low, high)
    if not aspect_jitter:
        return scale, scale
    root = np.sqrt(rng.uniform(1 - aspect_jitter, 1 + aspect_jitter))
    return scale / root, scale * root


def random_window(
    length: int, crop: int, scale: float, rng: np.random.Generator, around: int | None = None
) -> Window:
    """Draws the part of an axis that a crop shows.

    Args:
        length: size of the source image along the axis, in pixels.
        crop: size of the crop along the axis, in pixels.
        scale: rescaling factor of the axis.
        rng: source of randomness.
        around: source pixel that the window must contain; None for any window.
    """
    source = max(1, round(crop / scale))
    if source > length:
        return Window(0, length, min(crop, max(1, round(length * scale))))
    first, last = 0, length - source
    if around is not None:
        first, last = max(first, around - source + 1), min(last, around)
    return Window(int(rng.integers(first, last + 1)), source, crop)


def largest_class_share(label: Label) -> float:
    """Returns the share of the most frequent class among the labelled pixels; 1 if there are none.

    Args:
        label: train ids.
    """
    histogram = cv2.calcHist([np.ascontiguousarray(label)], [0], None, [256], [0, 256])
    counts = histogram.ravel()[:IGNORE]
    return float(counts.max() / counts.sum()) if counts.any() else 1.0


def resize_window(
    image: WindowedImage, label: Label, rows: Window, columns: Window
) -> tuple[Image, Label]:
    """Cuts out a window and resizes only that, at a cost that does not depend on the image size.

    Args:
        image: source image, decoded or not.
        label: label of the source image.
        rows: rows of the window.
        columns: columns of the window.

    Returns:
        Image and label of [rows.output, columns.output] pixels.
    """
    size = (columns.output, rows.output)  # OpenCV's order
    return (
        cv2.resize(image[rows.source, columns.source], size, interpolation=cv2.INTER_LINEAR),
        # INTER_NEAREST samples pixel corners and would shift the labels against the image.
        cv2.resize(label[rows.source, columns.source], size, interpolation=cv2.INTER_NEAREST_EXACT),
    )


def photometric_distortion(image: Image, rng: np.random.Generator, strength: float = 1.0) -> Image:
    """Changes brightness, contrast, saturation and hue, each with probability one half.

    At strength 1 the ranges are those of SSD (Liu et al., 2016) and mmseg: brightness +-32 of
    255, contrast and saturation x 0.5 to 1.5, hue +-18 of 180. Contrast is changed before or after
    saturation and hue, with equal probability.

    Args:
        image: image to change; it is not written to.
        rng: source of randomness.
        strength: factor of the ranges.
    """
    contrast_first = rng.random() < 0.5
    offset = _half_the_time(rng, 32) * strength
    contrast = 1 + _half_the_time(rng, 0.5) * strength
    saturation = 1 + _half_the_time(rng, 0.5) * strength
    hue = round(_half_the_time(rng, 18) * strength)
    levels = np.arange(256, dtype=np.float64)
    first = levels + offset
    image = cv2.LUT(image, _lookup_table(first * contrast if contrast_first else first))
    if saturation != 1.0 or hue:
        tables = [(np.arange(256) + hue) % 180, levels * saturation, levels]
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv = cv2.LUT(hsv, np.stack([_lookup_table(t) for t in tables], axis=-1)[:, None])
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return image if contrast_first else cv2.LUT(image, _lookup_table(levels * contrast))


def _half_the_time(rng: np.random.Generator, limit: float) -> float:
    """Draws from -limit .. limit with probability one half; otherwise 0."""
    return rng.uniform(-limit, limit) if rng.random() < 0.5 else 0.0


def _lookup_table(values: Float64[np.ndarray, '256']) -> UInt8[np.ndarray, '256']:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def pad_to(image: Image, label: Label, size: tuple[int, int]) -> tuple[Image, Label]:
    """Pads at the bottom and on the right with the mean colour and the ignore label.

    Args:
        image: image to pad.
        label: its label.
        size: (height, width) of the result, in pixels.
    """
    rows, columns = size[0] - label.shape[0], size[1] - label.shape[1]
    if rows == columns == 0:
        return image, label
    border = (0, rows, 0, columns, cv2.BORDER_CONSTANT)
    return (
        cv2.copyMakeBorder(image, *border, value=MEAN_COLOR),
        cv2.copyMakeBorder(label, *border, value=IGNORE),
    )


def random_flip(image: Image, label: Label, rng: np.random.Generator) -> tuple[Image, Label]:
    """Mirrors image and label left to right with probability one half.

    Args:
        image: image to mirror.
        label: its label.
        rng: source of randomness.
    """
    if rng.random() < 0.5:
        return cv2.flip(image, 1), cv2.flip(label, 1)
    return image, label


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """The paper's training augmentation and what later work added to it.

    Random rescaling, crop and horizontal flip are the paper's (section 4.1). A rescaled image that
    is smaller than the crop is padded at the bottom and on the right.

    Attributes:
        crop_size: (height, width) of the output, in pixels.
        scale_range: (smallest, largest) rescaling factor.
        scale_step: distance of the rescaling factors, see `random_scales`; 0 for any factor.
        aspect_jitter: change of the aspect ratio, see `random_scales`; 0 for none.
        max_class_share: the position of the crop is drawn again, up to ten times, while one class
            has a larger share of the labelled pixels (cat_max_ratio in mmseg); 1 takes the first.
        photometric: strength of `photometric_distortion`; 0 for none.
    """

    crop_size: tuple[int, int]
    scale_range: tuple[float, float]
    scale_step: float = 0.0
    aspect_jitter: float = 0.0
    max_class_share: float = 1.0
    photometric: float = 0.0

    def __call__(
        self,
        image: WindowedImage,
        label: Label,
        rng: np.random.Generator,
        around: tuple[int, int] | None = None,
    ) -> tuple[Image, Label]:
        """Augments an image and its label, of any size.

        Args:
            image: image, of which only the window of the crop is read.
            label: its label.
            rng: source of randomness.
            around: source pixel (y, x) that the crop must show; None for any crop.

        Returns:
            Image and label of `crop_size`.
        """
        (height, width), (crop_height, crop_width) = label.shape, self.crop_size
        y, x = (None, None) if around is None else around
        row_scale, column_scale = random_scales(
            rng, self.scale_range, self.scale_step, self.aspect_jitter
        )
        for _ in range(CROP_TRIES):
            rows = random_window(height, crop_height, row_scale, rng, y)
            columns = random_window(width, crop_width, column_scale, rng, x)
            if self.max_class_share >= 1:
                break
            if largest_class_share(label[rows.source, columns.source]) <= self.max_class_share:
                break
        crop, crop_label = resize_window(image, label, rows, columns)
        if self.photometric:
            crop = photometric_distortion(crop, rng, self.photometric)
        crop, crop_label = pad_to(crop, crop_label, self.crop_size)
        return random_flip(crop, crop_label, rng)
