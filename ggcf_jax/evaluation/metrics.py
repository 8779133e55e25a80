"""Confusion matrices and the metrics computed from them.

A metric is a function of the confusion matrix of a whole split:

    def mean_accuracy(matrix: Int[np.ndarray, 'classes classes']) -> float:

Row i of the matrix, int64 [C, C], counts the labelled pixels of class i by their predicted class.
A metric returns one number, NaN where it is undefined, such as for a matrix without pixels. Each
entry of `METRICS` can be named in `config.eval.metrics`, and so can a function from outside of this
package, as `my_package.my_module:function`. The ones named are in the console, `metrics.jsonl`,
TensorBoard, `evaluations/*.json` and the report, under the name in `METRICS` or that of the
function.
"""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, Num
from ml_collections import ConfigDict

from ggcf_jax import registry
from ggcf_jax.errors import InputError

Metric = Callable[[Int[np.ndarray, 'classes classes']], float]

_EXACT = 2**24  # up to here float32 counts every integer


def confusion_matrices(
    labels: Int[Array, 'n ...'], predictions: Int[Array, 'n ...'], num_classes: int, ignore: int
) -> Int32[Array, 'n classes classes']:
    """Counts the pixels of each image by (ground truth, prediction), on the device.

    One-hot matrix products, which accelerators do faster than scattered additions. They count in
    float32, which is exact up to 2^24: parts of larger images are counted and then summed in
    integers.

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


def confusion_matrix(
    labels: Int[np.ndarray, 'h w'],
    predictions: Int[np.ndarray, 'h w'],
    num_classes: int,
    ignore: int,
) -> Int[np.ndarray, 'classes classes']:
    """Counts the pixels of one image by (ground truth, prediction), on the host.

    Args:
        labels: class of each pixel, or `ignore`.
        predictions: predicted class of each pixel.
        num_classes: number of classes.
        ignore: label value that is not counted.

    Returns:
        int64, rows are ground truth.
    """
    counted = labels != ignore
    pairs = labels[counted].astype(np.int64) * num_classes + predictions[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def mean_ious(matrices: Int[Array, 'n classes classes']) -> Float[Array, ' n']:
    """`mean_iou` of each confusion matrix, computed on the device.

    Args:
        matrices: one confusion matrix an image.

    Returns:
        float32 [n]; NaN for a matrix without pixels.
    """
    counts = matrices.astype(jnp.float32)
    intersection = jnp.diagonal(counts, axis1=1, axis2=2)
    union = counts.sum(1) + counts.sum(2) - intersection
    present = union > 0
    iou = jnp.where(present, intersection / jnp.where(present, union, 1), 0)
    return iou.sum(1) / present.sum(1)


def class_iou(matrix: Int[np.ndarray, 'classes classes']) -> Float[np.ndarray, ' classes']:
    """Intersection over union of each class.

    Args:
        matrix: confusion matrix, rows are ground truth.

    Returns:
        float64 [C]; NaN for classes in neither ground truth nor prediction.
    """
    matrix = np.asarray(matrix, np.float64)
    return _share_of_diagonal(matrix, matrix.sum(0) + matrix.sum(1) - np.diag(matrix))


def mean_iou(matrix: Int[np.ndarray, 'classes classes']) -> float:
    """Mean of `class_iou` over the classes present; NaN if there is none."""
    return _mean(class_iou(matrix))


def pixel_accuracy(matrix: Int[np.ndarray, 'classes classes']) -> float:
    """Share of the labelled pixels whose prediction is right; NaN if none is labelled."""
    matrix = np.asarray(matrix, np.float64)
    total = matrix.sum()
    return float(np.trace(matrix) / total) if total else float('nan')


def class_precision(matrix: Int[np.ndarray, 'classes classes']) -> Float[np.ndarray, ' classes']:
    """Share of the pixels predicted as each class that are right.

    Args:
        matrix: confusion matrix, rows are ground truth.

    Returns:
        float64 [C]; NaN for classes that are not predicted.
    """
    return _share_of_diagonal(matrix, np.asarray(matrix, np.float64).sum(0))


def class_recall(matrix: Int[np.ndarray, 'classes classes']) -> Float[np.ndarray, ' classes']:
    """Share of the pixels of each class whose prediction is right, the accuracy of the class.

    Args:
        matrix: confusion matrix, rows are ground truth.

    Returns:
        float64 [C]; NaN for classes that are not in the ground truth.
    """
    return _share_of_diagonal(matrix, np.asarray(matrix, np.float64).sum(1))


def class_f1(matrix: Int[np.ndarray, 'classes classes']) -> Float[np.ndarray, ' classes']:
    """Harmonic mean of precision and recall of each class, its Dice coefficient.

    Args:
        matrix: confusion matrix, rows are ground truth.

    Returns:
        float64 [C]; NaN for classes in neither ground truth nor prediction.
    """
    matrix = np.asarray(matrix, np.float64)
    return _share_of_diagonal(matrix, (matrix.sum(0) + matrix.sum(1)) / 2)


def mean_precision(matrix: Int[np.ndarray, 'classes classes']) -> float:
    """Mean of `class_precision` over the classes predicted; NaN if there is none."""
    return _mean(class_precision(matrix))


def mean_f1(matrix: Int[np.ndarray, 'classes classes']) -> float:
    """Mean of `class_f1` over the classes present; NaN if there is none."""
    return _mean(class_f1(matrix))


def mean_accuracy(matrix: Int[np.ndarray, 'classes classes']) -> float:
    """Mean over the labelled classes of the share of their pixels whose prediction is right."""
    return _mean(class_recall(matrix))


def frequency_weighted_iou(matrix: Int[np.ndarray, 'classes classes']) -> float:
    """Mean of `class_iou` over the labelled pixels, each counting the IoU of its class."""
    pixels = np.asarray(matrix, np.float64).sum(1)
    return float(np.nansum(class_iou(matrix) * pixels) / pixels.sum()) if pixels.any() else math.nan


METRICS: dict[str, Metric] = {
    'miou': mean_iou,
    'pixel_accuracy': pixel_accuracy,
    'mean_accuracy': mean_accuracy,
    'mean_precision': mean_precision,
    'mean_f1': mean_f1,
    'frequency_weighted_iou': frequency_weighted_iou,
}
_DEFAULT = ('miou', 'pixel_accuracy')


def default() -> dict[str, Metric]:
    """The metrics of a run that names none."""
    return {name: METRICS[name] for name in _DEFAULT}


def build(config: ConfigDict) -> dict[str, Metric]:
    """The metrics that `config.eval.metrics` names; `miou`, which ranks checkpoints, is always one.

    Raises:
        InputError: no such metric, or two of one name.
    """
    field = 'config.eval.metrics'
    found: dict[str, Metric] = {'miou': mean_iou}
    for text in config.eval.metrics.split(','):
        name = text.strip()
        metric = registry.pick(METRICS, name, field)
        short = name.rpartition(':')[2].rpartition('.')[2]
        if found.setdefault(short, metric) is not metric:
            raise InputError(f'{field}={config.eval.metrics!r} names two metrics {short!r}')
    return found


def merge_classes(
    matrix: Int[np.ndarray, 'classes classes'], groups: Sequence[str]
) -> tuple[tuple[str, ...], Int[np.ndarray, 'groups groups']]:
    """Merges classes: confusion matrix of class groups, such as categories.

    Args:
        matrix: confusion matrix of the classes.
        groups: name of the group of each class.

    Returns:
        Names of the groups, in the order of their first class; their matrix, in the same dtype.
    """
    names = tuple(dict.fromkeys(groups))
    member = np.array([[group == name for group in groups] for name in names], matrix.dtype)
    return names, member @ matrix @ member.T


def _share_of_diagonal(
    matrix: Num[np.ndarray, 'classes classes'], of: Float[np.ndarray, ' classes']
) -> Float[np.ndarray, ' classes']:
    """The diagonal divided by numbers of pixels; NaN where there are none."""
    diagonal = np.diag(np.asarray(matrix, np.float64))
    return np.divide(diagonal, of, out=np.full(len(of), np.nan), where=of > 0)


def _mean(values: Float[np.ndarray, ' classes']) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float('nan')
