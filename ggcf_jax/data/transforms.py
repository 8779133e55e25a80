"""Augmentations of one image and its labels: plain functions of (image, label, rng).

Images are uint8 [h, w, 3] RGB, labels uint8 [h, w] of train ids with 255 = ignore. All randomness
comes from the numpy Generator that is passed in, so an augmented sample is reproducible.
"""

import dataclasses

import cv2
import numpy as np

from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.records.jpeg_tiles import TiledImage

MEAN_COLOR = (124, 116, 104)  # ImageNet mean in 8-bit RGB: padding that is zero once normalised
CROP_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Window:
    """Part of an axis: `length` source pixels from `start`, resized to `output` pixels."""

    start: int
    length: int
    output: int

    @property
    def source(self) -> slice:
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
        scale_step: draw only from smallest, smallest + step, ... up to the largest; 0 for any.
        aspect_jitter: the ratio of width to height changes by a factor in 1 -+ this; the area
            stays that of the drawn scale.
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
    """Draws the part of an axis that a crop of `crop` pixels shows of it, rescaled by `scale`.

    Args:
        length: pixels of the axis. crop: pixels of the crop. scale: rescaling factor.
        rng: source of randomness.
        around: a pixel that the window has to contain.
    """
    source = max(1, round(crop / scale))
    if source > length:
        return Window(0, length, min(crop, max(1, round(length * scale))))
    first, last = 0, length - source
    if around is not None:
        first, last = max(first, around - source + 1), min(last, around)
    return Window(int(rng.integers(first, last + 1)), source, crop)


def largest_class_share(label: np.ndarray) -> float:
    """Share of the most frequent class among the labelled pixels; 1 if there are none."""
    counts = cv2.calcHist([np.ascontiguousarray(label)], [0], None, [256], [0, 256]).ravel()[
        :IGNORE
    ]
    return float(counts.max() / counts.sum()) if counts.any() else 1.0


def resize_window(
    image: np.ndarray | TiledImage, label: np.ndarray, rows: Window, columns: Window
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the window and resizes only that, which costs the same at every image size."""
    size = (columns.output, rows.output)  # OpenCV's order
    return (
        cv2.resize(image[rows.source, columns.source], size, interpolation=cv2.INTER_LINEAR),
        # INTER_NEAREST samples pixel corners and would shift the labels against the image.
        cv2.resize(label[rows.source, columns.source], size, interpolation=cv2.INTER_NEAREST_EXACT),
    )


def photometric_distortion(
    image: np.ndarray, rng: np.random.Generator, strength: float = 1.0
) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue, each with probability one half.

    At strength 1 the ranges are those of SSD (Liu et al., 2016) and mmseg: brightness +-32 of
    255, contrast and saturation x 0.5 to 1.5, hue +-18 of 180; other strengths scale them.
    Contrast comes before or after saturation and hue, with equal probability.
    """
    contrast_first = rng.random() < 0.5
    offset = rng.uniform(-32, 32) * strength if rng.random() < 0.5 else 0.0
    contrast, saturation = (
        1 + rng.uniform(-0.5, 0.5) * strength if rng.random() < 0.5 else 1.0 for _ in range(2)
    )
    hue = round(rng.uniform(-18, 18) * strength) if rng.random() < 0.5 else 0
    levels = np.arange(256, dtype=np.float64)
    first = levels + offset
    image = cv2.LUT(image, _table(first * contrast if contrast_first else first))
    if saturation != 1.0 or hue:
        tables = [(np.arange(256) + hue) % 180, levels * saturation, levels]
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv = cv2.LUT(hsv, np.stack([_table(t) for t in tables], axis=-1)[:, None])
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return image if contrast_first else cv2.LUT(image, _table(levels * contrast))


def _table(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


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
        return cv2.flip(image, 1), cv2.flip(label, 1)
    return image, label


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """The paper's training augmentation and the additions of its descendants.

    Random rescaling, crop and horizontal flip are the paper's (4.1). Where the rescaled image is
    smaller than the crop, the rest below and to the right is padded.

    Attributes:
        crop_size: (h, w) of the output.
        scale_range, scale_step, aspect_jitter: see `random_scales`.
        max_class_share: draw the crop's place anew, up to ten times, while one class has a larger
            share of its labelled pixels (mmseg's cat_max_ratio); 1 for the first place drawn.
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
        image: np.ndarray | TiledImage,
        label: np.ndarray,
        rng: np.random.Generator,
        around: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(image, label) of any size -> (image [*crop_size, 3], label [*crop_size]).

        Of a `TiledImage` only the window of the crop is decoded.

        Args:
            around: a pixel (y, x) of the source that the crop has to show.
        """
        scales = random_scales(rng, self.scale_range, self.scale_step, self.aspect_jitter)
        around = around or (None, None)
        for _ in range(CROP_TRIES):
            rows, columns = (
                random_window(*axis, rng, point)
                for *axis, point in zip(label.shape, self.crop_size, scales, around)
            )
            if self.max_class_share >= 1:
                break
            if largest_class_share(label[rows.source, columns.source]) <= self.max_class_share:
                break
        image, label = resize_window(image, label, rows, columns)
        if self.photometric:
            image = photometric_distortion(image, rng, self.photometric)
        image, label = pad_to(image, label, self.crop_size)
        return random_flip(image, label, rng)
