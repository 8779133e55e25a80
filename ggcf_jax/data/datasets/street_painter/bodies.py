"""Paints cars, trucks, buses and trams."""

import numpy as np

from ggcf_jax.data.datasets.street_painter.boxes import CIRCLE, GLASS, RUBBER, Drawing
from ggcf_jax.data.datasets.street_painter.camera import Point
from ggcf_jax.data.datasets.street_painter.canvas import Canvas
from ggcf_jax.data.datasets.street_painter.vehicles import Vehicle


def _rect(a0: float, a1: float, b0: float, b1: float) -> tuple[Point, ...]:
    return ((a0, b0), (a1, b0), (a1, b1), (a0, b1))


def _lights(draw: Drawing, along: float, height: float) -> None:
    color = (240, 236, 214) if draw.end > 0 else (190, 30, 26)
    for c in (-0.8, 0.8):
        draw.face(along, _rect(c - 0.14, c + 0.14, height, height + 0.17), color, dim=1.25)
    draw.face(along, _rect(-0.25, 0.25, height - 0.16, height - 0.04), (206, 206, 200))


def _car(draw: Drawing) -> None:
    v = draw.vehicle
    length, top = v.length, v.height
    waist = 0.86 if v.kind == 'car' else 1.0
    kinds = {0: (0.10, 0.24, 0.60, 0.80), 1: (0.01, 0.10, 0.60, 0.80), 2: (0.16, 0.30, 0.62, 0.78)}
    rear, roof0, roof1, front = kinds[v.look % 3] if v.kind == 'car' else (0, 0.02, 0.74, 0.88)
    rear, roof0, roof1, front = (f * length for f in (rear, roof0, roof1, front))
    half, inset = v.width / 2, 0.8 * v.width / 2
    bottom, slope = (front, roof1) if draw.end > 0 else (rear, roof0)
    draw.treads((0.19 * length, 0.81 * length), 0.32)
    if draw.side:
        s = draw.side
        cabin = [
            (rear, s * half, waist),
            (front, s * half, waist),
            (roof1, s * inset, top),
            (roof0, s * inset, top),
        ]
        draw.fill(cabin, v.paint, draw.side_shade, True)
        m = 0.09
        glass = [
            (rear + 4 * m, s * half, waist),
            (front - 3 * m, s * half, waist),
            (roof1 - m, s * inset, top - m),
            (roof0 + 2 * m, s * inset, top - m),
        ]
        draw.fill(glass, GLASS, draw.side_shade)
        if not draw.small:
            pillar = (roof0 + roof1) / 2
            post = [(pillar - 0.05, s * half, waist), (pillar + 0.05, s * half, waist)]
            post += [(pillar + 0.05, s * inset, top), (pillar - 0.05, s * inset, top)]
            draw.fill(post, v.paint, draw.side_shade * 0.8)
    if draw.end:
        shell = [
            (bottom, -half, waist),
            (bottom, half, waist),
            (slope, inset, top),
            (slope, -inset, top),
        ]
        draw.fill(shell, v.paint, draw.end_shade, True)
        glass = [(a, 0.86 * c, up - 0.07 * (up > waist)) for a, c, up in shell]
        draw.fill(glass, GLASS, draw.end_shade * 1.2)
        edge = length if draw.end > 0 else 0.0
        if draw.canvas.camera.height > waist:  # bonnet or boot lid
            lid = [
                (bottom, -half, waist),
                (bottom, half, waist),
                (edge, half, waist - 0.1),
                (edge, -half, waist - 0.1),
            ]
            draw.fill(lid, v.paint, draw.canvas.light.shade(0, 1, 0), True)
    body = (
        (0, 0.24),
        (length, 0.24),
        (length, waist - 0.1),
        (front, waist),
        (rear, waist),
        (0, waist - 0.1),
    )
    draw.flank(body, v.paint, True)
    if draw.side and not draw.small:
        for along in (0.19 * length, 0.81 * length):
            arch = [(along + 0.38 * c, 0.3 + 0.38 * s) for c, s in CIRCLE[:6]]
            draw.flank(arch, RUBBER)
    draw.wheels((0.19 * length, 0.81 * length), 0.32)
    edge = length if draw.end > 0 else 0.0
    draw.face(edge, _rect(-1, 1, 0.26, waist - 0.1), v.paint, True)
    draw.face(edge, _rect(-0.95, 0.95, 0.26, 0.42), tuple(c * 0.5 for c in v.paint))
    if not draw.small:
        _lights(draw, edge, 0.6)


def _bands(draw: Drawing, start: float, end: float, floor: float) -> None:
    """Livery on the side of a bus, a tram or a cargo box: a stripe and the dark band."""
    v = draw.vehicle
    draw.flank(_rect(start, end, floor + 0.05, floor + 0.3 + 0.1 * (v.look % 3)), v.stripe)
    if v.band:
        low, high = v.band
        draw.flank(_rect(start + 0.25, end - 0.25, low, high), GLASS)
        if not draw.small:
            pitch = 1.4 + 0.2 * (v.look % 4)
            for a in np.arange(start + 0.25 + pitch, end - 0.4, pitch):
                draw.flank(_rect(a - 0.06, a + 0.06, low, high), v.paint, dim=0.8)


def _front(draw: Drawing, along: float, floor: float, high: float) -> None:
    """The end of a bus, a tram or a cab: windscreen, lights and destination."""
    v = draw.vehicle
    draw.face(along, _rect(-1, 1, floor, high), v.paint, True)
    draw.face(along, _rect(-1, 1, floor, floor + 0.3), v.stripe)
    draw.face(along, _rect(-0.88, 0.88, 1.25, high - 0.5), GLASS, dim=1.15)
    if not draw.small:
        draw.face(along, _rect(-0.6, 0.6, high - 0.4, high - 0.15), (226, 164, 50), dim=0.9)
        _lights(draw, along, floor + 0.4)


def _bus(draw: Drawing) -> None:
    v = draw.vehicle
    draw.flank(_rect(0, v.length, 0.35, v.height), v.paint, True)
    _bands(draw, 0.0, v.length, 0.4)
    if not draw.small:
        for a in (0.42 * v.length, v.length - 1.9):
            draw.flank(_rect(a, a + 1.2, 0.45, 2.4), GLASS, dim=0.85)
    places = (0.24 * v.length, v.length - 2.6)
    draw.treads(places, 0.5)
    draw.wheels(places, 0.5)
    _front(draw, v.length if draw.end > 0 else 0.0, 0.35, v.height)


def _truck(draw: Drawing) -> None:
    v = draw.vehicle
    cab, gap = 2.0, 0.6
    box = v.length - cab - gap
    cab_top = min(2.9, v.height - 0.3)
    cab_paint = v.paint if v.look % 2 else v.stripe
    chassis = (54.0, 54.0, 56.0)

    def cargo() -> None:
        draw.flank(_rect(0, box, 0.95, v.height), v.paint, True)
        _bands(draw, 0.0, box, 1.0)
        end = box if draw.end > 0 else 0.0
        draw.face(end, _rect(-1, 1, 0.95, v.height), v.paint, True)
        if draw.end < 0:
            draw.face(end, _rect(-1, 1, 1.0, 1.3 + 0.1 * (v.look % 3)), v.stripe)
            draw.face(end, _rect(-0.02, 0.02, 1.0, v.height - 0.1), chassis)
            draw.face(end, _rect(-0.9, 0.9, 0.5, 0.62), (176, 40, 36), True)
        elif v.band:
            draw.face(end, _rect(-0.9, 0.9, *v.band), GLASS)

    def driver() -> None:
        draw.flank(_rect(box + gap, v.length, 0.5, cab_top), cab_paint, True)
        window = (
            (box + gap + 0.7, 1.5),
            (v.length - 0.15, 1.5),
            (v.length - 0.35, 2.3),
            (box + gap + 0.7, 2.3),
        )
        draw.flank(window, GLASS)
        if draw.end > 0:
            draw.face(v.length, _rect(-0.96, 0.96, 0.5, cab_top), cab_paint, True)
            draw.face(v.length, _rect(-0.86, 0.86, 1.45, 2.35), GLASS, dim=1.15)
            draw.face(v.length, _rect(-0.7, 0.7, 0.75, 1.15), chassis)
            _lights(draw, v.length, 0.62)

    draw.flank(_rect(0.1, v.length - 0.3, 0.55, 0.98), chassis, True)
    places = (0.2 * box, 0.2 * box + 1.2, v.length - 1.1)
    draw.treads(places, 0.5)
    for part in (cargo, driver) if draw.end > 0 else (driver, cargo):
        part()
    draw.wheels(places, 0.5)


def _train(draw: Drawing) -> None:
    v = draw.vehicle
    draw.flank(_rect(0, v.length, 0.2, v.height), v.paint, True)
    parts = max(2, round(v.length / 8))
    for i in range(parts):
        _bands(draw, i * v.length / parts, (i + 1) * v.length / parts, 0.25)
    for i in range(1, parts):
        a = i * v.length / parts
        draw.flank(_rect(a - 0.25, a + 0.25, 0.3, v.height - 0.05), (58, 58, 60))
    draw.flank(_rect(0.1, v.length - 0.1, 0.2, 0.42), (60, 60, 62))
    middle = v.place(v.length / 2, 0, v.height)
    arm = v.place(v.length / 2 - 0.9, 0, v.height + 0.9)
    tip = v.place(v.length / 2 + 0.2, 0, v.height + 1.5)
    canvas = draw.canvas
    width = 0.07 * canvas.camera.scale(middle[2])
    points = [canvas.camera.project(*p) for p in (middle, arm, tip)]
    canvas.stroke(points, width, canvas.light.tone((50, 50, 54), draw.z), draw.label)
    along = v.length if draw.end > 0 else 0.0
    top = v.height
    shape = ((-1, 0.2), (1, 0.2), (1, top), (0.7, top + 0.15), (-0.7, top + 0.15), (-1, top))
    draw.face(along, shape, v.paint, True)
    draw.face(along, _rect(-1, 1, 0.25, 0.6), v.stripe)
    draw.face(
        along,
        ((-0.86, 1.2), (0.86, 1.2), (0.74, top - 0.55), (-0.74, top - 0.55)),
        GLASS,
        dim=1.15,
    )
    if not draw.small:
        draw.face(along, _rect(-0.5, 0.5, top - 0.45, top - 0.2), (226, 164, 50), dim=0.9)
        _lights(draw, along, 0.75)


_PAINTERS = {'car': _car, 'van': _car, 'bus': _bus, 'truck': _truck, 'train': _train}


def paint_vehicle(canvas: Canvas, vehicle: Vehicle) -> None:
    """Paints the visible end and side of a vehicle.

    Args:
        canvas: canvas to paint on.
        vehicle: vehicle to paint.
    """
    corners = vehicle.footprint()
    if max(z for _, z in corners) < 2.0:
        return
    columns = [canvas.camera.project(x, 0, z)[0] for x, z in corners]
    if max(columns) < 0 or min(columns) > canvas.camera.size[1]:
        return
    _PAINTERS[vehicle.kind](Drawing(canvas, vehicle))
