"""Results of an evaluation: the confusion matrix with its metrics, and the pictures kept."""

import dataclasses
import heapq
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from ggcf_jax.evaluation import metrics
from ggcf_jax.evaluation.boundary import BoundaryCounts
from ggcf_jax.evaluation.metrics import Metric


@dataclasses.dataclass(frozen=True)
class Sample:
    """One evaluated image.

    Attributes:
        name: name of the record.
        image: RGB.
        label: train id of each pixel, or 255.
        prediction: predicted train id of each pixel.
    """

    name: str
    image: UInt8[np.ndarray, 'h w 3']
    label: UInt8[np.ndarray, 'h w']
    prediction: UInt8[np.ndarray, 'h w']


@dataclasses.dataclass(frozen=True)
class Ranked:
    """One of the worst images.

    Attributes:
        name: name of the record.
        miou: mean IoU over the classes of this image.
        sample: its pictures.
    """

    name: str
    miou: float
    sample: Sample


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of one split.

    Attributes:
        split: name of the split.
        classes: class names in train-id order.
        categories: category of each class, () if the data set has none.
        matrix: pixels by (ground truth, prediction), int64.
        samples: the first images.
        worst: the images of lowest mIoU over all processes, the lowest first.
        metrics: name -> function of the matrix, see `metrics.METRICS`.
        boundary: pixels close to contours, if they were counted.
        loss: mean of the training's loss over the split, if it was computed; NaN of nothing.
    """

    split: str
    classes: tuple[str, ...]
    categories: tuple[str, ...]
    matrix: Int[np.ndarray, 'classes classes']
    samples: tuple[Sample, ...] = ()
    worst: tuple[Ranked, ...] = ()
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=metrics.default)
    boundary: BoundaryCounts | None = None
    loss: float | None = None

    @property
    def scores(self) -> dict[str, float]:
        """Value of each metric by its name; NaN where it is undefined."""
        values = {name: float(metric(self.matrix)) for name, metric in self.metrics.items()}
        return values if self.boundary is None else values | {'boundary_iou': self.boundary.mean()}

    @property
    def per_class(self) -> dict[str, dict[str, float | None]]:
        """Precision, recall and F1 of each class, and its boundary IoU if that was counted."""
        found = {
            'precision': metrics.class_precision(self.matrix).tolist(),
            'recall': metrics.class_recall(self.matrix).tolist(),
            'f1': metrics.class_f1(self.matrix).tolist(),
        }
        if self.boundary is not None:
            found['boundary_iou'] = self.boundary.iou()
        return {name: _named(self.classes, values) for name, values in found.items()}

    @property
    def iou(self) -> dict[str, float | None]:
        """IoU by class; None for a class in neither ground truth nor prediction."""
        return _by_name(self.classes, self.matrix)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes present; NaN if there is none."""
        return metrics.mean_iou(self.matrix)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels whose prediction is right; NaN if none is labelled."""
        return metrics.pixel_accuracy(self.matrix)

    @property
    def category_iou(self) -> dict[str, float | None]:
        """IoU by category, {} if there are none."""
        if not self.categories:
            return {}
        return _by_name(*metrics.merge_classes(self.matrix, self.categories))

    @property
    def category_miou(self) -> float | None:
        """Mean over the categories, None if there are none."""
        if not self.categories:
            return None
        return metrics.mean_iou(metrics.merge_classes(self.matrix, self.categories)[1])

    def row(self) -> dict[str, float | None]:
        """The row for `metrics.jsonl`, where the validation split is called val."""
        prefix = {'validation': 'val'}.get(self.split, self.split)
        values = self.scores | {f'iou/{name}': value for name, value in self.iou.items()}
        if self.loss is not None:
            values['loss'] = self.loss
        return {f'{prefix}/{name}': value for name, value in values.items()}


class Worst:
    """The images of lowest mIoU among those added, at most `count`: a heap.

    Where several processes evaluate together, each adds all images in the same order, so that all
    rank alike.
    """

    def __init__(self, count: int):
        """
        Args:
            count: number of images to keep.
        """
        self._count = count
        self._heap: list[tuple[float, int, Ranked]] = []  # the one with the highest mIoU first

    def wants(self, miou: float, index: int) -> bool:
        """Whether an image would be kept; of equally bad ones the first records are.

        Args:
            miou: mean IoU of the image.
            index: number of its record.
        """
        if math.isnan(miou) or not self._count:
            return False
        return len(self._heap) < self._count or (-miou, -index) > self._heap[0][:2]

    def add(self, index: int, image: Ranked) -> None:
        """Adds an image, which is kept if it is bad enough.

        Args:
            index: number of its record.
            image: the image.
        """
        if self.wants(image.miou, index):
            replace = heapq.heappush if len(self._heap) < self._count else heapq.heapreplace
            replace(self._heap, (-image.miou, -index, image))

    def images(self) -> tuple[Ranked, ...]:
        """The images kept, the lowest mIoU first."""
        # No two indices are equal, so that images are never compared.
        return tuple(image for _, _, image in sorted(self._heap, reverse=True))


def _by_name(names: tuple[str, ...], matrix: np.ndarray) -> dict[str, float | None]:
    return _named(names, metrics.class_iou(matrix).tolist())


def _named(names: tuple[str, ...], values: Sequence[float | None]) -> dict[str, float | None]:
    """The values by name; None for NaN."""
    return {
        name: None if value is None or math.isnan(value) else value
        for name, value in zip(names, values, strict=True)
    }
