"""Sizes of the blocks that the engines work on, one entry a platform."""

import dataclasses
import math
from typing import Literal

from ggcf_jax.attention import target

Kernel = Literal['xla', 'cudnn', 'pallas']


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Sizes in positions (queries, keys) or elements of a float32 score matrix, on one device.

    Attributes:
      local: height and width to aim at for a tile of queries of a local graph.
      stack: number of tiles of a local graph in one step of its scan, times batch and heads.
      windows: number of different window lengths per axis for a local graph; shorter windows at
        the border save work, each costs compile time.
      queries, keys: chunk lengths of a dense graph, for one batch element and head.
      whole_keys: up to so many keys of a dense graph are one chunk. On one core of a Xeon one of
        1370 keys took 0.87 of the time of two; one of 2500 without padding gained nothing.
      whole_scores: up to so many score elements of a dense graph, over all of a device's batch
        elements and heads, are one pair of chunks. A loop costs XLA:CPU more than memory does: on
        one core of a Xeon 24 sequences of 256 took 0.60 of the time of a loop, with gradients. A
        few such matrices should fit into 32 MiB: what is larger glibc takes anew from the system
        for each call, and 8 sequences of 1024 took 1.8 times the time of a loop.
      pad_keys: pad the last chunk of keys to the length of the others. Else it has a step of its
        own, and no scores are masked: XLA:CPU fuses product, maximum and exponential only then.
      scores: number of score elements alive at once for small dense groups (grid graphs).
      pruned: number of score elements alive at once when whole rows are needed, for pruning.
      pruned_each: most of these for each batch element and head. Where it is the limit, there are
        as many steps for any batch: on accelerators each operation of a step is a kernel that is
        started, so steps are few and large there. 0 where `pruned` alone is the limit.
      transpose_result: compute P^T X as (X^T P)^T. XLA:CPU is 2-4 times slower with the
        probabilities as the transposed operand, worst at power-of-two widths.
      devices: number of devices over which the batch is sharded.
    """

    local: tuple[int, int]
    stack: int
    windows: int
    queries: int
    keys: int
    whole_keys: int
    whole_scores: int
    pad_keys: bool
    scores: int
    pruned: int
    pruned_each: int
    transpose_result: bool
    devices: int = 1

    def per_device(self, batch: int) -> int:
        """One device's part of a batch (or of anything that is a multiple of it).

        A symbolic one (`jax.export`) counts as one element: blocks are then as large as they get.
        """
        return batch // self.devices if isinstance(batch, int) else 1

    @property
    def few_steps(self) -> bool:
        """Whether pruning takes few large steps, whose number no value decides."""
        return self.pruned_each > 0

    def pruned_in(self, groups: int, batch: int) -> int:
        """Number of score elements alive at once in each of `groups` groups of a map, for pruning.

        Args:
          groups: number of groups that are taken at a time.
          batch: batch elements times heads.
        """
        most = self.pruned // self.per_device(groups * batch)
        return min(most, self.pruned_each // groups) if self.few_steps else most


CPU = BlockSizes(
    local=(8, 16), stack=4, windows=3, queries=512, keys=1024, whole_keys=2048,
    whole_scores=1 << 21, pad_keys=False, scores=1 << 20, pruned=1 << 18, pruned_each=0,
    transpose_result=True,
)  # fmt: skip
# Chosen from operation counts and compiled memory; not tuned on hardware.
ACCELERATOR = BlockSizes(
    local=(16, 16), stack=8, windows=3, queries=1024, keys=2048, whole_keys=2048,
    whole_scores=0, pad_keys=True, scores=1 << 24, pruned=1 << 30, pruned_each=1 << 24,
    transpose_result=False,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """What every engine needs to know beside arrays and graph; static under `jax.jit`.

    Attributes:
      scale: factor of the affinities.
      sizes: sizes of the blocks.
      kernels: what computes the attention between queries and keys that an engine has brought
        together: 'xla', or the kernels of an accelerator.
      sums: whether these give the log-sum-exps, which XLA always does.
      most_channels: largest number of channels that these kernels take; 0 for XLA, which has none.
    """

    scale: float
    sizes: BlockSizes
    kernels: Kernel = 'xla'
    most_channels: int = 0
    sums: bool = False


def current(batch: int) -> BlockSizes:
    """The sizes for the platform that the program is compiled for.

    Args:
      batch: batch size of the arrays over all devices. Inside `jax.jit` their sharding is unknown,
        so an even split over the devices of the mesh in effect is assumed.
    """
    sizes = CPU if target.current() == 'cpu' else ACCELERATOR
    devices = math.gcd(batch, target.devices()) if isinstance(batch, int) else 1
    return dataclasses.replace(sizes, devices=devices)


def even(n: int, most: int, multiple: int = 1) -> int:
    """A chunk length of about `most` that cuts n into equal chunks with little padding."""
    length = math.ceil(n / math.ceil(n / max(1, most)))
    return min(n, math.ceil(length / multiple) * multiple)
