"""Pictures of images: label maps in their colours and comparison panels.

Images are uint8 RGB arrays [h, w, 3].
"""

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from ggcf_jax import atomic

Color = tuple[int, int, int]

_WRONG = (235, 30, 45)
_IGNORED = (128, 128, 128)
_CAPTION = (38, 38, 42)
_SEPARATOR = (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def colorize(
    labels: Int[np.ndarray, 'h w'], colors: Sequence[Color], ignore: int
) -> UInt8[np.ndarray, 'h w 3']:
    """Paints a label map.

    Args:
        labels: class of each pixel, or `ignore`.
        colors: RGB of each class, 0 to 255.
        ignore: label that is painted black.

    Raises:
        ValueError: another label or shape.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2:
        raise ValueError(f'labels have shape {list(labels.shape)}; give [h, w]')
    bad = (labels != ignore) & ((labels < 0) | (labels >= len(colors)))
    if bad.any():
        raise ValueError(
            f'label {labels[bad][0]} is neither one of 0..{len(colors) - 1} nor {ignore} (ignore)'
        )
    table = np.asarray([*colors, (0, 0, 0)], np.uint8)
    return table[np.where(labels == ignore, len(colors), labels)]


def panel(
    image: UInt8[np.ndarray, 'h w 3'],
    label: Int[np.ndarray, 'h w'],
    prediction: Int[np.ndarray, 'h w'],
    colors: Sequence[Color],
    ignore: int,
) -> UInt8[np.ndarray, 'rows columns 3']:
    """Input | ground truth | prediction | errors, side by side with captions.

    Errors are red on the dimmed grey image, ignored pixels grey; the caption gives their share of
    the labelled pixels.

    Args:
        image: RGB.
        label: train id of each pixel, or `ignore`.
        prediction: predicted train id of each pixel.
        colors: RGB of each class, 0 to 255.
        ignore: label of the pixels that do not count.

    Returns:
        The four pictures with separators between them and captions above.

    Raises:
        ValueError: sizes differ, or a label is out of range.
    """
    image, label, prediction = np.asarray(image), np.asarray(label), np.asarray(prediction)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'image is {image.dtype} {list(image.shape)}; give uint8 [h, w, 3]')
    if not image.shape[:2] == label.shape == prediction.shape:
        raise ValueError(
            f'image {list(image.shape[:2])}, label {list(label.shape)} and prediction '
            f'{list(prediction.shape)} are not of one size'
        )
    counted = label != ignore
    wrong = counted & (label != prediction)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) // 2
    errors = np.repeat(grey[..., None], 3, axis=2)
    # A quarter of the picture shows through: which object was mistaken stays visible.
    errors[wrong] = (0.75 * np.asarray(_WRONG) + 0.75 * errors[wrong]).clip(0, 255)
    errors[~counted] = _IGNORED
    share = f'errors {100 * wrong.sum() / counted.sum():.1f}%' if counted.any() else 'errors'
    tiles = {
        'input': image,
        'ground truth': colorize(label, colors, ignore),
        'prediction': colorize(prediction, colors, ignore),
        share: errors,
    }
    frame = _frame(image.shape[1])
    size, bar = frame.size, frame.bar
    gap = np.full((image.shape[0] + bar, frame.gap, 3), _SEPARATOR, np.uint8)
    parts = []
    for caption, tile in tiles.items():
        strip = np.full((bar, tile.shape[1], 3), _CAPTION, np.uint8)
        _write(strip, caption, round(8 * size), bar // 2, 0.6 * size, (240, 240, 240))
        parts += [gap, np.concatenate([strip, tile])]
    return np.concatenate(parts[1:], axis=1)


def input_of_panel(panel: UInt8[np.ndarray, 'h w 3']) -> UInt8[np.ndarray, 'h w 3'] | None:
    """Takes the image out of a panel, pixel by pixel; None for a picture of another layout."""
    # The width of the panel, four tiles and three separators, grows with that of the image.
    for width in range(panel.shape[1] // 4, 0, -1):
        frame = _frame(width)
        whole = 4 * width + 3 * frame.gap
        if whole < panel.shape[1]:
            return None
        if whole == panel.shape[1] and panel.shape[0] > frame.bar:
            separator = panel[:, width : width + frame.gap]
            return panel[frame.bar :, :width].copy() if (separator == 255).all() else None
    return None


class _Frame(NamedTuple):
    """What is around the images of a panel.

    Attributes:
        size: scale of the captions.
        bar: height of the captions, in pixels.
        gap: width of the separators, in pixels.
    """

    size: float
    bar: int
    gap: int


def _frame(width: int) -> _Frame:
    size = min(width / 480, 2.0)
    return _Frame(size, max(round(28 * size), 8), max(round(3 * size), 1))


def encode_png(rgb: UInt8[np.ndarray, 'h w 3']) -> bytes:
    """Encodes an RGB image; raises ValueError for another dtype or shape."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f'image is {rgb.dtype} {list(rgb.shape)}; give uint8 [h, w, 3]')
    return cv2.imencode('.png', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()


def encode_palette_png(values: UInt8[np.ndarray, 'h w'], colors: Mapping[int, Color]) -> bytes:
    """Encodes a label map as a PNG whose pixels are its values and whose palette shows them.

    Args:
        values: value of each pixel.
        colors: RGB of each value, 0 to 255; others are black.
    """
    palette = np.zeros((256, 3), np.uint8)
    for value, color in colors.items():
        palette[value] = color
    picture = Image.frombytes('P', values.shape[::-1], np.ascontiguousarray(values))
    picture.putpalette(palette.tobytes())
    content = io.BytesIO()
    picture.save(content, 'PNG', compress_level=3)  # as small as the default, three times as fast
    return content.getvalue()


def write_png(path: pathlib.Path, rgb: UInt8[np.ndarray, 'h w 3']) -> None:
    """Writes an RGB image atomically; makes the folder."""
    atomic.write(path, encode_png(rgb))


def _write(picture: np.ndarray, text: str, x: int, middle: int, scale: float, color: Color) -> None:
    """Writes one line of text in place, vertically centred."""
    (_, height), _ = cv2.getTextSize(text, _FONT, scale, 1)
    thickness = max(round(1.6 * scale), 1)
    at = (x, middle + height // 2)
    cv2.putText(picture, text, at, _FONT, scale, color, thickness, cv2.LINE_AA)
