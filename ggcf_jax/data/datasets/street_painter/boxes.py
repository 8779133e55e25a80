"""Draws a vehicle's parts in its own coordinates, on the sides that face the camera."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from ggcf_jax.data.datasets.street_painter import classes
from ggcf_jax.data.datasets.street_painter.camera import NEAR, Point, Point3
from ggcf_jax.data.datasets.street_painter.canvas import Canvas
from ggcf_jax.data.datasets.street_painter.textures import Color
from ggcf_jax.data.datasets.street_painter.vehicles import Vehicle

_LABELS = {
    'car': classes.CAR,
    'van': classes.CAR,
    'truck': classes.TRUCK,
    'bus': classes.BUS,
    'train': classes.TRAIN,
}
GLASS = (44.0, 52.0, 60.0)
RUBBER = (26.0, 26.0, 28.0)
CIRCLE = tuple((math.cos(t), math.sin(t)) for t in np.linspace(0, 2 * math.pi, 11)[:-1])


class Drawing:
    """Draws parts of one vehicle given in its own coordinates (along, across, up), in metres."""

    def __init__(self, canvas: Canvas, vehicle: Vehicle):
        """Finds out which side and which end of the vehicle face the camera.

        Args:
            canvas: canvas to draw on.
            vehicle: vehicle to draw.
        """
        self.canvas = canvas
        self.vehicle = vehicle
        self.label = _LABELS[vehicle.kind]
        self.z = max(vehicle.near, 1.0)
        self.small = canvas.camera.scale(self.z) < 14
        sin, cos = math.sin(vehicle.heading), math.cos(vehicle.heading)
        camera = canvas.camera
        self.sin, self.cos = sin, cos
        dx, dz = vehicle.x - camera.x, vehicle.z
        # Position of the camera in the vehicle's coordinates.
        along = vehicle.length / 2 - dx * sin - dz * cos
        across = -(dx * cos - dz * sin)
        half = vehicle.width / 2
        self.side = 1 if across > half else -1 if across < -half else 0
        self.end = 1 if along > vehicle.length else -1 if along < 0 else 0
        shade = canvas.light.shade
        self.side_shade = shade(self.side * cos, 0, -self.side * sin)
        self.end_shade = shade(self.end * sin, 0, self.end * cos)

    def fill(
        self, points: Iterable[Point3], color: Color, shade: float, label: bool = False
    ) -> None:
        """Fills a polygon.

        Args:
            points: corners (along, across, up).
            color: RGB of the material.
            shade: brightness, see `Light.shade`.
            label: whether the polygon is labelled as the vehicle; False where it lies on it.
        """
        # `Vehicle.place` and `Camera.project` in one loop: they would take half of a scene's time.
        camera, vehicle = self.canvas.camera, self.vehicle
        sin, cos, half = self.sin, self.cos, vehicle.length / 2
        x0, z0 = vehicle.x - camera.x, vehicle.z
        center_u, center_v = camera.center
        focal, height, bend = camera.focal, camera.height, camera.focal * camera.bend
        pixels = []
        for along, across, up in points:
            along -= half
            z = z0 + along * cos - across * sin
            if z < NEAR:
                z = NEAR
            scale = focal / z
            u = center_u + scale * (x0 + along * sin + across * cos) + bend * z
            pixels.append((u, center_v - scale * (up - height)))
        tone = self.canvas.light.tone(color, self.z, shade)
        self.canvas.polygon(pixels, tone, self.label if label else None)

    def flank(
        self, points: Iterable[Point], color: Color, label: bool = False, dim: float = 1.0
    ) -> None:
        """Fills a polygon on the visible side.

        Args:
            points: corners (along, up).
            color: RGB of the material.
            label: whether the polygon is labelled as the vehicle.
            dim: factor of the brightness.
        """
        if self.side:
            across = self.side * self.vehicle.width / 2
            self.fill([(a, across, up) for a, up in points], color, self.side_shade * dim, label)

    def face(
        self,
        along: float,
        points: Iterable[Point],
        color: Color,
        label: bool = False,
        dim: float = 1.0,
    ) -> None:
        """Fills a polygon that faces along the vehicle, if one of its ends is visible.

        Args:
            along: position of the polygon.
            points: corners (across, up), across in -1..1.
            color: RGB of the material.
            label: whether the polygon is labelled as the vehicle.
            dim: factor of the brightness.
        """
        half = self.vehicle.width / 2
        if self.end:
            self.fill(
                [(along, c * half, up) for c, up in points], color, self.end_shade * dim, label
            )

    def wheels(self, places: Iterable[float], radius: float) -> None:
        """Draws round wheels on the visible side.

        Args:
            places: position of each wheel along the vehicle.
            radius: radius of the wheels.
        """
        for along in places:
            self.flank([(along + radius * c, radius + radius * s) for c, s in CIRCLE], RUBBER, True)
            if not self.small:
                hub = 0.55 * radius
                rim = [(along + hub * c, radius + hub * s) for c, s in CIRCLE]
                self.flank(rim, (120, 122, 126), dim=0.8)

    def treads(self, places: Sequence[float], radius: float) -> None:
        """Draws the wheels that are seen below the visible end.

        Args:
            places: position of each wheel along the vehicle.
            radius: height that is seen of the wheels.
        """
        last = max(places) if self.end > 0 else min(places)
        for c in (-0.84, 0.84):
            tread = ((c - 0.13, 0), (c + 0.13, 0), (c + 0.13, radius), (c - 0.13, radius))
            self.face(last, tread, RUBBER, True)
