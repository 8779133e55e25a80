"""Which files of a data set a host reads in training: those that it copies from a bucket.

Records are drawn from one shuffle of all of them, dealt to the hosts draw by draw
(`pipeline.train_batches`), so that a run of some epochs reads every file on every host; a short one
on many hosts does not. Hosts whose devices share images (`mesh.space`) have the same
`pipeline.Shard`: they draw the same records and need the same files.
"""

import bisect
import itertools

from ggcf_jax.data import pipeline

# Draws that are looked at. A file of which a record is drawn only later, by a mixture's small part,
# is copied when that is read.
_AHEAD = 20_000


def of_training(
    lengths: tuple[tuple[int, ...], ...],
    weights: tuple[float, ...],
    *,
    seed: int,
    batch_size: int,
    steps: range,
    shard: pipeline.Shard,
) -> tuple[frozenset[int], ...]:
    """Which files of each part of the mixture hold a record that a host draws.

    Args:
        lengths: number of records of each file, part by part.
        weights: relative share of the draws of each part.
        seed: seed of shuffling.
        batch_size: number of samples in a global batch.
        steps: steps that are trained, the first one 0.
        shard: the host's share of each batch.
    """
    local = shard.local_batch_size(batch_size)
    ends = [[*itertools.accumulate(part)] for part in lengths]
    drawn = pipeline.draws(tuple(map(sum, lengths)), weights, seed=seed)
    own = drawn[shard.index :: shard.count]
    needed: list[set[int]] = [set() for _ in lengths]
    left = sum(length > 0 for part in lengths for length in part)
    for position in range(steps.start * local, steps.stop * local)[:_AHEAD]:
        if not left:
            break
        part, index = own[position]
        file = bisect.bisect_right(ends[part], index)
        left -= file not in needed[part]
        needed[part].add(file)
    return tuple(frozenset(part) for part in needed)
