"""Stopping early: when the validation mIoU no longer rises."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def history(rows: Iterable[Mapping[str, Any]], last: int) -> list[float]:
    """Returns the validation mIoU of the evaluations up to a step, in their order.

    Args:
        rows: rows of `metrics.jsonl`; null, which stands for NaN, reads as None.
        last: step up to which they count.
    """
    found = [row['val/miou'] for row in rows if 'val/miou' in row and row['step'] <= last]
    return [math.nan if miou is None else miou for miou in found]


def since_best(mious: Sequence[float]) -> int:
    """Returns the number of evaluations after the first of the best ones; 0 if there are none.

    Args:
        mious: validation mIoU of each evaluation; NaN is worse than any other.
    """
    if not mious:
        return 0
    scores = [-math.inf if math.isnan(miou) else miou for miou in mious]
    return len(scores) - 1 - scores.index(max(scores))


def is_exhausted(mious: Sequence[float], patience: int) -> bool:
    """Whether training should stop.

    Args:
        mious: validation mIoU of each evaluation so far.
        patience: number of evaluations without a better one after which it should; 0: never.
    """
    return 0 < patience <= since_best(mious)
