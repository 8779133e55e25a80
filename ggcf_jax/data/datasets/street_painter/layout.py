"""What stands and moves on the street: vehicles, people, poles, and where the camera is."""

import dataclasses
import math

import numpy as np

from ggcf_jax.data.datasets.street_painter.camera import Camera
from ggcf_jax.data.datasets.street_painter.furniture import Clutter, Pole
from ggcf_jax.data.datasets.street_painter.light import Light, sample_light
from ggcf_jax.data.datasets.street_painter.people import (
    Person,
    TwoWheeler,
    sample_person,
    sample_two_wheeler,
)
from ggcf_jax.data.datasets.street_painter.street import Street, sample_street
from ggcf_jax.data.datasets.street_painter.textures import PAINTS, pick, vary, weighted
from ggcf_jax.data.datasets.street_painter.vehicles import Vehicle, sample_vehicle

Thing = Vehicle | Person | TwoWheeler | Pole | Clutter

_TRAFFIC = ('car', 'van', 'truck', 'bus', 'motorcycle', 'bicycle')
_CHANCES = (0.34, 0.07, 0.13, 0.18, 0.15, 0.13)
_CLUTTER = ((60, 76, 62), (72, 74, 78), (120, 96, 70), (150, 60, 50), (60, 86, 120))


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything that is painted, in metres; only the camera depends on the image size.

    Attributes:
        camera: camera that sees the scene.
        light: illumination.
        street: road, and what stands along it.
        things: what stands and moves on the street.
        bonnet: height and arch of the bonnet of the camera's own car, as shares of the image
            height; None where it is not seen.
    """

    camera: Camera
    light: Light
    street: Street
    things: tuple[Thing, ...]
    bonnet: tuple[float, float] | None


def _lane_traffic(
    rng: np.random.Generator, x: float, direction: int, start: float, density: float
) -> list[Thing]:
    things: list[Thing] = []
    heading = 0.0 if direction > 0 else math.pi
    z = start
    while z < 60:
        kind = weighted(rng, _TRAFFIC, _CHANCES)
        shift = rng.uniform(-0.25, 0.25)
        if kind in ('motorcycle', 'bicycle'):
            if kind == 'bicycle':
                shift += 1.1 * direction
            things.append(sample_two_wheeler(rng, kind, x + shift, z + 1, ridden=True))
            z += 3
        else:
            vehicle = sample_vehicle(rng, kind, x + shift, z, heading)
            things.append(vehicle)
            z += vehicle.length
        z += 2.5 + rng.exponential(density)
    return things


def _traffic(rng: np.random.Generator, street: Street, own: float) -> list[Thing]:
    things: list[Thing] = []
    density = pick(rng, (7.0, 16.0, 30.0))
    for x, direction in street.lanes:
        if street.track is not None and abs(x - street.track) < 0.5:
            continue
        start = rng.uniform(9, 22) if abs(x - own) < 1 else rng.uniform(4.5, 18)
        things += _lane_traffic(rng, x, direction, start, density)
    if street.track is not None and rng.random() < 0.9:
        near = rng.uniform(4, 26)
        heading = math.pi if street.track < own and rng.random() < 0.7 else 0.0
        things.append(sample_vehicle(rng, 'train', street.track, near, heading))
    for row, side in zip(street.parking, (-1, 1)):
        if row is None:
            continue
        z = rng.uniform(3.5, 9)
        while z < 45:
            draw = rng.random()
            if draw < 0.62:
                kind = 'van' if draw < 0.1 else 'truck' if draw < 0.15 else 'car'
                vehicle = sample_vehicle(rng, kind, row, z, 0.0 if side > 0 else math.pi)
                things.append(vehicle)
                z += vehicle.length + rng.uniform(0.8, 2)
            elif draw < 0.78:
                kind = 'motorcycle' if draw < 0.72 else 'bicycle'
                things.append(sample_two_wheeler(rng, kind, row, z, ridden=False))
                z += 2.4
            else:
                z += 6
    if street.openings and rng.random() < 0.5:  # somebody waits in the side street or turns out
        side, z0, z1 = pick(rng, street.openings)
        kind = weighted(rng, ('car', 'van', 'truck', 'bus'), (0.4, 0.1, 0.2, 0.3))
        edge = street.road[0] if side < 0 else street.road[1]
        middle = (z0 + z1) / 2 + rng.uniform(-1, 1)
        vehicle = sample_vehicle(rng, kind, 0.0, middle - 1.3, -side * math.pi / 2)
        x = edge + side * (vehicle.length / 2 + rng.uniform(0.5, 4))
        things.append(dataclasses.replace(vehicle, x=x))
    return things


def _people(rng: np.random.Generator, street: Street) -> list[Thing]:
    things: list[Thing] = []
    for side, kerb, width in zip((-1, 1), street.road, street.pavement):
        for _ in range(rng.poisson(5)):
            z = 4 + rng.exponential(15)
            x = kerb + side * rng.uniform(0.7, width - 0.2)
            for companion in range(1 + (rng.random() < 0.3)):
                things.append(sample_person(rng, x + 0.5 * companion, z + 0.3 * companion))
        if rng.random() < 0.5:
            z = rng.uniform(5, 20)
            kind = 'bicycle' if rng.random() < 0.7 else 'motorcycle'
            for index in range(int(rng.integers(1, 5))):
                x = kerb + side * rng.uniform(0.5, 0.8)
                things.append(
                    sample_two_wheeler(rng, kind, x, z + 0.9 * index, ridden=False, floor=0.1)
                )
    if rng.random() < 0.5:  # a cyclist beside the traffic
        x = max(x for x, _ in street.lanes) + 1.2
        things.append(sample_two_wheeler(rng, 'bicycle', x, rng.uniform(6, 18), ridden=True))
    if street.crossing is not None:
        for _ in range(int(rng.integers(1, 5))):
            x = rng.uniform(*street.road)
            z = street.crossing + rng.uniform(0.3, 2.7)
            things.append(sample_person(rng, x, z, 0.0))
    return things


def _pole(rng: np.random.Generator, kind: str, x: float, z: float, side: int) -> Pole:
    low, high = {
        'lamp': (6.0, 9.0),
        'light': (3.3, 3.9),
        'sign': (2.4, 3.2),
        'mast': (5.2, 6.0),
        'bollard': (0.8, 1.0),
    }[kind]
    height, arm = rng.uniform(low, high), 0.0
    if kind in ('lamp', 'mast') or (kind == 'light' and rng.random() < 0.6):
        arm = -side * rng.uniform(1.4, 4.0)
    if kind == 'light' and arm:
        height = rng.uniform(5.0, 5.8)
    color = vary(rng, pick(rng, ((104, 106, 108), (138, 140, 140), (70, 76, 72), (84, 80, 78))))
    return Pole(kind, x, z, height, arm, color, int(rng.integers(1 << 16)))


def _furniture(rng: np.random.Generator, street: Street) -> list[Thing]:
    things: list[Thing] = []
    for side, kerb, width in zip((-1, 1), street.road, street.pavement):
        near = kerb + side * 0.45
        if rng.random() < 0.75:
            spacing = rng.uniform(16, 26)
            for z in np.arange(rng.uniform(4, spacing), 95, spacing):
                things.append(_pole(rng, 'lamp', near, z, side))
        for _ in range(rng.poisson(1.7)):
            things.append(_pole(rng, 'sign', near + side * 0.3, rng.uniform(6, 34), side))
        if street.crossing is not None or rng.random() < 0.45:
            z = (street.crossing or rng.uniform(10, 30)) + 3.4
            things.append(_pole(rng, 'light', near, z, side))
        if rng.random() < 0.22:
            things.append(_pole(rng, 'mast', near, rng.uniform(12, 30), side))
        if rng.random() < 0.2:
            for z in np.arange(rng.uniform(3, 8), 34, 1.8):
                things.append(_pole(rng, 'bollard', kerb + side * 0.3, z, side))
        for _ in range(rng.poisson(0.8)):
            size = (rng.uniform(0.5, 1.3), rng.uniform(0.7, 1.3))
            x = kerb + side * rng.uniform(0.8, width)
            color = vary(rng, pick(rng, _CLUTTER + PAINTS[-2:]))
            things.append(Clutter(x, rng.uniform(5, 30), *size, color))
    return things


def sample_scene(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Draws a scene; every image size shows the same one.

    Args:
        rng: source of randomness.
        size: (height, width) of the image in pixels.
    """
    light = sample_light(rng)
    street = sample_street(rng)
    own = pick(rng, [x for x, direction in street.lanes if direction > 0]) + rng.uniform(-0.4, 0.4)
    height, width = size
    # The geometric mean keeps the view natural from square to panoramic images.
    camera = Camera(
        size=size,
        focal=rng.uniform(1.0, 1.2) * math.sqrt(height * width),
        center=(width * rng.uniform(0.44, 0.56), height * rng.uniform(0.40, 0.47)),
        x=own,
        height=rng.uniform(1.35, 1.75),
        bend=float(rng.normal(0, 0.0007)),
    )
    things = _traffic(rng, street, own) + _people(rng, street) + _furniture(rng, street)
    bonnet = (rng.uniform(0.035, 0.07), rng.uniform(0.0, 0.03)) if rng.random() < 0.45 else None
    return Scene(camera=camera, light=light, street=street, things=tuple(things), bonnet=bonnet)
