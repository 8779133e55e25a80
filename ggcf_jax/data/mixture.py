"""Which records a training stream draws: splits, sums of splits and weighted mixtures.

train                               one split
train+validation                    both, every image once an epoch
train:0.5,train_extra:0.5           half of the draws from each, each with epochs of its own
"""

import dataclasses

from ggcf_jax.data.records.dataset import Dataset
from ggcf_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Part:
    """Splits that are shuffled as one, and the share of all draws that go to them."""

    splits: tuple[str, ...]
    weight: float


def parse(text: str) -> tuple[Part, ...]:
    """Parses `config.data.train_split`.

    Raises:
        InputError: the text is not of the form above; weights missing or not positive.
    """
    parts = []
    items = text.split(',')
    for item in items:
        names, colon, weight = item.partition(':')
        splits = tuple(name.strip() for name in names.split('+'))
        try:
            share = float(weight) if colon else 1.0
        except ValueError:
            share = 0.0
        if not all(splits) or not 0 < share < float('inf') or (len(items) > 1 and not colon):
            raise InputError(
                f'config.data.train_split={text!r}: write a split such as train, a sum such as '
                'train+validation, or a mixture such as train:0.5,train_extra:0.5'
            )
        parts.append(Part(splits, share))
    return tuple(parts)


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of a part under one range of indices.

    Attributes:
        dataset: that they belong to.
        splits: their splits, one after another.
    """

    dataset: Dataset
    splits: tuple[str, ...]

    def __len__(self) -> int:
        return sum(len(self.dataset.source(split)) for split in self.splits)

    def __getitem__(self, index: int) -> dict:
        for split in self.splits:
            source = self.dataset.source(split)
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)


def records(dataset: Dataset, parts: tuple[Part, ...]) -> tuple[Records, ...]:
    """Opens the parts.

    Raises:
        InputError: a split that the data set has not, or one without labels or images.
    """
    opened = tuple(Records(dataset, part.splits) for part in parts)
    for part in opened:
        for split in part.splits:
            dataset.check_labeled(split, 'trained on')
            if not len(dataset.source(split)):
                raise InputError(f'split {split!r} of data set {dataset.name!r} has no images')
    return opened
