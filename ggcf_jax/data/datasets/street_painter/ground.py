"""Sky, backdrop and ground: what lies behind and under the things of the street."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from ggcf_jax.data.datasets.street_painter import classes, textures
from ggcf_jax.data.datasets.street_painter.camera import FAR, Point
from ggcf_jax.data.datasets.street_painter.canvas import Canvas
from ggcf_jax.data.datasets.street_painter.light import Light
from ggcf_jax.data.datasets.street_painter.street import PARKING, TRACK, Street
from ggcf_jax.data.datasets.street_painter.textures import Color

_REACH = 26.0  # metres that the ground plan covers to the left and right of x = 0
_ACROSS, _ALONG = 14, 4  # pixels of the ground plan per metre, across and along the road
_MIPMAP = (4, 8)  # factors that the plan is reduced by for distant ground, across and along
_MIPMAP_FROM = 22.0  # metres; ground from here on is distant
_SHADOW = 4  # pixels of the shadow plan per metre


class _Rectangle(NamedTuple):
    """Part of the ground, in metres."""

    x0: float
    x1: float
    z0: float
    z1: float


def paint_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paints a gradient and clouds, down to below the horizon, where the ground will cover them.

    Args:
        canvas: canvas to paint on.
        rng: source of randomness.
    """
    light, (height, width) = canvas.light, canvas.camera.size
    rows = min(height, math.ceil(canvas.camera.center[1]) + 8)
    t = np.linspace(0, 1, rows, dtype=np.float32)[:, None] ** 0.8
    gradient = np.asarray(light.sky_top) * (1 - t) + np.asarray(light.sky_horizon) * t
    sky = np.broadcast_to(gradient.astype(np.uint8)[:, None, :], (rows, width, 3)).copy()
    # Clouds flatten towards the horizon: rows of the noise sheet are taken at 1 / distance.
    sheet = textures.noise('cloud')
    row = 90 / (1.25 - t[:, 0]) * rng.uniform(0.8, 1.4)
    column = np.linspace(0, rng.uniform(180, 330), width, dtype=np.float32)
    offset = rng.integers(0, 1024, 2)
    map_x = np.broadcast_to(column[None, :] + offset[0], (rows, width)).astype(np.float32)
    map_y = np.broadcast_to(row[:, None] + offset[1], (rows, width)).astype(np.float32)
    noise = cv2.remap(sheet, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    level = np.arange(256, dtype=np.float32)
    cover = ((level - 178 + 90 * light.clouds) / 70).clip(0, 0.85)
    weight = cv2.LUT(noise, cover.astype(np.float32))
    bright = min(255.0, max(light.sky_horizon) + 22)
    clouds = textures.colorize(255 - noise, (bright, bright, bright), 0.25)
    canvas.image[:rows] = cv2.blendLinear(clouds, sky, weight, 1 - weight)
    canvas.label[:rows] = classes.SKY


def paint_backdrop(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paints houses and woods where the street ends, half hidden by the haze.

    Args:
        canvas: canvas to paint on.
        rng: source of randomness.
    """
    camera, width = canvas.camera, canvas.camera.size[1]
    unit = camera.scale(FAR)
    base = camera.center[1] + unit * camera.height + 1
    u = -10.0
    while u < width + 10:
        span = rng.uniform(5, 16) * unit
        if rng.random() < 0.5:
            tall = rng.uniform(4, 13) * unit
            color = canvas.light.tone(textures.vary(rng, textures.pick(rng, textures.MASONRY)), FAR)
            box = ((u, base), (u, base - tall), (u + span, base - tall), (u + span, base))
            canvas.polygon(box, color, classes.BUILDING)
        else:
            color = canvas.light.tone(textures.vary(rng, textures.pick(rng, textures.GREENS)), FAR)
            tall = rng.uniform(3, 9) * unit
            canvas.ellipse((u + span / 2, base), (span * 0.7, tall), color, classes.VEGETATION)
        u += span * 0.9


def _stripes(street: Street) -> list[tuple[_Rectangle, str]]:
    """The ground and its kinds, from the outside in; later parts cover earlier ones."""
    left, right = street.road
    stripes: list[tuple[_Rectangle, str]] = []

    def add(x0: float, x1: float, z0: float, z1: float, kind: str) -> None:
        stripes.append((_Rectangle(x0, x1, z0, z1), kind))

    for segment in street.segments:
        far = segment.side * _REACH
        # Slightly behind what stands there, or a line of the yard would show in front of it.
        wall = segment.boundary + 0.15 * segment.side
        add(far, wall, segment.z0, segment.z1, segment.yard)
        add(wall, segment.edge, segment.z0, segment.z1, segment.verge)
    add(left - street.pavement[0], left, 0, FAR, 'sidewalk')
    add(right, right + street.pavement[1], 0, FAR, 'sidewalk')
    add(left - 0.22, left, 0, FAR, 'kerb')
    add(right, right + 0.22, 0, FAR, 'kerb')
    add(left, right, 0, FAR, 'road')
    for side, z0, z1 in street.openings:
        start = left if side < 0 else right
        add(side * _REACH, start, z0 - 2.5, z1 + 2.5, 'sidewalk')
        add(side * _REACH, start - side * 0.1, z0, z1, 'road')
    if street.track is not None:
        half = TRACK / 2
        if street.bed != 'road':
            add(street.track - half, street.track + half, 0, FAR, street.bed)
        for rail in (-0.72, 0.72):
            add(street.track + rail - 0.05, street.track + rail + 0.05, 0, FAR, 'rail')
    return stripes


def _markings(street: Street, rng: np.random.Generator) -> list[_Rectangle]:
    """Lines that are painted on the road."""
    left, right = street.road
    lines: list[_Rectangle] = []
    centers = sorted(x for x, _ in street.lanes)
    directions = dict(street.lanes)
    for a, b in itertools.pairwise(centers):
        middle = (a + b) / 2
        if b - a > 3.5:
            continue  # a tramway lies between
        if directions[a] != directions[b] and rng.random() < 0.35:
            lines.append(_Rectangle(middle - 0.08, middle + 0.08, 0, FAR))
            continue
        start = rng.uniform(-6, 0)
        for z in np.arange(start, FAR, 6.5).tolist():
            lines.append(_Rectangle(middle - 0.08, middle + 0.08, z, z + 3))
    for x, edge in ((street.parking[0], left), (street.parking[1], right)):
        if x is not None and abs(abs(x - edge) - PARKING / 2) < 0.1:
            inner = x + (PARKING / 2 if x < 0 else -PARKING / 2)
            lines.append(_Rectangle(inner - 0.06, inner + 0.06, 0, FAR))
    if street.crossing is not None:
        z = street.crossing
        for start in np.arange(left + 0.4, right - 0.6, 1.0).tolist():
            lines.append(_Rectangle(start, start + 0.5, z, z + 3))
        own = [center for center, direction in street.lanes if direction > 0]
        lines.append(_Rectangle(min(own) - 1.5, max(own) + 1.5, z - 1.6, z - 1.2))
    return lines


def _plan(
    street: Street, canvas: Canvas, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, 'z x 3'], UInt8[np.ndarray, 'z x']]:
    """Colours and train ids of the street, seen from above."""
    asphalt = textures.vary(rng, (92, 92, 96), 0.16)
    if canvas.light.wet:
        asphalt = tuple(c * 0.72 for c in asphalt)
    paving = textures.vary(
        rng, textures.pick(rng, ((150, 144, 138), (136, 136, 138), (158, 140, 128)))
    )
    grass = textures.vary(rng, textures.pick(rng, textures.GREENS))
    ballast = textures.vary(rng, (116, 106, 98))
    looks = {
        'road': (asphalt, classes.ROAD),
        'sidewalk': (paving, classes.SIDEWALK),
        'kerb': (tuple(c * 1.18 for c in paving), classes.SIDEWALK),
        'terrain': (grass, classes.TERRAIN),
        'ballast': (ballast, classes.IGNORE),
    }
    shape = (int(FAR * _ALONG), int(2 * _REACH * _ACROSS))
    colors, ids = np.empty((*shape, 3), np.uint8), np.empty(shape, np.uint8)

    def fill(part: _Rectangle, color: Color, label: int | None) -> None:
        x0, x1 = sorted((part.x0, part.x1))
        first = (round((x0 + _REACH) * _ACROSS), round(part.z0 * _ALONG))
        # OpenCV fills the last pixel, too.
        last = (round((x1 + _REACH) * _ACROSS) - 1, round(part.z1 * _ALONG) - 1)
        if first[0] > last[0] or first[1] > last[1]:
            return
        cv2.rectangle(colors, first, last, color, -1)
        if label is not None:
            cv2.rectangle(ids, first, last, label, -1)

    fill(_Rectangle(-_REACH, _REACH, 0, FAR), *looks['sidewalk'])
    for part, kind in _stripes(street):
        if kind == 'rail':
            fill(part, (168, 166, 164), None)
        else:
            fill(part, *looks[kind])
    for part in _markings(street, rng):
        fill(part, (214, 214, 208), None)
    return colors, ids


def paint_ground(
    canvas: Canvas, street: Street, shadows: UInt8[np.ndarray, 'z x'], rng: np.random.Generator
) -> None:
    """Paints the ground, projected from a plan of it.

    Args:
        canvas: canvas to paint on.
        street: cross-section of the street.
        shadows: shadow plan, see `shadow_plan`, with all shadows.
        rng: source of randomness.
    """
    camera, light = canvas.camera, canvas.light
    colors, ids = _plan(street, canvas, rng)
    first, z, x = camera.ground()
    map_x = ((x + _REACH) * _ACROSS - 0.5).astype(np.float32)
    map_z = np.broadcast_to((z * _ALONG - 0.5)[:, None], x.shape).astype(np.float32)
    border = cv2.BORDER_REPLICATE
    distant = int((z > _MIPMAP_FROM).sum())  # rows run from far to near
    pixels = np.empty((*x.shape, 3), np.uint8)
    pixels[distant:] = cv2.remap(
        colors, map_x[distant:], map_z[distant:], cv2.INTER_LINEAR, borderMode=border
    )
    canvas.label[first:] = cv2.remap(ids, map_x, map_z, cv2.INTER_NEAREST, borderMode=border)
    if distant:
        start = int((_MIPMAP_FROM - 4) * _ALONG) // _MIPMAP[1] * _MIPMAP[1]
        reduced = colors[start:]
        shape = (colors.shape[1] // _MIPMAP[0], max(1, reduced.shape[0] // _MIPMAP[1]))
        reduced = cv2.resize(reduced, shape, interpolation=cv2.INTER_AREA)
        far_x = map_x[:distant] / _MIPMAP[0]
        far_z = (map_z[:distant] - start) / _MIPMAP[1]
        pixels[:distant] = cv2.remap(reduced, far_x, far_z, cv2.INTER_LINEAR, borderMode=border)
    shadow = cv2.remap(
        cv2.blur(shadows, (3, 3)),
        map_x * (_SHADOW / _ACROSS),
        map_z * (_SHADOW / _ALONG),
        cv2.INTER_LINEAR,
        borderMode=border,
    )
    offset = rng.integers(0, 512, 2)
    grain = cv2.remap(
        textures.noise('leaf'),
        map_x * 1.7 + float(offset[0]),
        map_z * 5.5 + float(offset[1]),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )
    # Grass has the strong contrast of leaves, stone and asphalt a weak one.
    contrast = np.full(256, 0.22, np.float32)
    contrast[[classes.TERRAIN, classes.IGNORE]] = 0.62
    fade = (14 / (z + 10)).clip(0.25, 1).astype(np.float32)
    kept = light.transmission(z)
    level = cv2.LUT(canvas.label[first:], contrast) * fade[:, None]
    level *= cv2.addWeighted(grain, 1 / 128, grain, 0, -1, dtype=cv2.CV_32F)
    level += 1
    gain = (kept * np.float32(light.shade(0, 1, 0) / 255))[:, None]
    level = cv2.multiply(shadow, level, dtype=cv2.CV_32F) * gain
    result = cv2.multiply(pixels, cv2.merge([level] * 3), dtype=cv2.CV_32F)
    result += ((1 - kept)[:, None] * np.asarray(light.haze, np.float32))[:, None, :]
    canvas.image[first:] = cv2.convertScaleAbs(result)
    canvas.label[: first + 1][canvas.label[: first + 1] == classes.IGNORE] = classes.SKY


def shadow_plan() -> UInt8[np.ndarray, 'z x']:
    """Returns a plan of the light on the ground, without shadows yet; 255 = full light."""
    return np.full((int(FAR * _SHADOW), int(2 * _REACH * _SHADOW)), 255, np.uint8)


def cast(
    plan: UInt8[np.ndarray, 'z x'], light: Light, footprint: Sequence[Point], height: float
) -> None:
    """Darkens the plan under a thing and where the sun casts its shadow.

    Args:
        plan: shadow plan, changed in place.
        light: illumination of the scene.
        footprint: convex outline (x, z) of the thing on the ground, in metres.
        height: height of the thing in metres.
    """
    base = np.array([((x + _REACH) * _SHADOW, z * _SHADOW) for x, z in footprint], np.float32)
    base = base.clip(-4000, 4000)
    if light.strength > 0.2:
        away = -height / max(light.sun[1], 0.2) * _SHADOW
        thrown = base + np.array([light.sun[0] * away, light.sun[2] * away], np.float32)
        hull = cv2.convexHull(np.concatenate([base, thrown]))
        cv2.fillConvexPoly(plan, hull.astype(np.int32), int(255 * (1 - 0.85 * light.strength)))


def contact(plan: UInt8[np.ndarray, 'z x'], footprint: Sequence[Point]) -> None:
    """Darkens the plan right under a thing, wherever the sun is.

    Args:
        plan: shadow plan, changed in place.
        footprint: convex outline (x, z) of the thing on the ground, in metres.
    """
    base = np.array([((x + _REACH) * _SHADOW, z * _SHADOW) for x, z in footprint], np.float32)
    cv2.fillConvexPoly(plan, base.clip(-4000, 4000).round().astype(np.int32), 80)
