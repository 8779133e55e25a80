"""How far each map of a padded batch reaches, so that what lies beyond it influences nothing.

Images of a batch that differ in size are padded at the bottom and on the right. A network that is
given their `Extent` computes for each of them what it computes for the image alone:

- what a map holds outside of its extent is arbitrary: pointwise layers leave it alone;
- whatever reads other positions (a convolution larger than 1x1, pooling, attention, a mean)
  first replaces it, by `zero_outside` or as its padding at the border of the map would.

None in the place of an extent says that every map is filled, and costs nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Extent:
    """Number of rows and columns of each map of a batch that belong to its image.

    Attributes:
        heights: number of rows, at least 1.
        widths: number of columns, at least 1.
    """

    heights: Int32[Array, ' b']
    widths: Int32[Array, ' b']

    def mask(self, height: int, width: int) -> Bool[Array, 'b {height} {width}']:
        """Which positions of the padded maps belong to the images.

        Args:
            height: number of rows of the padded maps.
            width: number of columns of the padded maps.
        """
        shape = (self.heights.shape[0], height, width)
        rows, columns = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 2))
        return (rows < self.heights[:, None, None]) & (columns < self.widths[:, None, None])


def of_sizes(sizes: Int32[Array, 'b 2']) -> Extent:
    """The extent of images of these heights and widths; entries without an image, 0, become 1."""
    sizes = jnp.maximum(sizes, 1)
    return Extent(sizes[:, 0], sizes[:, 1])


def strided(extent: Extent | None, stride: int) -> Extent | None:
    """The extent of a map that has one position per `stride` positions, rounded up.

    Args:
        extent: extent of the map that is read; None where the maps are filled.
        stride: stride of the layer that reads it.
    """
    if extent is None or stride == 1:
        return extent
    return Extent(-(-extent.heights // stride), -(-extent.widths // stride))


def replace_outside(
    x: Float[Array, 'b h w c'], extent: Extent | None, value: float
) -> Float[Array, 'b h w c']:
    """Replaces what lies outside of the extent, whatever it is (NaN, too).

    Args:
        x: maps.
        extent: their extent; None where they are filled, which returns x itself.
        value: what stands there instead.
    """
    if extent is None:
        return x
    mask = extent.mask(x.shape[1], x.shape[2])[..., None]
    return jnp.where(mask, x, jnp.asarray(value, x.dtype))


def zero_outside(x: Float[Array, 'b h w c'], extent: Extent | None) -> Float[Array, 'b h w c']:
    """Makes a padded map what zero padding makes of the map alone; see `replace_outside`."""
    return replace_outside(x, extent, 0.0)
