"""Whether the labels of the first batches teach anything."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from ggcf_jax.data.records.codec import IGNORE

BATCHES = 10  # that are looked at


class LabelWatch:
    """Counts the classes of the first batches of a process."""

    def __init__(self, classes: Sequence[str]):
        """
        Args:
            classes: names of the classes.
        """
        self._classes = classes
        self._counts = np.zeros(256, np.int64)
        self._batches = 0

    def add(self, labels: UInt8[np.ndarray, 'b h w']) -> str | None:
        """Counts a batch.

        Args:
            labels: train ids, `IGNORE` where a pixel has no class.

        Returns:
            After the tenth batch a warning, if these labels teach nothing; None otherwise.
        """
        if self._batches == BATCHES:
            return None
        self._batches += 1
        self._counts += np.bincount(np.asarray(labels).ravel(), minlength=256)
        return self._warning() if self._batches == BATCHES else None

    def _warning(self) -> str | None:
        labelled = np.flatnonzero(np.delete(self._counts, IGNORE))
        seen = f'warning: in the first {BATCHES} batches'
        if not labelled.size:
            return (
                f'{seen} no pixel has a class, so that the loss is 0 and nothing is learned: all '
                'label values are ignored; correct config.data.ignore or the class file'
            )
        if labelled.size == 1 and len(self._classes) > 1:
            name = self._classes[int(labelled[0])]
            share = self._counts[labelled[0]] / self._counts.sum()
            return (
                f'{seen} all labelled pixels ({share:.1%} of all) are of the class {name!r}, so '
                'that nothing else is learned. Masks of 0 and 255 need 255 as the label value of a '
                'class (ids in the class file) and not in config.data.ignore'
            )
        return None
