"""Samples of more or fewer than 8 bits become 8 bits; what would be lost by that is said.

Cameras and scanners store 10, 12 or 14 bits in samples of 16. Taken for 16 bits their images would
be almost black, so that the configuration says how many bits are used (`config.data.image_bits`):
one number for all images of a data set, since brightness is comparable between them.
"""

import sys
import threading

import numpy as np
from jaxtyping import UInt, UInt8

from ggcf_jax.data.records.formats import Header, Unusable
from ggcf_jax.errors import InputError

FULL = 16  # bits that are used where nothing else is said
UNUSED = 2  # highest bits that a normally exposed image does not leave empty

_told = threading.Lock()  # held for good once the warning has been printed


def to_8_bits(
    samples: UInt[np.ndarray, 'h w *c'], header: Header, bits: int, name: str
) -> UInt8[np.ndarray, 'h w *c']:
    """Scales samples to 0..255.

    The first image of a process that uses a small part of its range is reported on stderr.

    Args:
        samples: colours as they are stored, without transparency.
        header: header of their file.
        bits: number of bits that samples of 16 bits use, 8 to 16.
        name: name of the image, for messages.

    Raises:
        Unusable: samples that are neither bits nor bytes nor of 16 bits.
        InputError: a value that needs more than `bits`.
    """
    if samples.dtype == np.uint16:
        _check(largest(samples), bits, name)
        return (samples >> (bits - 8)).astype(np.uint8)
    if samples.dtype == bool:
        return samples.astype(np.uint8) * 255
    if samples.dtype != np.uint8:
        raise Unusable(f'its samples are {samples.dtype}; save it with 8 or 16 bits')
    if header.format == 'TIFF' and header.bits < 8 and samples.ndim == 2:
        return samples * np.uint8(255 // (2**header.bits - 1))
    return samples


def largest(samples: UInt[np.ndarray, 'h w *c']) -> int:
    """The largest value of an image.

    Args:
        samples: colours as they are stored, without transparency.
    """
    return int(samples.max())


def needed_bits(value: int) -> int:
    """The number of bits to be used, `config.data.image_bits`, for a largest value.

    Args:
        value: largest value of all images.
    """
    return max(8, value.bit_length())


def _check(most: int, bits: int, name: str) -> None:
    """Refuses what is brighter than white, and tells once of what is almost black."""
    needed = needed_bits(most)
    if needed > bits:
        raise InputError(
            f'{name}: the 16-bit image has values up to {most}, but config.data.image_bits={bits} '
            f'says that they end at {2**bits - 1}; set it to {needed}, for all images'
        )
    if most > 0 and needed <= bits - UNUSED and _told.acquire(blocking=False):
        print(
            f'warning: {name}: the largest value of the 16-bit image is {most} of {2**bits - 1}, '
            f'so that it becomes almost black. If all images are like it, set '
            f'--config.data.image_bits={needed} (now {bits}); --mode=doctor finds the number for a '
            'data set',
            file=sys.stderr,
        )
