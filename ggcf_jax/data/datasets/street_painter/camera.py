"""A pinhole camera driving along a gently bending road."""

import dataclasses
import math

import numpy as np

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

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Pixel (u, v) of a point, drawn at the near plane where it lies in front of it."""
        z = max(z, NEAR)
        scale = self.focal / z
        u = self.center[0] + scale * (x - self.x) + self.focal * self.bend * z
        v = self.center[1] - scale * (y - self.height)
        return min(max(u, -_LIMIT), _LIMIT), min(max(v, -_LIMIT), _LIMIT)

    def scale(self, z: float) -> float:
        """Pixels per metre at distance z."""
        return self.focal / max(z, NEAR)

    def column_depth(self, x: float, u: np.ndarray) -> np.ndarray:
        """Distance at which each column's ray meets the vertical surface along the road at x.

        Args:
            x: lateral position of the surface, other than the camera's.
            u: [n] float32 pixel columns on the surface's side of the vanishing point.

        Returns:
            [n] float32 distances; the near root of bend z^2 - r z + (x - camera x) = 0.
        """
        offset = x - self.x
        ray = (u - self.center[0]) / self.focal
        root = np.sqrt(np.maximum(ray * ray - 4 * self.bend * offset, 1e-12))
        return 2 * offset / (ray + math.copysign(1.0, offset) * root)

    def last_visible(self, x: float) -> float:
        """Distance beyond which the surface along the road at x hides behind its near part."""
        offset = x - self.x
        return math.sqrt(offset / self.bend) if offset * self.bend > 0 else math.inf

    def ground(self) -> tuple[int, np.ndarray, np.ndarray]:
        """First row below the horizon, and for it and each row under it the road's position.

        Returns:
            row, z [rows] and x [rows, width]: float32, metres, limited to FAR in distance.
        """
        height, width = self.size
        first = max(0, math.ceil(self.center[1] + self.focal * self.height / FAR - 0.5))
        v = np.arange(first, height, dtype=np.float32) + 0.5
        u = np.arange(width, dtype=np.float32) + 0.5
        z = self.focal * self.height / (v - self.center[1])
        x = (z / self.focal)[:, None] * (u - self.center[0])[None, :]
        x += (self.x - self.bend * z * z)[:, None]
        return first, z.astype(np.float32), x.astype(np.float32)
