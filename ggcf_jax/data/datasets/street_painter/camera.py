"""A pinhole camera driving along a gently bending road."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float32

Point = tuple[float, float]
Point3 = tuple[float, float, float]

NEAR = 1.0  # metres; nothing nearer is drawn
FAR = 110.0  # metres; where the street ends in the backdrop
_LIMIT = 12000.0  # pixels; keeps OpenCV's fixed-point coordinates far from overflow


@dataclasses.dataclass(frozen=True)
class Camera:
    """Projection of the street frame: x right, y up, z along the road, all in metres.

    The bend of the road is a lateral shift `bend * z**2` of everything, so that the street can
    be laid out as if it were straight.

    Attributes:
        size: image height and width in pixels.
        focal: focal length in pixels.
        center: principal point (u, v) in pixels; v is the horizon.
        x: lateral position of the camera in metres.
        height: height of the camera above the road in metres.
        bend: half the curvature of the road in 1 / metres.
    """

    size: tuple[int, int]
    focal: float
    center: tuple[float, float]
    x: float
    height: float
    bend: float

    def project(self, x: float, y: float, z: float) -> Point:
        """Returns the pixel (u, v) of a point; points nearer than `NEAR` are moved there.

        Args:
            x: position to the right, in metres.
            y: height, in metres.
            z: distance along the road, in metres.
        """
        z = max(z, NEAR)
        scale = self.focal / z
        u = self.center[0] + scale * (x - self.x) + self.focal * self.bend * z
        v = self.center[1] - scale * (y - self.height)
        return min(max(u, -_LIMIT), _LIMIT), min(max(v, -_LIMIT), _LIMIT)

    def scale(self, z: float) -> float:
        """Returns the number of pixels per metre.

        Args:
            z: distance in metres.
        """
        return self.focal / max(z, NEAR)

    def column_depth(self, x: float, u: Float32[np.ndarray, ' n']) -> Float32[np.ndarray, ' n']:
        """Returns the distance at which the ray of each column meets a surface along the road.

        Args:
            x: lateral position of the surface in metres, other than that of the camera.
            u: pixel columns on the surface's side of the vanishing point.

        Returns:
            Distances in metres: the near root of bend z^2 - r z + (x - camera x) = 0.
        """
        offset = x - self.x
        ray = (u - self.center[0]) / self.focal
        root = np.sqrt(np.maximum(ray * ray - 4 * self.bend * offset, 1e-12))
        return 2 * offset / (ray + math.copysign(1.0, offset) * root)

    def last_visible(self, x: float) -> float:
        """Returns the distance beyond which a surface along the road hides behind its near part.

        Args:
            x: lateral position of the surface in metres.
        """
        offset = x - self.x
        return math.sqrt(offset / self.bend) if offset * self.bend > 0 else math.inf

    def ground(
        self,
    ) -> tuple[int, Float32[np.ndarray, ' rows'], Float32[np.ndarray, 'rows width']]:
        """Returns where on the road each pixel below the horizon lies.

        Returns:
            First row whose distance is at most `FAR`; distance z of this row and of each row
            below it, in metres; lateral position x of each of their pixels, in metres.
        """
        height, width = self.size
        first = max(0, math.ceil(self.center[1] + self.focal * self.height / FAR - 0.5))
        v = np.arange(first, height, dtype=np.float32) + 0.5
        u = np.arange(width, dtype=np.float32) + 0.5
        z = self.focal * self.height / (v - self.center[1])
        x = (z / self.focal)[:, None] * (u - self.center[0])[None, :]
        x += (self.x - self.bend * z * z)[:, None]
        return first, z.astype(np.float32), x.astype(np.float32)
