"""Poles, traffic lights and signs, trees, and things that belong to no class."""

import dataclasses

import cv2
import numpy as np

from ggcf_jax.data.datasets.street_painter import classes, textures
from ggcf_jax.data.datasets.street_painter.canvas import Canvas
from ggcf_jax.data.datasets.street_painter.street import Tree

_LAMPS = ((226, 52, 40), (242, 178, 44), (58, 206, 112))


@dataclasses.dataclass(frozen=True)
class Pole:
    """A pole and what it carries.

    Attributes:
        kind: 'lamp', 'light', 'sign', 'mast' or 'bollard'.
        x: lateral position in metres.
        z: distance in metres.
        height: height in metres.
        arm: reach of the arm over the road in metres, negative to the left; 0 = no arm.
        color: RGB of the pole.
        look: number that decides the signs and the lamp that is lit.
    """

    kind: str
    x: float
    z: float
    height: float
    arm: float
    color: tuple[float, ...]
    look: int


@dataclasses.dataclass(frozen=True)
class Clutter:
    """A bin, box or heap of no class.

    Attributes:
        x: lateral position of its middle in metres.
        z: distance in metres.
        width: width in metres.
        height: height in metres.
        color: RGB.
    """

    x: float
    z: float
    width: float
    height: float
    color: tuple[float, ...]


def _traffic_light(canvas: Canvas, x: float, y: float, z: float, lit: int) -> None:
    """Paints a housing of three lamps whose lower edge is at height y."""
    u, v = canvas.camera.project(x, y, z)
    unit = canvas.camera.scale(z)
    half, height = 0.2 * unit, 1.05 * unit
    housing = ((u - half, v), (u - half, v - height), (u + half, v - height), (u + half, v))
    canvas.polygon(housing, canvas.light.tone((30, 32, 34), z), classes.TRAFFIC_LIGHT)
    for i in range(3):
        on = i == lit
        color = _LAMPS[i] if on else tuple(c * 0.22 for c in _LAMPS[i])
        center = (u, v - (2.5 - i) / 3 * height)
        # Lamps shine through haze and dusk alike.
        canvas.ellipse(center, (0.7 * half, 0.7 * half), tuple(int(c) for c in color), None)


def _sign(canvas: Canvas, x: float, y: float, z: float, look: int) -> float:
    """Paints a sign centred at height y; returns half its height in metres."""
    u, v = canvas.camera.project(x, y, z)
    r = 0.42 * canvas.camera.scale(z)
    shade = canvas.light.shade(0, 0.2, -0.9) + 0.08
    label = classes.TRAFFIC_SIGN

    def tone(*color: float) -> tuple[int, int, int]:
        return canvas.light.tone(color, z, shade)

    shape = look % 6
    if shape == 0:  # prohibition or limit
        canvas.ellipse((u, v), (r, r), tone(200, 34, 36), label)
        canvas.ellipse((u, v), (0.72 * r, 0.72 * r), tone(236, 236, 232), None)
        canvas.polygon(
            (
                (u - 0.35 * r, v - 0.2 * r),
                (u + 0.35 * r, v - 0.2 * r),
                (u + 0.35 * r, v + 0.2 * r),
                (u - 0.35 * r, v + 0.2 * r),
            ),
            tone(30, 30, 32),
            None,
        )
    elif shape in (1, 2):  # warning, give way
        down = 1 if shape == 1 else -1
        for size, color in ((1.15, (200, 34, 36)), (0.68, (238, 236, 228))):
            s = size * r
            canvas.polygon(
                (
                    (u - s, v + 0.75 * s * down),
                    (u + s, v + 0.75 * s * down),
                    (u, v - 0.95 * s * down),
                ),
                tone(*color),
                label,
            )
    elif shape == 3:  # stop
        turns = np.arange(8) * np.pi / 4 + np.pi / 8
        canvas.polygon(
            [(u + r * np.cos(t), v + r * np.sin(t)) for t in turns], tone(190, 30, 34), label
        )
        canvas.polygon(
            (
                (u - 0.6 * r, v - 0.15 * r),
                (u + 0.6 * r, v - 0.15 * r),
                (u + 0.6 * r, v + 0.15 * r),
                (u - 0.6 * r, v + 0.15 * r),
            ),
            tone(236, 236, 232),
            None,
        )
    elif shape == 4:  # command
        canvas.ellipse((u, v), (r, r), tone(36, 84, 168), label)
        canvas.stroke(((u, v + 0.5 * r), (u, v - 0.5 * r)), 0.25 * r, tone(236, 236, 232), None)
    else:  # information
        canvas.polygon(
            ((u - r, v - r), (u + r, v - r), (u + r, v + r), (u - r, v + r)),
            tone(40, 92, 172),
            label,
        )
        canvas.polygon(
            (
                (u - 0.5 * r, v - 0.5 * r),
                (u + 0.4 * r, v - 0.5 * r),
                (u + 0.4 * r, v + 0.1 * r),
                (u - 0.5 * r, v + 0.6 * r),
            ),
            tone(236, 236, 232),
            None,
        )
    return 0.42


def paint_pole(canvas: Canvas, pole: Pole) -> None:
    """Paints a pole and the lamp, lights or signs on it.

    Args:
        canvas: canvas to paint on.
        pole: pole to paint.
    """
    if not canvas.visible(pole.x, pole.z, abs(pole.arm) + 2.5):
        return
    x, z, height, arm = pole.x, pole.z, pole.height, pole.arm
    light, project = canvas.light, canvas.camera.project
    unit = canvas.camera.scale(z)
    color = light.tone(pole.color, z, light.shade(0, 0, -1))
    width = {'lamp': 0.16, 'light': 0.15, 'sign': 0.1, 'mast': 0.26, 'bollard': 0.18}[pole.kind]
    u, v = project(x, 0, z)
    top = v - height * unit
    half = max(width * unit, 1.0) / 2
    canvas.polygon(
        ((u - half, v), (u - half * 0.8, top), (u + half * 0.8, top), (u + half, v)),
        color,
        classes.POLE,
    )
    if half > 1.5:
        edge = light.tone(pole.color, z, 1.25 * light.shade(0, 0, -1))
        canvas.polygon(
            ((u - half, v), (u - half * 0.8, top), (u - half * 0.2, top), (u - half * 0.3, v)),
            edge,
            None,
        )
    if arm:
        end = project(x + arm, height + 0.3, z)
        canvas.stroke(((u, top), end), 0.11 * unit, color, classes.POLE)
    if pole.kind == 'lamp':
        end = project(x + arm, height + 0.3, z)
        shine = (255, 236, 190) if light.name == 'dusk' else light.tone((176, 178, 180), z)
        canvas.ellipse(end, (0.42 * unit, 0.12 * unit), shine, classes.POLE)
    elif pole.kind == 'light':
        lit = pole.look % 3
        _traffic_light(canvas, x, min(2.3, height - 1.1), z, lit)
        if arm:
            _traffic_light(canvas, x + arm, height - 0.75, z, lit)
            if pole.look % 2:
                _traffic_light(canvas, x + arm * 0.55, height - 0.85, z, lit)
        if pole.look % 4 == 0:
            _sign(canvas, x, 1.7, z, pole.look // 4)
    elif pole.kind == 'sign':
        y = height - 0.45
        for i in range(1 + (pole.look % 3 == 0)):
            y -= _sign(canvas, x, y, z, pole.look // 3 + 2 * i) * 2.15
    elif pole.kind == 'mast' and arm:  # a board over the road
        u, v = project(x + arm * 0.7, height + 0.1, z)
        w, h = abs(arm) * 0.36 * unit, 0.75 * unit
        board = ((u - w, v - h), (u + w, v - h), (u + w, v + h), (u - w, v + h))
        face = ((38, 88, 168), (236, 234, 226), (38, 116, 80))[pole.look % 3]
        ink = (40, 40, 44) if pole.look % 3 == 1 else (236, 236, 232)
        canvas.polygon(board, light.tone(face, z), classes.TRAFFIC_SIGN)
        for i in range(3):
            y = v + (i - 1) * 0.5 * h
            canvas.stroke(
                ((u - 0.75 * w, y), (u + (0.2 + 0.15 * i) * w, y)),
                0.12 * unit,
                light.tone(ink, z),
                None,
            )


def paint_clutter(canvas: Canvas, thing: Clutter) -> None:
    """Paints a box that has the ignore label.

    Args:
        canvas: canvas to paint on.
        thing: box to paint.
    """
    if not canvas.visible(thing.x, thing.z, thing.width):
        return
    half, z, y = thing.width / 2, thing.z, thing.height
    shade = canvas.light.shade(0, 0, -1)
    left, right = thing.x - half, thing.x + half
    lid = ((left, y, z), (right, y, z), (right, y, z + 0.5), (left, y, z + 0.5))
    canvas.surface(lid, thing.color, z, canvas.light.shade(0, 1, 0), classes.IGNORE)
    front = ((left, 0, z), (right, 0, z), (right, y, z), (left, y, z))
    canvas.surface(front, thing.color, z, shade, classes.IGNORE)
    panel = (
        (left + 0.1, y * 0.55, z),
        (right - 0.1, y * 0.55, z),
        (right - 0.1, y * 0.9, z),
        (left + 0.1, y * 0.9, z),
    )
    canvas.surface(panel, tuple(c * 0.7 for c in thing.color), z, shade, None)


def paint_tree(canvas: Canvas, tree: Tree) -> None:
    """Paints a tree or bush; as in Cityscapes, the trunk is vegetation too.

    Args:
        canvas: canvas to paint on.
        tree: tree to paint.
    """
    width, height = tree.crown
    if not canvas.visible(tree.x, tree.z, width):
        return
    light, unit = canvas.light, canvas.camera.scale(tree.z)
    u, v = canvas.camera.project(tree.x, 0, tree.z)
    if tree.trunk:
        half = max(0.055 * width * unit / 2, 0.5)
        crown_base = v - (tree.trunk + 0.35 * height) * unit
        color = light.tone((82, 70, 58), tree.z, light.shade(0, 0, -1))
        canvas.polygon(
            (
                (u - half * 1.3, v),
                (u - half, crown_base),
                (u + half, crown_base),
                (u + half * 1.3, v),
            ),
            color,
            classes.VEGETATION,
        )
    columns, rows = max(2, round(width * unit)), max(2, round(height * unit))
    if columns > 3 * canvas.camera.size[1]:
        return
    grey, mask = textures.crowns()[tree.shape]
    size = (columns, rows)
    method = cv2.INTER_LINEAR if columns > 96 else cv2.INTER_AREA
    kept = float(light.transmission(tree.z))
    shade = light.shade(0, 0.55, -0.6)
    level = np.arange(256, dtype=np.float32)[:, None] / 128
    table = level * np.asarray(tree.color) * shade * kept + np.asarray(light.haze) * (1 - kept)
    table = np.clip(table, 0, 255).astype(np.uint8)[:, None, :]
    pixels = cv2.applyColorMap(cv2.resize(grey, size, interpolation=method), table)
    shape = cv2.threshold(
        cv2.resize(mask, size, interpolation=method), 127, 255, cv2.THRESH_BINARY
    )[1]
    base = v - tree.trunk * unit + (0.12 * height * unit if not tree.trunk else 0)
    canvas.paste(round(base) - rows, round(u - columns / 2), pixels, shape, classes.VEGETATION)
