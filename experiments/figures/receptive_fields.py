"""Effective receptive fields of a model: by occlusion (section 4.3) and by gradients."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.common import queries as marks
from experiments.common.trained import Trained
from ggcf_jax.evaluation.inference import window_starts
from ggcf_jax.models import merge
from ggcf_jax.models.layers.resize import nearest_positions


@dataclasses.dataclass(frozen=True)
class Sliding:
    """How the window moves.

    Attributes:
        window: side in pixels. step: pixels from one place to the next; the last place ends at the
        border. batch: windows that go through the network together; memory grows with it.
    """

    window: int
    step: int
    batch: int

    def corners(self, size: tuple[int, int]) -> np.ndarray:
        """Upper left corners of all places in an image of this size, int32 [n, 2]."""
        rows, columns = (window_starts(length, self.window, self.step) for length in size)
        return np.array([(y, x) for y in rows for x in columns], np.int32)


def occluded_responses(model, image, corners, at, window: int) -> jax.Array:
    """The last convolution's output at positions, for images with a window of the mean colour.

    Args:
        model: images uint8 [b, h, w, 3] -> (logits [b, rows, columns, C], ...).
        image: uint8 [h, w, 3].
        corners: integers [n, 2], of the window in each of n images; outside, nothing is covered.
        at: integers [m, 2], row and column of the positions.
        window: its side in pixels.

    Returns:
        float32 [n, m, C].
    """
    y, x = (jnp.arange(length) for length in image.shape[:2])
    inside = [(p >= c[:, None]) & (p < c[:, None] + window) for p, c in zip((y, x), corners.T)]
    covered = inside[0][:, :, None, None] & inside[1][:, None, :, None]
    mean = jnp.round(image.astype(jnp.float32).mean((0, 1))).astype(jnp.uint8)
    logits, _ = model(jnp.where(covered, mean, image))
    return logits[:, at[:, 0], at[:, 1]]


def make_occlusion(
    trained: Trained, sliding: Sliding
) -> Callable[[np.ndarray, Sequence[marks.Pixel]], np.ndarray]:
    """Builds the function (image, m pixels) -> the Euclidean change at each, float32 [n, m].

    n are the places of the window, in the order of `Sliding.corners`.
    """

    @jax.jit
    def responses(params, stats, image, corners, at):
        model = merge(trained.graphdef, params, stats)
        return occluded_responses(model, image, corners, at, sliding.window)

    def occlusion(image, queries):
        at = nearest_positions(queries, trained.model.stride, image.shape[:2])
        corners = sliding.corners(image.shape[:2])
        outside = np.array(image.shape[:2], np.int32)
        n = min(sliding.batch, len(corners))
        # The untouched image goes through the same program: equal inputs give equal outputs.
        untouched = np.asarray(
            responses(trained.params, trained.stats, image, np.tile(outside, (n, 1)), at)
        )[0]
        changes = []
        for start in range(0, len(corners), n):
            chunk = corners[start : start + n]
            filled = np.concatenate([chunk, np.tile(outside, (n - len(chunk), 1))])
            found = np.asarray(responses(trained.params, trained.stats, image, filled, at))
            changes.append(np.linalg.norm(found - untouched, axis=-1)[: len(chunk)])
        return np.concatenate(changes)

    return occlusion


def spread_out(changes: np.ndarray, corners: np.ndarray, window: int, size) -> np.ndarray:
    """At each pixel the mean change over the windows that cover it, 0 under none.

    Args:
        changes: [n] by place. corners: [n, 2]. size: height and width of the image.

    Returns:
        float64 [h, w].
    """
    total, count = np.zeros(size), np.zeros(size)
    for change, (y, x) in zip(changes, corners):
        total[y : y + window, x : x + window] += change
        count[y : y + window, x : x + window] += 1
    return total / np.maximum(count, 1)


def gradient_power(model, image, position) -> jax.Array:
    """Sum over classes and colours of the squared derivatives of the output at a position.

    Args:
        model: as for `occluded_responses`, differentiable for float images.
        image: uint8 [h, w, 3]. position: integers [2], row and column.

    Returns:
        float32 [h, w]: squared logits a squared grey level.
    """

    def response(pixels):
        return model(pixels[None])[0][0, position[0], position[1]]

    logits, pull = jax.vjp(response, image.astype(jnp.float32))

    def add(total, direction):
        return total + (pull(direction)[0] ** 2).sum(-1), None

    # One class after the other: all derivatives together would be images x classes.
    directions = jnp.eye(len(logits), dtype=logits.dtype)
    return lax.scan(add, jnp.zeros(image.shape[:2], jnp.float32), directions)[0]


def make_gradient(trained: Trained) -> Callable[[np.ndarray, Sequence[marks.Pixel]], np.ndarray]:
    """Builds the function (image, m pixels) -> `gradient_power` of each, float32 [m, h, w]."""

    @jax.jit
    def power(params, stats, image, position):
        return gradient_power(merge(trained.graphdef, params, stats), image, position)

    def gradient(image, queries):
        at = nearest_positions(queries, trained.model.stride, image.shape[:2])
        return np.stack(
            [np.asarray(power(trained.params, trained.stats, image, each)) for each in at]
        )

    return gradient


def cells(power: np.ndarray, stride: int) -> np.ndarray:
    """Root of the mean over cells of stride x stride pixels, repeated to each pixel: [h, w]."""
    h, w = power.shape
    starts = [np.arange(0, length, stride) for length in (h, w)]
    sums = np.add.reduceat(np.add.reduceat(power, starts[0], 0), starts[1], 1)
    sides = [np.diff(np.append(start, length)) for start, length in zip(starts, (h, w))]
    means = np.sqrt(sums / np.outer(*sides))
    return means.repeat(sides[0], 0).repeat(sides[1], 1)


def measure(field: np.ndarray, query: marks.Pixel) -> dict[str, float]:
    """How far a map [h, w] >= 0 reaches.

    Returns:
        largest: its largest value. half_area: the smallest share of the image that holds half of
        its sum. distance: mean distance from the query in pixels, weighted by it. The last two are
        NaN where the map is zero.
    """
    total = field.sum()
    if not total > 0:
        return {'largest': 0.0, 'half_area': float('nan'), 'distance': float('nan')}
    held = np.cumsum(np.sort(field, axis=None)[::-1])
    y, x = np.indices(field.shape)
    distance = np.hypot(y - query[0], x - query[1])
    return {
        'largest': float(field.max()),
        'half_area': float((np.searchsorted(held, total / 2) + 1) / field.size),
        'distance': float((field * distance).sum() / total),
    }
