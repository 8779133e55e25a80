"""Cars, trucks, buses and trams: their kinds, sizes and positions."""

import dataclasses
import math

import numpy as np

from ggcf_jax.data.datasets.street_painter import textures
from ggcf_jax.data.datasets.street_painter.camera import Point, Point3

_SIZES = {  # length, width, height in metres, each as (low, high)
    'car': ((3.9, 4.7), (1.7, 1.85), (1.4, 1.6)),
    'van': ((4.7, 5.6), (1.9, 2.0), (1.9, 2.4)),
    'truck': ((7.0, 12.0), (2.4, 2.55), (3.1, 3.8)),
    'bus': ((9.5, 13.5), (2.45, 2.55), (2.9, 3.4)),
    'train': ((16.0, 32.0), (2.4, 2.6), (3.0, 3.6)),
}


@dataclasses.dataclass(frozen=True)
class Vehicle:
    """A vehicle standing on the road.

    Attributes:
        kind: 'car', 'van', 'truck', 'bus' or 'train'.
        x: lateral position of the middle of the footprint, in metres.
        z: distance of the middle of the footprint, in metres.
        heading: direction in radians: 0 = away from the camera, pi / 2 = to the right.
        length: length in metres.
        width: width in metres.
        height: height in metres.
        paint: RGB of the body.
        stripe: RGB of the stripe.
        band: lower and upper height of the dark band of windows or decoration on the sides, in
            metres; None = plain.
        look: number that decides details.
    """

    kind: str
    x: float
    z: float
    heading: float
    length: float
    width: float
    height: float
    paint: tuple[float, ...]
    stripe: tuple[float, ...]
    band: tuple[float, float] | None
    look: int

    def place(self, along: float, across: float, up: float) -> Point3:
        """Returns the street coordinates of a point given in the vehicle's own.

        Args:
            along: distance from the rear in metres.
            across: distance to the right of the middle in metres.
            up: height in metres.
        """
        sin, cos = math.sin(self.heading), math.cos(self.heading)
        along -= self.length / 2
        return (self.x + along * sin + across * cos, up, self.z + along * cos - across * sin)

    def footprint(self, grow: float = 0.0) -> list[Point]:
        """Returns the four corners (x, z) on the ground.

        Args:
            grow: margin around the vehicle in metres.
        """
        half = self.width / 2 + grow
        ends = (-grow, self.length + grow)
        corners = ((ends[0], -half), (ends[0], half), (ends[1], half), (ends[1], -half))
        places = (self.place(along, across, 0) for along, across in corners)
        return [(x, z) for x, _, z in places]

    @property
    def near(self) -> float:
        """Distance of the nearest corner, in metres."""
        return min(z for _, z in self.footprint())


def sample_vehicle(
    rng: np.random.Generator, kind: str, x: float, near: float, heading: float
) -> Vehicle:
    """Draws a vehicle.

    Args:
        rng: source of randomness.
        kind: kind of the vehicle.
        x: lateral position in metres.
        near: distance of its near end in metres.
        heading: direction in radians, see `Vehicle`.
    """
    length, width, height = (rng.uniform(*limits) for limits in _SIZES[kind])
    reach = (abs(math.cos(heading)) * length + abs(math.sin(heading)) * width) / 2
    band: tuple[float, float] | None = (rng.uniform(1.2, 1.5), rng.uniform(2.2, 2.5))
    if kind == 'truck' and rng.random() < 0.5:
        band = None
    return Vehicle(
        kind=kind,
        x=x,
        z=near + reach,
        heading=heading,
        length=length,
        width=width,
        height=height,
        paint=textures.vary(rng, textures.pick(rng, textures.PAINTS)),
        stripe=textures.vary(rng, textures.pick(rng, textures.PAINTS)),
        band=band,
        look=int(rng.integers(1 << 16)),
    )
