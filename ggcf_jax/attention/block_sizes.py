"""How large the pieces are that the engine works on, one entry a platform."""

import dataclasses
import math

from ggcf_jax.attention import target


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Sizes in positions (queries, keys) or elements of a float32 score matrix, on one device.

    Attributes:
      local: height and width to aim at for a tile of queries of a local graph.
      stack: tiles of a local graph in one step of its scan, times batch and heads.
      windows: different window lengths an axis for a local graph; shorter windows at the border
        save work, each costs compile time.
      queries, keys: chunk of a dense graph, for one batch element and head.
      scores: score elements alive at once for small dense groups (grid graphs).
      pruned: score elements alive at once when whole rows are needed, for pruning.
      transpose_result: compute P^T X as (X^T P)^T. XLA:CPU is 2-4 times slower with the
        probabilities as the transposed operand, worst at power-of-two widths.
      devices: that the batch is dealt to.
    """

    local: tuple[int, int]
    stack: int
    windows: int
    queries: int
    keys: int
    scores: int
    pruned: int
    transpose_result: bool
    devices: int = 1

    def share(self, batch):
        """What one device has of a batch (or of anything that is a multiple of it)."""
        return batch // self.devices


CPU = Tiles(
    local=(8, 16), stack=4, windows=3, queries=512, keys=1024, scores=1 << 20, pruned=1 << 18,
    transpose_result=True,
)  # fmt: skip
# Chosen from operation counts and compiled memory; not tuned on hardware.
ACCELERATOR = Tiles(
    local=(16, 16), stack=8, windows=3, queries=1024, keys=2048, scores=1 << 24, pruned=1 << 24,
    transpose_result=False,
)  # fmt: skip


def current(batch):
    """The sizes for the platform that the program is compiled for.

    Args:
      batch: of the arrays, over all devices. Inside `jax.jit` nobody tells how it is dealt to the
        devices of the mesh in effect: it is taken as evenly as it divides.
    """
    sizes = CPU if target.current() == 'cpu' else ACCELERATOR
    return dataclasses.replace(sizes, devices=math.gcd(batch, target.devices()))


def even(n, most, multiple=1):
    """A chunk length of about `most` that cuts n into equal chunks with little padding."""
    length = math.ceil(n / math.ceil(n / max(1, most)))
    return min(n, math.ceil(length / multiple) * multiple)
