"""What an evaluation of a split finds: numbers, and the pictures that are kept."""

import dataclasses
import heapq
import math

import numpy as np

from ggcf_jax.evaluation import metrics


@dataclasses.dataclass(frozen=True)
class Sample:
    """One evaluated image: uint8 [h, w, 3], label and prediction uint8 [h, w] of train ids."""

    name: str
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


@dataclasses.dataclass(frozen=True)
class Ranked:
    """One of the worst images.

    Attributes:
        name: of the record.
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
        split: its name.
        classes: names in train-id order.
        categories: category of each class, () if the data set has none.
        matrix: int64 [C, C], pixels by (ground truth, prediction).
        samples: those of the first images.
        worst: images of lowest mIoU of all processes, the lowest first.
    """

    split: str
    classes: tuple[str, ...]
    categories: tuple[str, ...]
    matrix: np.ndarray
    samples: tuple[Sample, ...]
    worst: tuple[Ranked, ...]

    @property
    def iou(self) -> dict[str, float | None]:
        """IoU by class; None for a class in neither ground truth nor prediction."""
        return _by_name(self.classes, self.matrix)

    @property
    def miou(self) -> float:
        return metrics.mean_iou(self.matrix)

    @property
    def category_iou(self) -> dict[str, float | None]:
        """IoU by category, {} if there are none."""
        return _by_name(*metrics.by_group(self.matrix, self.categories)) if self.categories else {}

    @property
    def category_miou(self) -> float | None:
        """Mean over the categories, None if there are none."""
        if not self.categories:
            return None
        return metrics.mean_iou(metrics.by_group(self.matrix, self.categories)[1])

    @property
    def pixel_accuracy(self) -> float:
        return metrics.pixel_accuracy(self.matrix)

    def row(self) -> dict[str, float | None]:
        """The row for metrics.jsonl; validation is called val there."""
        prefix = {'validation': 'val'}.get(self.split, self.split)
        return {
            f'{prefix}/miou': self.miou,
            f'{prefix}/pixel_accuracy': self.pixel_accuracy,
            **{f'{prefix}/iou/{name}': value for name, value in self.iou.items()},
        }


class Worst:
    """The images of lowest mIoU among those shown to it, at most `count`: a heap.

    Where many processes evaluate together, each shows it all images in one order, and the
    pictures of its own, so that all rank alike and each picture is kept by one.
    """

    def __init__(self, count: int):
        self._count = count
        self._heap: list[tuple[float, int, Ranked]] = []  # the one with the highest mIoU first

    def wants(self, miou: float, index: int) -> bool:
        """Whether the record `index` would be kept; of equal ones those that come first are."""
        if math.isnan(miou) or not self._count:
            return False
        return len(self._heap) < self._count or (-miou, -index) > self._heap[0][:2]

    def add(self, index: int, image: Ranked) -> None:
        """Shows one image."""
        if self.wants(image.miou, index):
            replace = heapq.heappush if len(self._heap) < self._count else heapq.heapreplace
            replace(self._heap, (-image.miou, -index, image))

    def images(self) -> tuple[Ranked, ...]:
        """What was kept, the lowest mIoU first."""
        # No two indices are equal, so that images are never compared.
        return tuple(image for _, _, image in sorted(self._heap, reverse=True))


def _by_name(names: tuple[str, ...], matrix: np.ndarray) -> dict[str, float | None]:
    values = metrics.class_iou(matrix).tolist()
    return {name: None if math.isnan(value) else value for name, value in zip(names, values)}
