"""Sky, backdrop and ground: everything that lies behind or under the things of the street."""

import itertools
import math

import cv2
import numpy as np

from ggcf_jax.data.datasets.street_painter import classes, textures
from ggcf_jax.data.datasets.street_painter.camera import FAR
from ggcf_jax.data.datasets.street_painter.canvas import Canvas
from ggcf_jax.data.datasets.street_painter.street import PARKING, TRACK, Street

_REACH = 26.0  # metres covered by the plan to the left and right of x = 0
_ACROSS, _ALONG = 14, 4  # pixels of the plan per metre
_MIPMAP = (4, 8)  # reduction of the plan, across and along, for the distance
_MIPMAP_FROM = 22.0
_SHADOW = 4  # pixels of the shadow plan per metre


def paint_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """Gradient and clouds down to the horizon; the ground is painted over what lies below."""
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
    """Houses and woods where the street ends, half lost in the haze."""
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


def _stripes(street: Street) -> list[tuple[float, float, float, float, str]]:
    """Ground from the outside in as (x0, x1, z0, z1, what)."""
    left, right = street.road
    stripes = []
    for segment in street.segments:
        far = segment.side * _REACH
        # Just behind what stands there, or a thread of the yard would show in front of it.
        wall = segment.boundary + 0.15 * segment.side
        stripes += [
            (far, wall, segment.z0, segment.z1, segment.yard),
            (wall, segment.edge, segment.z0, segment.z1, segment.verge),
        ]
    stripes += [
        (left - street.pavement[0], left, 0, FAR, 'sidewalk'),
        (right, right + street.pavement[1], 0, FAR, 'sidewalk'),
        (left - 0.22, left, 0, FAR, 'kerb'),
        (right, right + 0.22, 0, FAR, 'kerb'),
        (left, right, 0, FAR, 'road'),
    ]
    for side, z0, z1 in street.openings:
        start = left if side < 0 else right
        stripes.append((side * _REACH, start, z0 - 2.5, z1 + 2.5, 'sidewalk'))
        stripes.append((side * _REACH, start - side * 0.1, z0, z1, 'road'))
    if street.track is not None:
        half = TRACK / 2
        if street.bed != 'road':
            stripes.append((street.track - half, street.track + half, 0, FAR, street.bed))
        for rail in (-0.72, 0.72):
            stripes.append((street.track + rail - 0.05, street.track + rail + 0.05, 0, FAR, 'rail'))
    return stripes


def _markings(street: Street, rng) -> list[tuple[float, float, float, float]]:
    """Painted lines as (x0, x1, z0, z1)."""
    left, right = street.road
    lines = []
    centers = sorted(x for x, _ in street.lanes)
    directions = dict(street.lanes)
    for a, b in itertools.pairwise(centers):
        middle = (a + b) / 2
        if b - a > 3.5:
            continue  # a tramway lies between
        if directions[a] != directions[b] and rng.random() < 0.35:
            lines.append((middle - 0.08, middle + 0.08, 0, FAR))
            continue
        start = rng.uniform(-6, 0)
        lines += [(middle - 0.08, middle + 0.08, z, z + 3) for z in np.arange(start, FAR, 6.5)]
    for x, edge in ((street.parking[0], left), (street.parking[1], right)):
        if x is not None and abs(abs(x - edge) - PARKING / 2) < 0.1:
            inner = x + (PARKING / 2 if x < 0 else -PARKING / 2)
            lines.append((inner - 0.06, inner + 0.06, 0, FAR))
    if street.crossing is not None:
        z = street.crossing
        lines += [(x, x + 0.5, z, z + 3) for x in np.arange(left + 0.4, right - 0.6, 1.0)]
        inner = [x for x, direction in street.lanes if direction > 0]
        lines.append((min(inner) - 1.5, max(inner) + 1.5, z - 1.6, z - 1.2))
    return lines


def _plan(street: Street, canvas: Canvas, rng) -> tuple[np.ndarray, np.ndarray]:
    """The street seen from above: colours [z, x, 3] uint8 and train ids [z, x] uint8."""
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

    def fill(x0, x1, z0, z1, color, label):
        x0, x1 = sorted((x0, x1))
        first = (round((x0 + _REACH) * _ACROSS), round(z0 * _ALONG))
        last = (round((x1 + _REACH) * _ACROSS) - 1, round(z1 * _ALONG) - 1)  # OpenCV includes it
        if first[0] > last[0] or first[1] > last[1]:
            return
        cv2.rectangle(colors, first, last, color, -1)
        if label is not None:
            cv2.rectangle(ids, first, last, label, -1)

    fill(-_REACH, _REACH, 0, FAR, *looks['sidewalk'])
    for x0, x1, z0, z1, what in _stripes(street):
        if what == 'rail':
            fill(x0, x1, z0, z1, (168, 166, 164), None)
        else:
            fill(x0, x1, z0, z1, *looks[what])
    for x0, x1, z0, z1 in _markings(street, rng):
        fill(x0, x1, z0, z1, (214, 214, 208), None)
    return colors, ids


def paint_ground(
    canvas: Canvas, street: Street, shadows: np.ndarray, rng: np.random.Generator
) -> None:
    """Paints the ground from its plan.

    Args:
        canvas: where to paint.
        street: the cross-section.
        shadows: plan of the shadows from `shadow_plan` and the shapes drawn into it.
        rng: draws colours.
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
    # Grass has the leaves' strong contrast, stone and asphalt a weak one.
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


def shadow_plan() -> np.ndarray:
    """An unshaded plan, [z, x] uint8, 255 = full light."""
    return np.full((int(FAR * _SHADOW), int(2 * _REACH * _SHADOW)), 255, np.uint8)


def cast(plan: np.ndarray, light, footprint, height: float) -> None:
    """Darkens the plan under a thing and where the sun throws its shadow.

    Args:
        plan: the shadow plan, changed in place.
        light: the scene's light.
        footprint: convex outline on the ground as (x, z) in metres.
        height: of the thing in metres.
    """
    base = np.array([((x + _REACH) * _SHADOW, z * _SHADOW) for x, z in footprint], np.float32)
    base = base.clip(-4000, 4000)
    if light.strength > 0.2:
        away = -height / max(light.sun[1], 0.2) * _SHADOW
        thrown = base + np.float32([light.sun[0] * away, light.sun[2] * away])
        hull = cv2.convexHull(np.concatenate([base, thrown]))
        cv2.fillConvexPoly(plan, hull.astype(np.int32), int(255 * (1 - 0.85 * light.strength)))


def contact(plan: np.ndarray, footprint) -> None:
    """Darkens the plan right under a thing, whatever the sun."""
    base = np.array([((x + _REACH) * _SHADOW, z * _SHADOW) for x, z in footprint], np.float32)
    cv2.fillConvexPoly(plan, base.clip(-4000, 4000).round().astype(np.int32), 80)
