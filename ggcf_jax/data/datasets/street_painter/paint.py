"""Paints a scene: far to near, then through a lens onto a noisy sensor."""

import functools

import cv2
import numpy as np
from jaxtyping import UInt8

from ggcf_jax.data.datasets.street_painter import (
    bodies,
    classes,
    furniture,
    ground,
    people,
    surfaces,
    textures,
)
from ggcf_jax.data.datasets.street_painter.canvas import Canvas
from ggcf_jax.data.datasets.street_painter.layout import Scene, Thing, sample_scene
from ggcf_jax.data.datasets.street_painter.vehicles import Vehicle

SPLITS = ('train', 'validation', 'test')


def _far_to_near(scene: Scene) -> list[Thing]:
    """The things in the order that they are painted in.

    A ray from the camera leaves its own lane once and then crosses one band along the road after
    another. So things in an outer band are behind all those in inner ones, however long the
    vehicles are; within a band the distance decides.
    """
    street, camera = scene.street, scene.camera
    others = (x for x in (*street.parking, street.track) if x is not None)
    bands = sorted({x for x, _ in street.lanes} | {*others})

    def band(x: float) -> int:
        if not street.road[0] < x < street.road[1]:
            return -1 if x < street.road[0] else len(bands)
        return min(range(len(bands)), key=lambda i: abs(bands[i] - x))

    def depth(thing: Thing) -> tuple[int, float]:
        near = thing.near if isinstance(thing, Vehicle) else thing.z
        return abs(band(thing.x) - band(camera.x)), near

    return sorted(scene.things, key=depth, reverse=True)


def _shadows(scene: Scene) -> UInt8[np.ndarray, 'z x']:
    """The shadow plan with the shadows of everything in the scene."""
    plan, light = ground.shadow_plan(), scene.light
    for segment in scene.street.segments:
        for house in segment.buildings:
            back = house.x + house.depth
            outline = ((house.x, house.z0), (house.x, house.z1), (back, house.z1), (back, house.z0))
            ground.cast(plan, light, outline, house.height)
        for strip in segment.strips:
            back = strip.x + 0.3 * segment.side
            outline = ((strip.x, strip.z0), (strip.x, strip.z1), (back, strip.z1), (back, strip.z0))
            ground.cast(plan, light, outline, strip.height)
        for tree in segment.behind + segment.front:
            half = tree.crown[0] * 0.42
            turns = np.arange(10) * (2 * np.pi / 10)
            ring = [(tree.x + half * np.cos(t), tree.z + half * np.sin(t)) for t in turns]
            ground.cast(plan, light, ring, tree.trunk + 0.6 * tree.crown[1])
    for thing in scene.things:
        if isinstance(thing, Vehicle):
            ground.cast(plan, light, thing.footprint(), thing.height)
        elif isinstance(thing, people.Person | furniture.Pole):
            x, z = thing.x, thing.z
            outline = ((x - 0.15, z), (x, z - 0.15), (x + 0.15, z), (x, z + 0.15))
            ground.cast(plan, light, outline, thing.height)
    for thing in scene.things:
        if isinstance(thing, Vehicle):
            ground.contact(plan, thing.footprint(0.1))
        elif isinstance(thing, people.TwoWheeler):
            x, z = thing.x, thing.z
            ground.contact(
                plan,
                ((x - 0.4, z - 0.3), (x + 0.4, z - 0.3), (x + 0.4, z + 0.3), (x - 0.4, z + 0.3)),
            )
    return plan


def _paint_things(canvas: Canvas, things: list[Thing]) -> None:
    for thing in things:
        match thing:
            case Vehicle():
                bodies.paint_vehicle(canvas, thing)
            case people.Person():
                people.paint_person(canvas, thing)
            case people.TwoWheeler():
                people.paint_two_wheeler(canvas, thing)
            case furniture.Pole():
                furniture.paint_pole(canvas, thing)
            case furniture.Clutter():
                furniture.paint_clutter(canvas, thing)


def _paint_bonnet(canvas: Canvas, rise: float, peak: float, rng: np.random.Generator) -> None:
    """Paints the bonnet of the camera's own car, which has the ignore label."""
    height, width = canvas.camera.size
    t = np.linspace(-1, 1, 13)
    top = height * (1 - rise - peak * (1 - t**2))
    points = [(width * (0.5 + 0.52 * a), v) for a, v in zip(t, top)]
    points += [(width * 1.02, height + 2), (width * -0.02, height + 2)]
    color = textures.vary(rng, (52, 54, 60), 0.3)
    canvas.polygon(points, tuple(int(c) for c in color), classes.IGNORE)
    glare = [(u, v + 0.35 * (height - v)) for u, v in points[2:11]]
    canvas.stroke(glare, 0.012 * height, tuple(int(c * 1.5) for c in color), None)


@functools.cache
def _vignette(size: tuple[int, int]) -> np.ndarray:
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in size)
    shading = 1 - 0.08 * (y[:, None] ** 2 + x[None, :] ** 2)
    return cv2.merge([shading] * 3)


def _expose(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Automatic exposure, lens blur, vignette, colour gain, tone curve and sensor noise."""
    light, (height, width) = canvas.light, canvas.camera.size
    image = cv2.GaussianBlur(canvas.image, (3, 3), rng.uniform(0.35, 0.6))
    # A camera compensates most of a scene's brightness, but not all.
    exposure = (112 / max(20.0, sum(cv2.mean(image)[:3]) / 3)) ** 0.45
    level = np.arange(256, dtype=np.float32)[:, None] / 255 * exposure
    curve = 255 * (level * np.asarray(light.gain, np.float32)) ** rng.uniform(0.92, 1.1)
    image = cv2.LUT(image, np.clip(curve, 0, 255).astype(np.uint8)[None])
    image = cv2.multiply(image, _vignette((height, width)), dtype=cv2.CV_8U)
    sheet = textures.crop(rng, textures.noise('sensor'), height, width)
    noise = cv2.convertScaleAbs(sheet, alpha=light.noise / 32, beta=128 - 4 * light.noise)
    noise = cv2.merge([noise] * 3)
    return cv2.addWeighted(image, 1, noise, 1, -128)


def paint_scene(
    seed: int, split: str, index: int, size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, 'h w 3'], UInt8[np.ndarray, 'h w']]:
    """Paints a scene; equal arguments give equal pixels.

    Args:
        seed: seed of the data set.
        split: 'train', 'validation' or 'test'.
        index: index of the scene in its split.
        size: (height, width) in pixels.

    Returns:
        RGB image, and its train ids with 255 = ignore.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scene = sample_scene(rng, size)
    canvas = Canvas(scene.camera, scene.light)
    ground.paint_sky(canvas, rng)
    ground.paint_backdrop(canvas, rng)
    ground.paint_ground(canvas, scene.street, _shadows(scene), rng)
    # Where the road bends away from a side, the other side reaches in front of it.
    inner = 1 if scene.camera.bend > 0 else -1
    for segment in sorted(scene.street.segments, key=lambda s: s.side == inner):
        for building in segment.buildings:
            surfaces.paint_building(canvas, building, rng)
        for tree in segment.behind:
            furniture.paint_tree(canvas, tree)
        for strip in segment.strips:
            surfaces.paint_strip(canvas, strip, rng)
        for tree in segment.front:
            furniture.paint_tree(canvas, tree)
    _paint_things(canvas, _far_to_near(scene))
    if scene.bonnet:
        _paint_bonnet(canvas, *scene.bonnet, rng)
    return _expose(canvas, rng), canvas.label
