"""Effective receptive fields of a model: by occlusion (section 4.3) and by gradients."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int, UInt8

from experiments.common.queries import Pixel
from ggcf_jax.evaluation.inference import window_starts
from ggcf_jax.models.layers.resize import nearest_positions
from ggcf_jax.models.segmenter import Segmenter
from ggcf_jax.workdir.model import TrainedModel

# Images [b, h, w, 3] -> logits [b, rows, columns, classes], and anything else.
Model = Callable[[jax.Array], tuple[jax.Array, object]]


@dataclasses.dataclass(frozen=True)
class Sliding:
    """How the occluding window moves over an image.

    Attributes:
        window: side of the window in pixels.
        step: pixels from one place of the window to the next; the last place ends at the border.
        batch: number of windows that go through the network together; memory grows with it.
    """

    window: int
    step: int
    batch: int

    def corners(self, size: tuple[int, int]) -> Int[np.ndarray, 'places 2']:
        """Returns the upper left corners of all places in an image of this size."""
        rows, columns = (window_starts(length, self.window, self.step) for length in size)
        return np.array([(y, x) for y in rows for x in columns], np.int32)


def occluded_responses(
    model: Model,
    image: UInt8[Array, 'h w 3'],
    corners: Int[Array, 'places 2'],
    at: Int[Array, 'positions 2'],
    window: int,
) -> Float32[Array, 'places positions classes']:
    """Computes the logits at some positions for an image with a window of its mean colour.

    Args:
        model: function from uint8 images to logits.
        image: RGB pixels.
        corners: upper left corners of the window, one for each copy of the image; a window outside
            of the image covers nothing.
        at: row and column of the positions in the map of logits.
        window: side of the window in pixels.
    """
    y, x = (jnp.arange(length) for length in image.shape[:2])
    inside = [(p >= c[:, None]) & (p < c[:, None] + window) for p, c in zip((y, x), corners.T)]
    covered = inside[0][:, :, None, None] & inside[1][:, None, :, None]
    mean = jnp.round(image.astype(jnp.float32).mean((0, 1))).astype(jnp.uint8)
    logits, _ = model(jnp.where(covered, mean, image))
    return logits[:, at[:, 0], at[:, 1]]


Occlusion = Callable[
    [UInt8[np.ndarray, 'h w 3'], Sequence[Pixel]], Float32[np.ndarray, 'places queries']
]


def make_occlusion(model: TrainedModel, sliding: Sliding) -> Occlusion:
    """Builds the occlusion test of a model.

    Args:
        model: model to test.
        sliding: how the window moves.

    Returns:
        Function (image, query points) -> Euclidean change of the logits at each query point, for
        each place of the window in the order of `Sliding.corners`.
    """

    def responses(
        network: Segmenter, image: jax.Array, corners: jax.Array, at: jax.Array
    ) -> jax.Array:
        return occluded_responses(network, image, corners, at, sliding.window)

    def occlusion(image: np.ndarray, queries: Sequence[Pixel]) -> np.ndarray:
        at = nearest_positions(
            np.asarray(queries), model.network.stride, image.shape[:2], model.network.first
        )
        corners = sliding.corners((image.shape[0], image.shape[1]))
        outside = np.array(image.shape[:2], np.int32)
        n = min(sliding.batch, len(corners))
        # The untouched image goes through the same program: equal inputs give equal outputs.
        untouched = model.run(responses, image, np.tile(outside, (n, 1)), at)[0]
        changes = []
        for start in range(0, len(corners), n):
            chunk = corners[start : start + n]
            filled = np.concatenate([chunk, np.tile(outside, (n - len(chunk), 1))])
            found = model.run(responses, image, filled, at)
            changes.append(np.linalg.norm(found - untouched, axis=-1)[: len(chunk)])
        return np.concatenate(changes)

    return occlusion


def spread_out(
    changes: Float[np.ndarray, ' places'],
    corners: Int[np.ndarray, 'places 2'],
    window: int,
    size: tuple[int, int],
) -> Float[np.ndarray, 'h w']:
    """Computes at each pixel the mean change over the windows that cover it, 0 under none.

    Args:
        changes: change for each place of the window.
        corners: upper left corner of each place.
        window: side of the window in pixels.
        size: height and width of the image.
    """
    total, count = np.zeros(size), np.zeros(size)
    for change, (y, x) in zip(changes, corners):
        total[y : y + window, x : x + window] += change
        count[y : y + window, x : x + window] += 1
    return total / np.maximum(count, 1)


def gradient_power(
    model: Model, image: UInt8[Array, 'h w 3'], position: Int[Array, '2']
) -> Float32[Array, 'h w']:
    """Sums the squared derivatives of the logits at a position over classes and colours.

    Args:
        model: function from float images, in grey levels, to logits.
        image: RGB pixels.
        position: row and column in the map of logits.

    Returns:
        Squared logits per squared grey level, at each pixel.
    """

    def response(pixels: jax.Array) -> jax.Array:
        return model(pixels[None])[0][0, position[0], position[1]]

    logits, pull = jax.vjp(response, image.astype(jnp.float32))

    def add(total: jax.Array, direction: jax.Array) -> tuple[jax.Array, None]:
        return total + (pull(direction)[0] ** 2).sum(-1), None

    # One class after the other: all derivatives together would be classes x images.
    directions = jnp.eye(len(logits), dtype=logits.dtype)
    return lax.scan(add, jnp.zeros(image.shape[:2], jnp.float32), directions)[0]


Gradient = Callable[
    [UInt8[np.ndarray, 'h w 3'], Sequence[Pixel]], Float32[np.ndarray, 'queries h w']
]


def make_gradient(model: TrainedModel) -> Gradient:
    """Builds the function (image, query points) -> `gradient_power` of each query point."""

    def power(network: Segmenter, image: jax.Array, position: jax.Array) -> jax.Array:
        return gradient_power(network, image, position)

    def gradient(image: np.ndarray, queries: Sequence[Pixel]) -> np.ndarray:
        at = nearest_positions(
            np.asarray(queries), model.network.stride, image.shape[:2], model.network.first
        )
        return np.stack([model.run(power, image, each) for each in at])

    return gradient


def cell_means(power: Float[np.ndarray, 'h w'], stride: int) -> Float[np.ndarray, 'h w']:
    """Computes the root of the mean over square cells, repeated to each pixel.

    Args:
        power: squared values.
        stride: side of a cell in pixels; cells at the far borders may be smaller.
    """
    h, w = power.shape
    starts = [np.arange(0, length, stride) for length in (h, w)]
    sums = np.add.reduceat(np.add.reduceat(power, starts[0], 0), starts[1], 1)
    sides = [np.diff(np.append(start, length)) for start, length in zip(starts, (h, w))]
    means = np.sqrt(sums / np.outer(*sides))
    return means.repeat(sides[0], 0).repeat(sides[1], 1)


class Extent(NamedTuple):
    """Extent of a receptive field.

    Attributes:
        largest: largest value of the map.
        half_area: smallest share of the image that holds half of the map's sum; NaN of a zero map.
        distance: mean distance from the query point in pixels, weighted by the map; NaN of a zero
            map.
    """

    largest: float
    half_area: float
    distance: float


def measure(field: Float[np.ndarray, 'h w'], query: Pixel) -> Extent:
    """Measures the extent of a receptive field.

    Args:
        field: non-negative map over the image.
        query: query point of the map.
    """
    total = field.sum()
    if not total > 0:
        return Extent(0.0, float('nan'), float('nan'))
    held = np.cumsum(np.sort(field, axis=None)[::-1])
    y, x = np.indices(field.shape)
    distance = np.hypot(y - query[0], x - query[1])
    return Extent(
        largest=float(field.max()),
        half_area=float((np.searchsorted(held, total / 2) + 1) / field.size),
        distance=float((field * distance).sum() / total),
    )
