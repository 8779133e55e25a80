"""Pedestrians, cyclists and motorcyclists, and two-wheelers parked at the kerb."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from ggcf_jax.data.datasets.street_painter import classes, textures
from ggcf_jax.data.datasets.street_painter.camera import Point
from ggcf_jax.data.datasets.street_painter.canvas import Canvas
from ggcf_jax.data.datasets.street_painter.textures import Color

_SKIN = ((224, 178, 150), (198, 146, 114), (146, 98, 72), (92, 62, 48))
_CLOTHES = (
    (36, 38, 48),
    (58, 62, 78),
    (156, 40, 44),
    (212, 206, 196),
    (44, 78, 126),
    (92, 84, 70),
    (186, 150, 60),
    (70, 96, 74),
    (128, 70, 104),
    (24, 24, 26),
)


@dataclasses.dataclass(frozen=True)
class Person:
    """Somebody on foot.

    Attributes:
        x: lateral position in metres.
        z: distance in metres.
        floor: height of the ground above the road in metres.
        height: body height in metres.
        stride: position of the legs, -1..1.
        skin: RGB.
        upper: RGB of the clothes above the hip.
        lower: RGB of the clothes below the hip.
    """

    x: float
    z: float
    floor: float
    height: float
    stride: float
    skin: tuple[float, ...]
    upper: tuple[float, ...]
    lower: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class TwoWheeler:
    """A bicycle or motorcycle.

    Attributes:
        kind: 'bicycle' or 'motorcycle'.
        x: lateral position in metres.
        z: distance in metres.
        floor: height of the ground above the road in metres.
        turn: share of its length that shows, -1..1: 0 = seen along, +-1 = from the side.
        paint: RGB of the frame.
        rider: person who rides it; None if it is parked.
    """

    kind: str
    x: float
    z: float
    floor: float
    turn: float
    paint: tuple[float, ...]
    rider: Person | None


def sample_person(rng: np.random.Generator, x: float, z: float, floor: float = 0.1) -> Person:
    """Draws somebody on foot.

    Args:
        rng: source of randomness.
        x: lateral position in metres.
        z: distance in metres.
        floor: height of the ground above the road in metres.
    """
    return Person(
        x=x,
        z=z,
        floor=floor,
        height=rng.uniform(1.55, 1.9) if rng.random() < 0.9 else rng.uniform(1.0, 1.4),
        stride=rng.uniform(-1, 1),
        skin=textures.pick(rng, _SKIN),
        upper=textures.vary(rng, textures.pick(rng, _CLOTHES)),
        lower=textures.vary(rng, textures.pick(rng, _CLOTHES)),
    )


def sample_two_wheeler(
    rng: np.random.Generator, kind: str, x: float, z: float, *, ridden: bool, floor: float = 0.0
) -> TwoWheeler:
    """Draws a bicycle or motorcycle, ridden along the road or parked across.

    Args:
        rng: source of randomness.
        kind: 'bicycle' or 'motorcycle'.
        x: lateral position in metres.
        z: distance in metres.
        ridden: whether somebody rides it.
        floor: height of the ground above the road in metres.
    """
    turn = rng.uniform(0.15, 0.55) if ridden and rng.random() < 0.7 else rng.uniform(0.5, 1.0)
    return TwoWheeler(
        kind=kind,
        x=x,
        z=z,
        floor=floor,
        turn=turn * (1 if rng.random() < 0.5 else -1),
        paint=textures.vary(rng, textures.pick(rng, textures.PAINTS)),
        rider=sample_person(rng, x, z, floor) if ridden else None,
    )


class _Figure:
    """Draws shapes given as (right, up) in metres from a point on the ground."""

    def __init__(self, canvas: Canvas, x: float, z: float, floor: float, stretch: float = 1.0):
        """Stands at (x, floor, z); `stretch` is a factor of distances to the right."""
        self.canvas = canvas
        self.u, self.v = canvas.camera.project(x, floor, z)
        self.unit = canvas.camera.scale(z)
        self.stretch = stretch
        self.z = z
        self.shade = canvas.light.shade(0, 0.4, -0.9)

    def at(self, right: float, up: float) -> Point:
        return self.u + right * self.unit * self.stretch, self.v - up * self.unit

    def tone(self, color: Color, dim: float = 1.0) -> tuple[int, int, int]:
        return self.canvas.light.tone(color, self.z, self.shade * dim)

    def limb(
        self, points: Iterable[Point], width: float, color: Color, label: int, dim: float = 1.0
    ) -> None:
        pixels = [self.at(*p) for p in points]
        self.canvas.stroke(pixels, width * self.unit, self.tone(color, dim), label)

    def shape(self, points: Iterable[Point], color: Color, label: int, dim: float = 1.0) -> None:
        self.canvas.polygon([self.at(*p) for p in points], self.tone(color, dim), label)

    def disc(
        self,
        right: float,
        up: float,
        radius: float,
        color: Color,
        label: int | None,
        squeeze: float = 1.0,
    ) -> None:
        axes = (radius * squeeze * self.unit, radius * self.unit)
        self.canvas.ellipse(self.at(right, up), axes, self.tone(color), label)


def paint_person(canvas: Canvas, person: Person) -> None:
    """Paints a pedestrian.

    Args:
        canvas: canvas to paint on.
        person: pedestrian to paint.
    """
    if not canvas.visible(person.x, person.z, 1.0):
        return
    figure = _Figure(canvas, person.x, person.z, person.floor)
    h, s, label = person.height, person.stride, classes.PERSON
    hip, shoulder = 0.48 * h, 0.81 * h
    step = 0.16 * h * s
    dark = tuple(c * 0.7 for c in person.lower)
    figure.limb(((0.03, hip), (step * 0.5 + 0.04, 0.25 * h), (step, 0.02)), 0.13, dark, label)
    figure.limb(
        ((-0.03, hip), (-step * 0.3 - 0.04, 0.25 * h), (-step, 0.02)), 0.14, person.lower, label
    )
    torso = (
        (-0.17, hip - 0.04),
        (0.17, hip - 0.04),
        (0.21, shoulder),
        (0.1, shoulder + 0.05),
        (-0.1, shoulder + 0.05),
        (-0.21, shoulder),
    )
    figure.shape(torso, person.upper, label)
    for sign in (-1, 1):
        hand = (sign * 0.25 + step * 0.5 * -sign, hip + 0.02)
        figure.limb(
            ((sign * 0.2, shoulder), (sign * 0.26, 0.63 * h), hand),
            0.085,
            person.upper,
            label,
            0.85,
        )
    figure.disc(0, 0.92 * h, 0.075 * h, person.skin, label, 0.85)
    figure.disc(0, 0.95 * h, 0.062 * h, (52, 42, 36), label, 1.05)


def _bicycle(figure: _Figure, paint: Color, across: float) -> None:
    label, canvas = classes.BICYCLE, figure.canvas
    radius, squeeze = 0.34, max(abs(figure.stretch), 0.14)
    for side in (-0.52, 0.52):
        # Cityscapes labels the whole disc, spokes and what shows between them.
        axes = (radius * squeeze * figure.unit, radius * figure.unit)
        canvas.ring(
            figure.at(side, radius), axes, 0.07 * figure.unit, figure.tone((38, 38, 40)), label
        )
    frame = ((-0.52, 0.34), (-0.1, 0.34), (0.4, 0.78), (-0.18, 0.8), (-0.52, 0.34))
    figure.limb(frame, 0.055, paint, label)
    figure.limb(((-0.1, 0.34), (-0.2, 0.92)), 0.05, paint, label)
    figure.limb(((0.52, 0.34), (0.4, 0.8), (0.37, 1.02)), 0.055, paint, label)
    figure.limb(((-0.3, 0.94), (-0.1, 0.94)), 0.07, (30, 30, 32), label)
    unit = figure.unit
    u, v = figure.at(0.37, 1.02)
    bar = 0.27 * across
    canvas.stroke(
        ((u - bar * unit, v), (u + bar * unit, v)), 0.05 * unit, figure.tone((50, 50, 52)), label
    )


def _motorcycle(figure: _Figure, paint: Color, across: float) -> None:
    label = classes.MOTORCYCLE
    squeeze = max(abs(figure.stretch), 0.25)
    for side in (-0.66, 0.66):
        figure.disc(side, 0.31, 0.31, (26, 26, 28), label, squeeze)
        figure.disc(side, 0.31, 0.15, (110, 112, 116), None, squeeze)
    figure.shape(((-0.5, 0.3), (0.45, 0.28), (0.4, 0.6), (-0.45, 0.6)), (62, 62, 66), label)
    figure.shape(
        (
            (-0.95, 0.78),
            (-0.2, 0.62),
            (0.1, 0.6),
            (0.55, 0.72),
            (0.42, 0.98),
            (0.05, 0.96),
            (-0.25, 0.8),
            (-0.9, 0.9),
        ),
        paint,
        label,
    )
    figure.limb(((0.66, 0.31), (0.42, 0.98)), 0.09, (96, 98, 102), label)
    unit = figure.unit
    u, v = figure.at(0.4, 1.08)
    bar = 0.34 * across
    figure.canvas.stroke(
        ((u - bar * unit, v), (u + bar * unit, v)), 0.07 * unit, figure.tone((40, 40, 42)), label
    )
    # Its width, which shows when it is seen along.
    wide = 0.2 * across
    body = [
        (u0 * unit + figure.u, figure.v - up * unit)
        for u0, up in ((-wide, 0.35), (wide, 0.35), (wide, 0.95), (-wide, 0.95))
    ]
    figure.canvas.polygon(body, figure.tone(paint, 0.8), label)
    u, v = figure.at(0.52, 0.9)
    figure.canvas.ellipse((u, v), (0.09 * unit, 0.09 * unit), figure.tone((240, 232, 200)), label)


def paint_two_wheeler(canvas: Canvas, machine: TwoWheeler) -> None:
    """Paints a bicycle or motorcycle and over it its rider.

    Args:
        canvas: canvas to paint on.
        machine: bicycle or motorcycle to paint.
    """
    if not canvas.visible(machine.x, machine.z, 1.2):
        return
    across = math.sqrt(1 - machine.turn**2)
    figure = _Figure(canvas, machine.x, machine.z, machine.floor, machine.turn)
    if machine.kind == 'bicycle':
        _bicycle(figure, machine.paint, across)
        seat, hands, pedal = (-0.2, 0.95), (0.36, 1.05), (-0.05, 0.28)
    else:
        _motorcycle(figure, machine.paint, across)
        seat, hands, pedal = (-0.28, 0.85), (0.38, 1.1), (0.05, 0.36)
    rider = machine.rider
    if rider is None:
        return
    label = classes.RIDER
    body = _Figure(canvas, machine.x, machine.z, machine.floor)
    turn = machine.turn

    def seen(along: float, up: float, side: float = 0.0) -> Point:
        return along * turn + side * across, up

    shoulder = (0.06 if machine.kind == 'bicycle' else -0.04, seat[1] + 0.55)
    for sign in (-1, 1):
        knee = seen(0.14, 0.72 if sign > 0 else 0.6, sign * 0.16)
        foot = seen(pedal[0], pedal[1] + 0.12 * (sign > 0), sign * 0.15)
        body.limb((seen(*seat, sign * 0.1), knee, foot), 0.14, rider.lower, label, 0.8 + 0.1 * sign)
    half = 0.13 + 0.08 * across
    hip, top = seen(*seat), seen(*shoulder)
    torso = (
        (hip[0] - half, hip[1] - 0.05),
        (hip[0] + half, hip[1] - 0.05),
        (top[0] + half, top[1]),
        (top[0] - half, top[1]),
    )
    body.shape(torso, rider.upper, label)
    for sign in (-1, 1):
        side = sign * 0.22
        elbow = seen((shoulder[0] + hands[0]) / 2, seat[1] + 0.22, side * 1.2)
        body.limb(
            (seen(*shoulder, side), elbow, seen(*hands, side)), 0.09, rider.upper, label, 0.85
        )
    head = seen(shoulder[0] + 0.08, shoulder[1] + 0.2)
    if machine.kind == 'motorcycle':
        body.disc(*head, 0.155, machine.paint, label)
        body.disc(head[0] + 0.05 * turn, head[1] - 0.01, 0.08, (30, 32, 36), label)
    else:
        body.disc(*head, 0.12, rider.skin, label, 0.88)
        body.disc(head[0], head[1] + 0.045, 0.115, machine.paint, label, 1.05)
