"""Decoded records in memory, for data sets that are small and drawn from for many epochs."""

import math
import threading

from ggcf_jax.data.records.dataset import OpenedExample, Records


class DecodedRecords:
    """Decodes records, and keeps the first ones that fit into a number of bytes.

    None is given up for another one: an epoch draws every record once, in an order of its own, so
    that the latest ones are not the next ones. Several threads may read at once. A worker process
    has a memory of its own, which starts empty.

    Attributes:
        parts: records of each part of a mixture.
        limit: bytes of pixels and labels that are kept.
    """

    def __init__(self, parts: tuple[Records, ...], limit: int):
        """Keeps nothing yet.

        Args:
            parts: records of each part of a mixture.
            limit: bytes of pixels and labels that may be kept; 0 for none.
        """
        self.parts = parts
        self.limit = limit
        self._kept: dict[tuple[int, int], OpenedExample] = {}
        self._room = limit
        self._lock = threading.Lock()  # of the room

    def __reduce__(self) -> tuple:
        return DecodedRecords, (self.parts, self.limit)

    def open(self, part: int, index: int) -> OpenedExample:
        """Returns a record, its label decoded and its image at least a window at a time.

        Args:
            part: index of the part.
            index: index of the record in the part.

        Returns:
            The record; what is kept of it cannot be written to.

        Raises:
            InputError: as `Dataset.open`.
        """
        kept = self._kept.get((part, index))
        if kept is not None:
            return kept
        dataset, record = self.parts[part].dataset, self.parts[part][index]
        opened = dataset.open(record)
        label = opened['label']
        size = math.prod(opened['image'].shape) + label.nbytes
        if size > self._room:  # then a window is decoded, not the whole image
            return opened
        image = opened['image'][:, :]
        opened['image'] = image
        with self._lock:
            if size <= self._room and (part, index) not in self._kept:
                image.flags.writeable = label.flags.writeable = False
                self._kept[part, index] = opened
                self._room -= size
        return opened
