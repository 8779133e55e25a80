import numpy as np

from ggcf_jax.data.records.codec import IGNORE
from ggcf_jax.data.teaching import BATCHES, LabelWatch


def _told(*labels):
    watch = LabelWatch(('background', 'leaf'))
    told = [watch.add(np.full((2, 4, 4), labels[i % len(labels)], np.uint8)) for i in range(20)]
    assert [i for i, line in enumerate(told) if line] in ([], [BATCHES - 1])
    return told[BATCHES - 1]


def test_labels_that_teach_nothing_are_told_once():
    assert 'no pixel has a class' in _told(IGNORE)
    one = _told(0, IGNORE)
    assert "all labelled pixels (50.0% of all) are of the class 'background'" in one
    assert 'Masks of 0 and 255' in one


def test_labels_that_teach_are_not_mentioned():
    assert _told(0, 1) is None
    assert _told(IGNORE, IGNORE, 0, 1) is None
    watch = LabelWatch(('only',))
    assert [watch.add(np.zeros((1, 2, 2), np.uint8)) for _ in range(12)] == [None] * 12
