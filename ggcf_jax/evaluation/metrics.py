"""Confusion matrix and intersection over union."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_EXACT = 2**24  # up to here float32 counts every integer


def confusion_matrices(
    labels: jax.Array, predictions: jax.Array, num_classes: int, ignore: int
) -> jax.Array:
    """Counts the pixels of each image by (ground truth, prediction).

    One-hot matrix products, which accelerators do faster than scattered additions. They count in
    float32, which is exact up to 2^24: of larger images parts are counted and summed in integers.

    Args:
        labels: integer [n, ...], fewer than 2^31 pixels an item.
        predictions: integer, same shape; every value where the label counts is a class.
        num_classes: number of classes.
        ignore: label value that is not counted.

    Returns:
        int32 [n, num_classes, num_classes], rows are ground truth.

    Raises:
        ValueError: shapes differ.
    """
    labels, predictions = jnp.asarray(labels), jnp.asarray(predictions)
    if labels.shape != predictions.shape or labels.ndim < 1:
        raise ValueError(
            f'labels {labels.shape} and predictions {predictions.shape} must have one shape '
            '[n, ...]'
        )
    if labels.ndim == 1:
        labels, predictions = labels[:, None], predictions[:, None]
    n, pixels = labels.shape[0], math.prod(labels.shape[1:])
    labels, predictions = labels.reshape(n, pixels), predictions.reshape(n, pixels)
    parts = max(-(-pixels // _EXACT), 1)
    if parts > 1:
        fill = ((0, 0), (0, parts * _EXACT - pixels))
        labels = jnp.pad(labels, fill, constant_values=ignore).reshape(n * parts, _EXACT)
        predictions = jnp.pad(predictions, fill).reshape(n * parts, _EXACT)
    classes = jnp.arange(num_classes)
    truth = (labels[..., None] == classes) & (labels != ignore)[..., None]
    guess = predictions[..., None] == classes
    counts = jnp.einsum(
        'npc,npd->ncd',
        truth.astype(jnp.bfloat16),  # zeros and ones: exact
        guess.astype(jnp.bfloat16),
        preferred_element_type=jnp.float32,
    )
    return counts.astype(jnp.int32).reshape(n, parts, num_classes, num_classes).sum(1)


def mean_ious(matrices: jax.Array) -> jax.Array:
    """`mean_iou` of each confusion matrix, computed on the device.

    Args:
        matrices: integer [n, C, C].

    Returns:
        float32 [n]; NaN for a matrix without pixels.
    """
    counts = matrices.astype(jnp.float32)
    intersection = jnp.diagonal(counts, axis1=1, axis2=2)
    union = counts.sum(1) + counts.sum(2) - intersection
    present = union > 0
    iou = jnp.where(present, intersection / jnp.where(present, union, 1), 0)
    return iou.sum(1) / present.sum(1)


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class.

    Args:
        matrix: confusion matrix [C, C], rows are ground truth.

    Returns:
        float64 [C]; NaN for classes in neither ground truth nor prediction.
    """
    matrix = np.asarray(matrix, np.float64)
    intersection = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - intersection
    return np.divide(intersection, union, out=np.full(len(matrix), np.nan), where=union > 0)


def mean_iou(matrix: np.ndarray) -> float:
    """Mean of `class_iou` over the classes present; NaN if there is none."""
    iou = class_iou(matrix)
    present = ~np.isnan(iou)
    return float(iou[present].mean()) if present.any() else float('nan')


def pixel_accuracy(matrix: np.ndarray) -> float:
    """Share of counted pixels that are right; NaN if none was counted."""
    matrix = np.asarray(matrix, np.float64)
    total = matrix.sum()
    return float(np.trace(matrix) / total) if total else float('nan')


def by_group(matrix: np.ndarray, groups: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Unites classes: the confusion matrix of groups of them, such as categories.

    Args:
        matrix: confusion matrix [C, C]. groups: name of the group of each class.

    Returns:
        Names of the G groups, in the order of their first class; matrix [G, G] in its dtype.
    """
    names = tuple(dict.fromkeys(groups))
    member = np.array([[group == name for group in groups] for name in names], matrix.dtype)
    return names, member @ matrix @ member.T
