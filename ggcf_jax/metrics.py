"""Confusion matrix and intersection over union."""

import jax
import jax.numpy as jnp
import numpy as np


def confusion_matrix(
    labels: jax.Array, predictions: jax.Array, num_classes: int, ignore: int
) -> jax.Array:
    """Counts pixels by (ground truth, prediction).

    One-hot matrix products, which accelerators do faster than scattered additions. Each item of
    the leading axis is counted in float32, exact up to 2^24 pixels, and summed in integers.

    Args:
        labels: integer [n, ...], at most 2^24 pixels an item.
        predictions: integer, same shape; every value where the label counts is a class.
        num_classes: number of classes.
        ignore: label value that is not counted.

    Returns:
        int32 [num_classes, num_classes], rows are ground truth.

    Raises:
        ValueError: shapes differ or an item is too large to be counted exactly.
    """
    labels, predictions = jnp.asarray(labels), jnp.asarray(predictions)
    if labels.shape != predictions.shape or labels.ndim < 1:
        raise ValueError(
            f'labels {labels.shape} and predictions {predictions.shape} must have one shape '
            '[n, ...]'
        )
    if labels.ndim == 1:
        labels, predictions = labels[:, None], predictions[:, None]
    if np.prod(labels.shape[1:]) > 2**24:
        raise ValueError(f'{labels.shape[1:]} is more than 2^24 pixels; split the images')
    pixels = (labels.shape[0], -1)
    labels, predictions = labels.reshape(pixels), predictions.reshape(pixels)
    classes = jnp.arange(num_classes)
    truth = (labels[..., None] == classes) & (labels != ignore)[..., None]
    guess = predictions[..., None] == classes
    counts = jnp.einsum(
        'npc,npd->ncd',
        truth.astype(jnp.bfloat16),  # zeros and ones: exact
        guess.astype(jnp.bfloat16),
        preferred_element_type=jnp.float32,
    )
    return counts.astype(jnp.int32).sum(0)


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
