"""Sizes of the blocks of the TPU kernels: one entry for each generation of chips.

They come from the static schedules of the compiled kernels (docs/performance.md), not from timings.
"""

import dataclasses

Size2d = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class TpuSizes:
    """Sizes in positions.

    Attributes:
      memory: bytes of on-chip memory (VMEM) that a kernel may take.
      tile: height and width of a tile of queries of a local graph, or of keys for their gradients;
        the width is a multiple of 16, the sublanes of a bfloat16 register.
      wide_tile: the same for windows that reach at least `wide` to a side.
      wide: that reach.
      keys: about how many positions of a window are taken at a time.
      full: chunk lengths of queries and of keys of a full graph up to 128 channels; half of the
        queries beyond.
    """

    memory: int
    tile: Size2d
    wide_tile: Size2d
    wide: int
    keys: int
    full: Size2d


# Three quarters of the VMEM of a core (jax/_src/pallas/mosaic/tpu_info.py): 128 MiB in v5e and v6e,
# 64 MiB in v5p and TPU7x, 16 MiB in v4.
_LARGE = TpuSizes(96 << 20, (16, 16), (16, 32), 24, 768, (1024, 1024))
_MEDIUM = TpuSizes(48 << 20, (16, 16), (16, 32), 24, 768, (1024, 1024))
_SMALL = TpuSizes(12 << 20, (16, 16), (16, 16), 24, 512, (512, 512))

_BY_KIND = {
    'TPU v4': _SMALL,
    'TPU v5 lite': _LARGE,
    'TPU v5e': _LARGE,
    'TPU v5': _MEDIUM,
    'TPU v5p': _MEDIUM,
    'TPU v6 lite': _LARGE,
    'TPU v6e': _LARGE,
    'TPU7x': _MEDIUM,
}
# Mosaic multiplies no bfloat16 for them.
_REFUSED = ('TPU v2', 'TPU v3')


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple that is at least n."""
    return -(-n // multiple) * multiple


def of_kind(kind: str) -> TpuSizes | None:
    """The sizes for a chip; None for one that the kernels are not for.

    Args:
      kind: `jax.Device.device_kind`; '' or an unknown one has the sizes that fit every chip.
    """
    return None if kind in _REFUSED else _BY_KIND.get(kind, _SMALL)
