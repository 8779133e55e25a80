"""Vertical surfaces along the road: facades with their end walls, walls, fences and hedges."""

from collections.abc import Iterable

import cv2
import numpy as np
from jaxtyping import UInt8

from ggcf_jax.data.datasets.street_painter import classes, textures
from ggcf_jax.data.datasets.street_painter.camera import FAR, NEAR, Point
from ggcf_jax.data.datasets.street_painter.canvas import Canvas
from ggcf_jax.data.datasets.street_painter.street import Building, Material, Strip
from ggcf_jax.data.datasets.street_painter.textures import PIXELS_PER_METRE as PPM


def _haze(canvas: Canvas, pixels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Fades pixels [h, w, 3] into the haze; `kept` [w] is the share that is left of each column."""
    weight = np.broadcast_to(kept.astype(np.float32)[None, :], pixels.shape[:2]).copy()
    veil = np.empty_like(pixels)
    veil[:] = canvas.light.haze
    return cv2.blendLinear(pixels, veil, weight, 1 - weight)


def paint_along(
    canvas: Canvas,
    x: float,
    z0: float,
    z1: float,
    top: float,
    texture: UInt8[np.ndarray, 'h w 3'],
    label: int,
    mask: UInt8[np.ndarray, 'h w'] | None = None,
) -> None:
    """Paints a vertical surface that runs along the road.

    Args:
        canvas: canvas to paint on.
        x: lateral position of the surface in metres.
        z0: distance where it begins, in metres.
        z1: distance where it ends, in metres.
        top: height of the texture's first row in metres; its last row is on the ground.
        texture: RGB, `PIXELS_PER_METRE` in both directions, column 0 at z0.
        label: train id.
        mask: 0 where the texture has holes. The label covers each column below its first set
            pixel, since what shows through a fence counts as fence.
    """
    camera, light = canvas.camera, canvas.light
    height, width = camera.size
    near = max(z0, NEAR)
    far = min(z1, camera.last_visible(x) * 0.98, FAR)
    if far <= near or abs(x - camera.x) < 0.5:
        return
    ends = sorted((camera.project(x, 0, near)[0], camera.project(x, 0, far)[0]))
    u0, u1 = max(0, round(ends[0])), min(width, round(ends[1]))
    if u1 <= u0:
        return
    z = camera.column_depth(x, np.arange(u0, u1, dtype=np.float32) + 0.5).clip(near, far)
    z = z.astype(np.float32)
    nearest = float(z.min())
    v0 = max(0, int(camera.project(x, top, nearest)[1]) - 1)
    v1 = min(height, int(camera.project(x, 0, nearest)[1]) + 2)
    if v1 <= v0:
        return
    shape = (v1 - v0, u1 - u0)
    v = np.arange(v0, v1, dtype=np.float32) + 0.5 - camera.center[1]
    map_y = v[:, None] * (z * (PPM / camera.focal))[None, :]
    map_y += np.float32((top - camera.height) * PPM - 0.5)
    map_x = np.broadcast_to(((z - z0) * PPM - 0.5)[None, :], shape).copy()
    pixels = cv2.remap(texture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    pixels = _haze(canvas, pixels, light.transmission(z))
    inside = ((map_y >= -0.5) & (map_y < texture.shape[0] - 0.5)).view(np.uint8)
    if mask is None:
        canvas.paste(v0, u0, pixels, inside, label)
        return
    first = np.where(mask.any(0), mask.argmax(0), mask.shape[0])
    first = first[np.clip(map_x[0].astype(np.int32), 0, mask.shape[1] - 1)]
    covered = (inside & (map_y + 0.5 >= first[None, :])).astype(np.uint8)
    seen = cv2.remap(mask, map_x, map_y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    behind = canvas.image[v0:v1, u0:u1]
    pixels = cv2.copyTo(np.ascontiguousarray(behind), 255 * (seen == 0).astype(np.uint8), pixels)
    canvas.paste(v0, u0, pixels, covered, label)


def _shows(canvas: Canvas, points: Iterable[Point]) -> bool:
    """Whether the columns spanned by the points (x, z) touch the image."""
    columns = [canvas.camera.project(x, 0, z)[0] for x, z in points]
    return max(columns) > 0 and min(columns) < canvas.camera.size[1]


def _paint_across(
    canvas: Canvas,
    x0: float,
    x1: float,
    z: float,
    top: float,
    texture: UInt8[np.ndarray, 'h w 3'],
    label: int,
) -> None:
    """Paints a wall that faces the camera at distance z, from x0 to x1 on either side of it."""
    camera = canvas.camera
    height, width = camera.size
    left, right = sorted((camera.project(x0, 0, z)[0], camera.project(x1, 0, z)[0]))
    v_top, v_base = camera.project(x0, top, z)[1], camera.project(x0, 0, z)[1]
    u0, u1 = max(0, round(left)), min(width, round(right))
    v0, v1 = max(0, round(v_top)), min(height, round(v_base))
    if u1 <= u0 or v1 <= v0 or z < NEAR:
        return
    step = PPM / camera.scale(z)
    map_x = ((np.arange(u0, u1) + 0.5 - left) * step - 0.5).astype(np.float32)
    map_y = ((np.arange(v0, v1) + 0.5 - v_top) * step - 0.5).astype(np.float32)
    shape = (v1 - v0, u1 - u0)
    pixels = cv2.remap(
        texture,
        np.broadcast_to(map_x[None, :], shape).copy(),
        np.broadcast_to(map_y[:, None], shape).copy(),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    kept = np.full(shape[1], canvas.light.transmission(np.float32(z)), np.float32)
    canvas.paste(v0, u0, _haze(canvas, pixels, kept), np.ones(shape, np.uint8), label)


def _masonry(
    rng: np.random.Generator, material: Material, length: float, height: float, shade: float
) -> UInt8[np.ndarray, 'h w 3']:
    """The texture of a wall of the material."""
    rows, columns = max(2, int(height * PPM)), max(2, int(length * PPM))
    grey = textures.crop(rng, textures.pattern(material.pattern), rows, columns)
    return textures.colorize(grey, np.asarray(material.color) * shade)


def _windows(
    rng: np.random.Generator, canvas: Canvas, wall: np.ndarray, building: Building, shade: float
) -> None:
    """Draws storeys of windows onto a facade's texture."""
    light = canvas.light
    rows, columns = wall.shape[:2]
    sky = np.asarray(light.sky_horizon)
    glass = [tuple(float(c) for c in sky * f * shade + 12) for f in (0.16, 0.24, 0.34)]
    lamp = (235.0, 190.0, 110.0)
    lit = 0.3 if light.name == 'dusk' else 0.02
    frame = tuple(float(c) for c in np.array((216, 212, 204)) * shade * rng.uniform(0.5, 1))
    storey = rng.uniform(2.8, 3.4)
    size = (int(rng.uniform(0.9, 1.7) * PPM), int(rng.uniform(1.3, 1.8) * PPM))
    pitch = size[0] + int(rng.uniform(0.7, 1.6) * PPM)
    margin = (columns % pitch + pitch - size[0]) // 2
    first = 0 if building.ground_floor == 'windows' else 1
    if building.ground_floor == 'blank':
        first = 2
    choices = rng.integers(0, 3, (16, 64))
    lamps = rng.random((16, 64)) < lit
    for floor in range(first, int(building.height / storey)):
        y = rows - int((floor * storey + 2.5) * PPM)
        if y < 3:
            break
        for i, x in enumerate(range(margin, columns - size[0], pitch)):
            color = lamp if lamps[floor % 16, i % 64] else glass[choices[floor % 16, i % 64]]
            cv2.rectangle(wall, (x, y), (x + size[0] - 1, y + size[1] - 1), color, -1)
            if building.z0 > 40:
                continue
            cv2.rectangle(wall, (x - 1, y - 1), (x + size[0], y + size[1]), frame, 1)
            middle = x + size[0] // 2
            cv2.line(wall, (middle, y), (middle, y + size[1] - 1), frame, 1)
    if building.ground_floor == 'shop':
        y = rows - int(2.7 * PPM)
        awning = tuple(c * shade for c in textures.vary(rng, textures.pick(rng, textures.PAINTS)))
        step = int(rng.uniform(3, 6) * PPM)
        for x in range(6, columns - 16, step):
            right = min(x + step - 8, columns - 6)
            color = lamp if rng.random() < lit * 2 else glass[0]
            cv2.rectangle(wall, (x, y), (right, rows - int(0.4 * PPM)), color, -1)
            cv2.rectangle(wall, (x, y - 9), (right, y), awning, -1)
    elif building.ground_floor != 'blank':
        x = int(rng.uniform(0.1, 0.8) * columns)
        door = tuple(c * 0.6 * shade for c in building.material.color)
        cv2.rectangle(wall, (x, rows - int(2.2 * PPM)), (x + int(1.1 * PPM), rows), door, -1)


def paint_building(canvas: Canvas, building: Building, rng: np.random.Generator) -> None:
    """Paints the roof, the end wall and the facade of a building.

    Args:
        canvas: canvas to paint on.
        building: building to paint.
        rng: source of randomness.
    """
    side = 1 if building.depth > 0 else -1
    light = canvas.light
    x, z0, z1, top = building.x, max(building.z0, NEAR), building.z1, building.height
    back = x + building.depth
    if not _shows(canvas, ((x, z0), (back, z0), (x, z1))):
        return
    end_shade, shade = light.shade(0, 0, -1), light.shade(-side, 0, 0)
    if building.roof:
        ridge, peak = x + building.depth / 2, top + building.roof
        slope = ((x, top, z0), (x, top, z1), (ridge, peak, z1), (ridge, peak, z0))
        canvas.surface(
            slope, building.roof_color, z0, light.shade(-side * 0.5, 0.8, 0), classes.BUILDING
        )
        gable = ((x, top, z0), (back, top, z0), (ridge, peak, z0))
        canvas.surface(gable, building.material.color, z0, end_shade, classes.BUILDING)
    if building.z0 > NEAR:
        wall = _masonry(rng, building.material, abs(building.depth), top, end_shade)
        _paint_across(canvas, x, back, z0, top, wall, classes.BUILDING)
    wall = _masonry(rng, building.material, z1 - building.z0, top, shade)
    _windows(rng, canvas, wall, building, shade)
    cornice = max(2, int(0.3 * PPM))
    wall[:cornice] = np.clip(wall[:cornice] * 1.15, 0, 255)
    paint_along(canvas, x, building.z0, z1, top, wall, classes.BUILDING)


def paint_strip(canvas: Canvas, strip: Strip, rng: np.random.Generator) -> None:
    """Paints a wall, fence, railing or hedge; walls and fences use the materials of buildings.

    Args:
        canvas: canvas to paint on.
        strip: what to paint.
        rng: source of randomness.
    """
    side = 1 if strip.x > canvas.camera.x else -1
    shade = canvas.light.shade(-side, 0, 0)
    length = strip.z1 - strip.z0
    if not _shows(canvas, ((strip.x, strip.z0), (strip.x, strip.z1))):
        return
    if strip.kind == 'hedge':
        rows, columns = max(2, int(strip.height * PPM)), max(2, int(length * PPM))
        color = np.asarray(textures.vary(rng, textures.pick(rng, textures.GREENS))) * shade
        leaves = textures.crop(rng, textures.noise('leaf'), rows, columns)
        rough = (leaves[0].astype(np.float32) * 0.05).clip(0, rows * 0.4)
        mask = (np.arange(rows)[:, None] >= rough[None, :]).astype(np.uint8)
        pixels = textures.colorize(leaves, color, 0.62)
        paint_along(
            canvas, strip.x, strip.z0, strip.z1, strip.height, pixels, classes.VEGETATION, mask
        )
        return
    pixels = _masonry(rng, strip.material, length, strip.height, shade)
    rows, columns = pixels.shape[:2]
    if strip.kind == 'wall':
        coping = max(2, int(0.14 * PPM))
        pixels[:coping] = np.clip(pixels[:coping] * 1.12, 0, 255)
        if strip.z0 > NEAR:
            end = _masonry(rng, strip.material, 0.4, strip.height, canvas.light.shade(0, 0, -1))
            _paint_across(
                canvas, strip.x, strip.x + side * 0.4, strip.z0, strip.height, end, classes.WALL
            )
        paint_along(canvas, strip.x, strip.z0, strip.z1, strip.height, pixels, classes.WALL)
        return
    mask = np.ones((rows, columns), np.uint8)
    lowered = max(2, int(0.16 * PPM))
    mask[:lowered] = 0
    post = max(2, int(0.16 * PPM))
    pitch = int(rng.uniform(1.8, 2.8) * PPM)
    if strip.kind == 'railing':
        mask[lowered + 2 : -2] = 0
        mask[:, :: max(3, int(0.3 * PPM))] = 1
        mask[:lowered] = 0
        pixels = np.clip(pixels * 0.5, 0, 255).astype(np.uint8)
    for x in range(0, columns, pitch):
        mask[:, x : x + post] = 1
        pixels[:, x : x + post] = (pixels[:, x : x + post] * 0.62).astype(np.uint8)
    paint_along(canvas, strip.x, strip.z0, strip.z1, strip.height, pixels, classes.FENCE, mask)
