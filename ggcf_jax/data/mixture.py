"""Which records a training stream draws: `config.data.train_split`.

train                               one split
train+validation                    both, every image once an epoch
train:0.5,train_extra:0.5           half of the draws from each, each with epochs of its own
"""

import dataclasses

from ggcf_jax.data.records.dataset import Dataset, Records
from ggcf_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Part:
    """Splits that are shuffled as one.

    Attributes:
        splits: names of the splits.
        weight: share of all draws that go to them, relative to that of the other parts.
    """

    splits: tuple[str, ...]
    weight: float


def parse(text: str) -> tuple[Part, ...]:
    """Parses `config.data.train_split`.

    Args:
        text: value of the field, in one of the forms above.

    Raises:
        InputError: the text is of another form, or a weight is missing or not positive.
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


def records(dataset: Dataset, parts: tuple[Part, ...]) -> tuple[Records, ...]:
    """Returns the records of each part.

    Args:
        dataset: data set to train on.
        parts: parts of the mixture.

    Raises:
        InputError: a split does not exist, or has no labels or no images.
    """
    opened = tuple(Records(dataset, part.splits) for part in parts)
    for part in opened:
        for split in part.splits:
            dataset.check_labeled(split, 'trained on')
            if not len(dataset.source(split)):
                raise InputError(f'split {split!r} of data set {dataset.name!r} has no images')
    return opened
