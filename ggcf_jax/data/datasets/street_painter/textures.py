"""Noise, masonry and foliage: surfaces that similar classes share."""

import functools
from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

Color = Sequence[float]  # RGB, 0..255
T = TypeVar('T')

PIXELS_PER_METRE = 14  # resolution of facade textures

# Walls, fences and buildings share these colours.
MASONRY = (
    (150, 82, 66),
    (168, 104, 82),
    (122, 78, 66),
    (196, 178, 146),
    (206, 196, 176),
    (176, 150, 112),
    (142, 138, 132),
    (118, 116, 116),
    (164, 166, 162),
    (132, 106, 78),
    (110, 92, 74),
    (182, 138, 104),
    (128, 140, 142),
)
PATTERNS = ('brick', 'blocks', 'boards', 'plaster', 'panels')

# Grass, hedges and tree crowns share these colours.
GREENS = (
    (78, 102, 48),
    (92, 112, 56),
    (66, 92, 50),
    (104, 116, 62),
    (116, 112, 64),
    (86, 96, 44),
)

# Buses, trucks, trains and cars share these colours.
PAINTS = (
    (196, 42, 38),
    (226, 222, 214),
    (44, 82, 150),
    (232, 186, 44),
    (58, 118, 76),
    (96, 100, 106),
    (40, 42, 46),
    (178, 182, 186),
    (120, 34, 44),
    (52, 138, 168),
    (214, 122, 44),
)


def _fractal(
    rng: np.random.Generator, size: int, octaves: tuple[int, ...]
) -> Float32[np.ndarray, 'size size']:
    """Sum of noise of so many cells a side, finer ones weaker; mean 0, standard deviation 1."""
    total = np.zeros((size, size), np.float32)
    for cells, weight in zip(octaves, 0.75 ** np.arange(len(octaves))):
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        total += np.float32(weight) * cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    total -= total.mean()
    return total / total.std()


@functools.cache
def noise(kind: str) -> UInt8[np.ndarray, '1024 1024']:
    """Returns a sheet of noise with mean 128.

    Args:
        kind: 'cloud', 'grain', 'leaf' or 'sensor'.
    """
    rng = np.random.default_rng([7, ('cloud', 'grain', 'leaf', 'sensor').index(kind)])
    if kind == 'sensor':
        sheet = rng.standard_normal((1024, 1024)).astype(np.float32) * 32
    elif kind == 'cloud':
        sheet = _fractal(rng, 1024, (4, 9, 18, 37, 75)) * 50
    elif kind == 'leaf':
        sheet = _fractal(rng, 1024, (40, 90, 180, 360)) * 46
    else:
        sheet = _fractal(rng, 1024, (16, 64, 256, 1024)) * 40
    return np.clip(sheet + 128, 0, 255).astype(np.uint8)


@functools.cache
def pattern(kind: str) -> UInt8[np.ndarray, '640 1024']:
    """Returns a grey sheet of masonry; 128 is the colour of the material.

    Args:
        kind: one of `PATTERNS`.
    """
    rng = np.random.default_rng([11, PATTERNS.index(kind)])
    rows, columns = 640, 1024
    sheet = np.zeros((rows, columns), np.float32)
    if kind in ('brick', 'blocks', 'panels'):
        height, width = {'brick': (4, 8), 'blocks': (9, 18), 'panels': (38, 42)}[kind]
        tones = rng.normal(
            0, 9 if kind != 'panels' else 5, (rows // height + 1, columns // width + 2)
        )
        y = np.arange(rows) // height
        x = (np.arange(columns)[None, :] + (y % 2)[:, None] * (width // 2)) // width
        sheet += tones[y[:, None], x]
        inside = (np.arange(columns)[None, :] + (y % 2)[:, None] * (width // 2)) % width
        sheet[(inside == 0) | (np.arange(rows) % height == 0)[:, None]] -= 24
    elif kind == 'boards':
        tones = rng.normal(0, 10, columns // 4 + 1)
        sheet += tones[np.arange(columns) // 4][None, :]
        sheet[:, ::4] -= 26
    sheet += (noise('grain')[:rows, :columns].astype(np.float32) - 128) * 0.28
    sheet += (noise('cloud')[:rows, :columns].astype(np.float32) - 128) * 0.16
    return np.clip(sheet + 128, 0, 255).astype(np.uint8)


def crop(
    rng: np.random.Generator, sheet: UInt8[np.ndarray, 'h w'], height: int, width: int
) -> UInt8[np.ndarray, 'height width']:
    """Cuts a random piece out of a sheet, which is repeated where it is too small.

    Args:
        rng: source of randomness.
        sheet: sheet to cut from.
        height: height of the piece in pixels.
        width: width of the piece in pixels.
    """
    if height > sheet.shape[0] or width > sheet.shape[1]:
        times = (-(-height // sheet.shape[0]), -(-width // sheet.shape[1]))
        sheet = np.tile(sheet, times)
    y = rng.integers(sheet.shape[0] - height + 1)
    x = rng.integers(sheet.shape[1] - width + 1)
    return sheet[y : y + height, x : x + width]


def colorize(
    grey: UInt8[np.ndarray, 'h w'], color: Color | np.ndarray, contrast: float = 1.0
) -> UInt8[np.ndarray, 'h w 3']:
    """Tints a grey sheet.

    Args:
        grey: grey levels.
        color: RGB that level 128 becomes.
        contrast: factor of the differences from level 128.
    """
    level = 1 + (np.arange(256, dtype=np.float32)[:, None] / 128 - 1) * contrast
    table = np.clip(level * np.asarray(color, np.float32), 0, 255).astype(np.uint8)
    return cv2.applyColorMap(np.ascontiguousarray(grey), table[:, None, :])


def vary(rng: np.random.Generator, color: Color, amount: float = 0.12) -> tuple[float, ...]:
    """Returns the colour, brighter or darker and slightly shifted.

    Args:
        rng: source of randomness.
        color: RGB.
        amount: largest change of the brightness, as a share of it.
    """
    draws = rng.random(4).tolist()
    factor = 1 + amount * (2 * draws[3] - 1)
    return tuple(min(255.0, c * factor * (0.96 + 0.08 * d)) for c, d in zip(color, draws))


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Draws one of the items, each with the same probability.

    Args:
        rng: source of randomness.
        items: items to draw from.
    """
    return items[int(rng.integers(len(items)))]


def weighted(rng: np.random.Generator, items: Sequence[T], chances: Sequence[float]) -> T:
    """Draws one of the items with given probabilities.

    Args:
        rng: source of randomness.
        items: items to draw from.
        chances: probability of each item; their sum is 1.
    """
    draw = rng.random()
    for item, chance in zip(items, chances):
        draw -= chance
        if draw < 0:
            return item
    return items[-1]


@functools.cache
def crowns() -> tuple[tuple[UInt8[np.ndarray, '96 96'], UInt8[np.ndarray, '96 96']], ...]:
    """Returns sixteen tree crowns: grey levels (128 is the leaf colour) and mask (255 or 0)."""
    rng = np.random.default_rng(13)
    result = []
    for _ in range(16):
        y, x = np.mgrid[0:96, 0:96].astype(np.float32)
        field = np.zeros((96, 96), np.float32)
        light = np.zeros((96, 96), np.float32)
        for _ in range(9):
            angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0, 24)
            cx, cy = 48 + radius * np.cos(angle), 48 + radius * np.sin(angle)
            size = rng.uniform(14, 22)
            bump = 1 - ((x - cx) ** 2 + (y - cy) ** 2) / size**2
            light = np.where(bump > field, -(y - cy) / size - 0.4 * (x - cx) / size, light)
            field = np.maximum(field, bump)
        leaves = crop(rng, noise('leaf'), 96, 96).astype(np.float32) - 128
        mask = field + leaves * 0.006 > 0.12
        grey = 128 + leaves * 0.62 + cv2.GaussianBlur(light, (0, 0), 3) * 26 - (y - 48) * 0.4
        result.append(
            (np.clip(grey, 0, 255).astype(np.uint8), np.where(mask, 255, 0).astype(np.uint8))
        )
    return tuple(result)
