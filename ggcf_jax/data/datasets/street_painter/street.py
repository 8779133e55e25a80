"""The street: cross-section of the road, and what stands along it on both sides."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ggcf_jax.data.datasets.street_painter import textures
from ggcf_jax.data.datasets.street_painter.camera import FAR
from ggcf_jax.data.datasets.street_painter.textures import Color, pick, vary, weighted

# Widths in metres of a lane, a tramway and a parking row.
LANE = 3.3
TRACK = 3.6
PARKING = 2.3

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Material:
    """Masonry or wood.

    Attributes:
        color: RGB.
        pattern: one of `textures.PATTERNS`.
    """

    color: tuple[float, ...]
    pattern: str


@dataclasses.dataclass(frozen=True)
class Building:
    """A house whose facade runs along the road.

    Attributes:
        x: lateral position of the facade in metres.
        z0: distance where the facade begins, in metres.
        z1: distance where it ends, in metres.
        height: height of the walls in metres.
        depth: extent behind the facade in metres, negative on the left side of the road.
        material: material of the walls.
        ground_floor: 'plinth', 'shop', 'windows' or 'blank'.
        roof: rise of the roof in metres; 0 = flat.
        roof_color: RGB.
    """

    x: float
    z0: float
    z1: float
    height: float
    depth: float
    material: Material
    ground_floor: str
    roof: float
    roof_color: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Strip:
    """Something low that runs along the road.

    Attributes:
        kind: 'wall', 'fence', 'railing' or 'hedge'.
        x: lateral position in metres.
        z0: distance where it begins, in metres.
        z1: distance where it ends, in metres.
        height: height in metres.
        material: material; hedges ignore it.
    """

    kind: str
    x: float
    z0: float
    z1: float
    height: float
    material: Material


@dataclasses.dataclass(frozen=True)
class Tree:
    """A tree or bush.

    Attributes:
        x: lateral position in metres.
        z: distance in metres.
        trunk: height of the trunk in metres; 0 for a bush.
        crown: (width, height) of the crown in metres.
        color: RGB of the leaves.
        shape: index of the crown in `textures.crowns()`.
    """

    x: float
    z: float
    trunk: float
    crown: tuple[float, float]
    color: tuple[float, ...]
    shape: int


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of one side of the street; what stands there is listed far to near.

    Attributes:
        side: -1 = left, +1 = right.
        z0: distance where it begins, in metres.
        z1: distance where it ends, in metres.
        edge: lateral position where the pavement ends, in metres.
        boundary: lateral position where the verge ends and the yard begins, in metres.
        verge: ground of the verge: 'terrain' or 'sidewalk'.
        yard: ground of the yard: 'terrain' or 'sidewalk'.
        buildings: buildings of the yard.
        behind: trees between buildings and strips.
        strips: walls, fences or hedges on the boundary.
        front: trees on the verge.
    """

    side: int
    z0: float
    z1: float
    edge: float
    boundary: float
    verge: str
    yard: str
    buildings: tuple[Building, ...]
    behind: tuple[Tree, ...]
    strips: tuple[Strip, ...]
    front: tuple[Tree, ...]


@dataclasses.dataclass(frozen=True)
class Street:
    """Cross-section in metres; x = 0 divides the two directions of traffic.

    Attributes:
        road: lateral position of the left and right kerb.
        lanes: centre and direction of each lane, +1 = away from the camera.
        parking: centre of the parking row on the left and right; None where there is none.
        pavement: width of the pavement on the left and right.
        track: centre of the tramway; None where there is none.
        bed: ground of the tramway: 'road', 'terrain' or 'ballast'.
        crossing: distance of a zebra crossing; None where there is none.
        openings: (side, z0, z1) of each side street.
        segments: what stands along the street, far to near on each side.
    """

    road: tuple[float, float]
    lanes: tuple[tuple[float, int], ...]
    parking: tuple[float | None, float | None]
    pavement: tuple[float, float]
    track: float | None
    bed: str
    crossing: float | None
    openings: tuple[tuple[int, float, float], ...]
    segments: tuple[Segment, ...]


def sample_tree(
    rng: np.random.Generator, x: float, z: float, greens: Sequence[Color], *, bush: bool = False
) -> Tree:
    """Draws a tree or bush.

    Args:
        rng: source of randomness.
        x: lateral position in metres.
        z: distance in metres.
        greens: colours to draw from.
        bush: whether it is a bush.
    """
    if bush:
        width = rng.uniform(1.2, 3.2)
        crown, trunk = (width, width * rng.uniform(0.5, 0.9)), 0.0
    else:
        width = rng.uniform(3.0, 6.5)
        crown, trunk = (width, width * rng.uniform(0.9, 1.5)), rng.uniform(1.6, 3.0)
    return Tree(x, z, trunk, crown, vary(rng, pick(rng, greens), 0.14), int(rng.integers(16)))


def _building(
    rng: np.random.Generator,
    side: int,
    x: float,
    z0: float,
    z1: float,
    height: float,
    materials: Sequence[Material],
) -> Building:
    return Building(
        x=x,
        z0=z0,
        z1=z1,
        height=height,
        depth=side * rng.uniform(8, 14),
        material=pick(rng, materials),
        ground_floor=weighted(rng, ('plinth', 'shop', 'windows', 'blank'), (0.3, 0.25, 0.3, 0.15)),
        roof=rng.uniform(2, 4.5) if rng.random() < 0.6 else 0.0,
        roof_color=vary(rng, pick(rng, ((112, 62, 52), (88, 84, 84), (70, 66, 68), (128, 84, 66)))),
    )


def _row(
    rng: np.random.Generator,
    side: int,
    x: float,
    z0: float,
    z1: float,
    heights: Range,
    gap: float,
    materials: Sequence[Material],
) -> tuple[Building, ...]:
    """Buildings one after another along the road, far to near."""
    row = []
    z = z0 + rng.uniform(0, gap)
    while z < z1 - 5:
        end = min(z + rng.uniform(9, 22), z1)
        row.append(_building(rng, side, x, z, end, rng.uniform(*heights), materials))
        z = end + (rng.uniform(0, gap) if gap else 0.0)
    return tuple(reversed(row))


def _trees(
    rng: np.random.Generator,
    x0: float,
    x1: float,
    z0: float,
    z1: float,
    spacing: float,
    greens: Sequence[Color],
    bushes: float,
) -> tuple[Tree, ...]:
    """Trees along the road, far to near; `bushes` is the share of bushes."""
    trees = []
    z = z0 + rng.uniform(0, spacing)
    while z < min(z1, 75):
        bush = bool(rng.random() < bushes)
        trees.append(sample_tree(rng, rng.uniform(x0, x1), z, greens, bush=bush))
        z += spacing * rng.uniform(0.6, 1.5)
    return tuple(reversed(trees))


def _segment(
    rng: np.random.Generator,
    side: int,
    z0: float,
    z1: float,
    edge: float,
    materials: Sequence[Material],
    greens: Sequence[Color],
) -> Segment:
    kind = weighted(rng, ('facade', 'yard', 'bank', 'park'), (0.24, 0.36, 0.26, 0.14))
    verge = rng.uniform(1.5, 5.0) if kind != 'facade' and rng.random() < 0.6 else 0.3
    boundary = edge + side * verge
    buildings: tuple[Building, ...] = ()
    behind: tuple[Tree, ...] = ()
    strips: tuple[Strip, ...] = ()
    front: tuple[Tree, ...] = ()
    yard = 'terrain'
    if kind == 'facade':
        boundary = edge + side * rng.uniform(0, 0.6)
        buildings = _row(rng, side, boundary, z0, z1, (8, 19), 0.0, materials)
        yard = 'sidewalk'
    else:
        low, high = {'yard': (0.9, 2.3), 'bank': (1.8, 4.2), 'park': (0.8, 1.4)}[kind]
        chances = {
            'yard': (0.28, 0.42, 0.14, 0.16),
            'bank': (0.6, 0.4, 0.0, 0.0),
            'park': (0.2, 0.3, 0.3, 0.2),
        }
        strip = weighted(rng, ('wall', 'fence', 'railing', 'hedge'), chances[kind])
        height = rng.uniform(low, high)
        height = min(height, {'railing': 1.4, 'fence': 2.5}.get(strip, height))
        strips = (Strip(strip, boundary, z0, z1, height, pick(rng, materials)),)
        if kind == 'park' and rng.random() < 0.5:
            strips = ()
        far = boundary + side * rng.uniform(3.5, 9)
        if kind != 'park' and rng.random() < 0.8:
            buildings = _row(rng, side, far, z0, z1, (5, 13), 7.0, materials)
        inner, outer = sorted((boundary + side * 1.2, far - side * 0.5))
        spacing = {'yard': 11, 'bank': 5, 'park': 5}[kind]
        behind = _trees(rng, inner, outer, z0, z1, spacing, greens, 0.35)
        if kind == 'yard' and rng.random() < 0.3:
            yard = 'sidewalk'
    if verge > 1:
        x = edge + side * verge * 0.5
        front = _trees(rng, x - 0.3, x + 0.3, z0, z1, 10, greens, 0.5)
    return Segment(
        side=side,
        z0=z0,
        z1=z1,
        edge=edge,
        boundary=boundary,
        verge='terrain' if verge > 1 and kind != 'facade' else 'sidewalk',
        yard=yard,
        buildings=buildings,
        behind=behind,
        strips=strips,
        front=front,
    )


def sample_street(rng: np.random.Generator) -> Street:
    """Draws a street: lanes, tramway, pavements, side streets and what stands along them.

    Args:
        rng: source of randomness.
    """
    materials = tuple(
        Material(vary(rng, pick(rng, textures.MASONRY)), pick(rng, textures.PATTERNS))
        for _ in range(4)
    )
    greens = [textures.GREENS[i] for i in rng.permutation(len(textures.GREENS))[:3]]
    placement = weighted(rng, ('none', 'lane', 'middle', 'side'), (0.48, 0.22, 0.15, 0.15))
    right, left = 0.0, 0.0
    lanes: list[tuple[float, int]] = []
    for _ in range(1 + int(rng.random() < 0.4)):
        lanes.append((right + LANE / 2, 1))
        right += LANE
    track = None
    bed = 'road'
    if placement == 'middle':
        track = left - TRACK / 2
        left -= TRACK
        bed = 'terrain' if rng.random() < 0.7 else 'ballast'
    for index in range(1 + int(rng.random() < 0.35)):
        if index == 0 and placement == 'lane':
            track = left - LANE / 2
        lanes.append((left - LANE / 2, -1))
        left -= LANE
    parking: list[float | None] = [None, None]
    if rng.random() < 0.5:
        parking[0] = left - PARKING / 2
        left -= PARKING
    if rng.random() < 0.5:
        parking[1] = right + PARKING / 2
        right += PARKING
    if placement == 'side':
        bed = 'terrain' if rng.random() < 0.7 else 'ballast'
        if rng.random() < 0.5:
            track = right + TRACK / 2
            right += TRACK
        else:
            track = left - TRACK / 2
            left -= TRACK
    pavement = (rng.uniform(1.8, 4.2), rng.uniform(1.8, 4.2))
    crossing = rng.uniform(9, 26) if rng.random() < 0.4 else None
    openings: list[tuple[int, float, float]] = []
    segments: list[Segment] = []
    for side in (-1, 1):
        edge = left - pavement[0] if side < 0 else right + pavement[1]
        opening = rng.uniform(14, 60) if rng.random() < 0.5 else FAR
        z = 0.0
        row: list[Segment] = []
        while z < FAR - 3:
            if z < opening <= z + 12:
                z = opening + rng.uniform(7, 10)
                openings.append((side, opening, z))
            end = z + rng.uniform(14, 38)
            if z < opening < end:
                end = opening
            row.append(_segment(rng, side, z, min(end, FAR), edge, materials, greens))
            z = end
        segments += reversed(row)
    return Street(
        road=(left, right),
        lanes=tuple(lanes),
        parking=(parking[0], parking[1]),
        pavement=pavement,
        track=track,
        bed=bed,
        crossing=crossing,
        openings=tuple(openings),
        segments=tuple(segments),
    )
