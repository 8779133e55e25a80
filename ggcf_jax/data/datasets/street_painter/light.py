"""Times of day and weathers: sun, sky, haze and the gain of the camera."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float32

from ggcf_jax.data.datasets.street_painter.textures import Color, weighted

# name: sky top, sky horizon, haze, gain (all RGB), sun strength, sun elevation range (degrees),
# visibility (metres), cloud cover, sensor noise (grey levels)
_WEATHERS = {
    'noon': (
        (82, 130, 200),
        (190, 212, 232),
        (190, 205, 220),
        (1.0, 1.0, 0.98),
        0.50,
        (45, 65),
        260,
        0.35,
        2.5,
    ),
    'morning': (
        (120, 155, 205),
        (228, 222, 214),
        (214, 212, 208),
        (1.02, 0.99, 0.93),
        0.48,
        (25, 40),
        150,
        0.3,
        3.0,
    ),
    'golden': (
        (112, 130, 178),
        (246, 206, 158),
        (226, 196, 166),
        (1.1, 0.96, 0.8),
        0.55,
        (16, 28),
        180,
        0.45,
        3.5,
    ),
    'overcast': (
        (176, 182, 190),
        (214, 217, 220),
        (200, 204, 208),
        (0.93, 0.95, 0.97),
        0.06,
        (50, 70),
        150,
        0.9,
        3.5,
    ),
    'mist': (
        (188, 194, 200),
        (212, 214, 216),
        (206, 209, 212),
        (0.92, 0.94, 0.96),
        0.04,
        (50, 70),
        60,
        0.5,
        4.0,
    ),
    'dusk': (
        (54, 70, 118),
        (206, 150, 130),
        (120, 110, 124),
        (0.66, 0.63, 0.74),
        0.05,
        (30, 50),
        140,
        0.6,
        4.0,
    ),
}
_CHANCES = (0.26, 0.18, 0.16, 0.22, 0.08, 0.10)


@dataclasses.dataclass(frozen=True)
class Light:
    """Illumination of one scene; colours are RGB in 0..255.

    Attributes:
        name: name of the weather.
        sky_top: colour of the sky at the upper edge of the image.
        sky_horizon: colour of the sky at the horizon.
        haze: colour that distant things fade into.
        gain: gain of the camera for each channel.
        sun: unit vector (x, y, z) towards the sun.
        strength: share of the light that comes from the sun.
        visibility: distance in metres at which 1 / e of a surface's own colour is left.
        clouds: cloud cover, 0..1.
        noise: standard deviation of the sensor noise in grey levels.
        wet: whether the road is wet.
    """

    name: str
    sky_top: tuple[float, ...]
    sky_horizon: tuple[float, ...]
    haze: tuple[float, ...]
    gain: tuple[float, ...]
    sun: tuple[float, float, float]
    strength: float
    visibility: float
    clouds: float
    noise: float
    wet: bool

    def shade(self, x: float, y: float, z: float) -> float:
        """Returns the brightness of a surface.

        Args:
            x: component of its unit normal to the right.
            y: component of its unit normal upwards.
            z: component of its unit normal along the road.
        """
        facing = x * self.sun[0] + y * self.sun[1] + z * self.sun[2]
        return 0.92 - 0.62 * self.strength + 0.95 * self.strength * max(0.0, facing)

    def transmission(
        self, z: Float32[np.ndarray, '...'] | np.float32 | float
    ) -> Float32[np.ndarray, '...']:
        """Returns the share of a surface's own colour that reaches the camera.

        Args:
            z: distance of the surface in metres.
        """
        return np.exp(np.float32(-1 / self.visibility) * z)

    def tone(self, color: Color, z: float, shade: float = 1.0) -> tuple[int, int, int]:
        """Returns a colour as drawn: shaded, then faded into the haze.

        Args:
            color: RGB of the material.
            z: distance in metres.
            shade: brightness, see `shade`.
        """
        kept = math.exp(-z / self.visibility)
        haze = self.haze
        return (
            min(255, int(color[0] * shade * kept + haze[0] * (1 - kept))),
            min(255, int(color[1] * shade * kept + haze[1] * (1 - kept))),
            min(255, int(color[2] * shade * kept + haze[2] * (1 - kept))),
        )


def sample_light(rng: np.random.Generator) -> Light:
    """Draws a time of day and a weather.

    Args:
        rng: source of randomness.
    """
    name = weighted(rng, tuple(_WEATHERS), _CHANCES)
    top, horizon, haze, gain, strength, elevations, visibility, clouds, noise = _WEATHERS[name]
    tint = rng.uniform(0.94, 1.06, 3)
    azimuth = rng.uniform(0, 2 * math.pi)
    elevation = math.radians(rng.uniform(*elevations))
    return Light(
        name=name,
        sky_top=tuple(top * tint),
        sky_horizon=tuple(np.minimum(horizon * tint, 255)),
        haze=tuple(np.minimum(haze * tint, 255)),
        gain=tuple(np.asarray(gain) * rng.uniform(0.9, 1.08) * rng.uniform(0.97, 1.03, 3)),
        sun=(
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
            math.cos(elevation) * math.cos(azimuth),
        ),
        strength=strength,
        visibility=visibility * rng.uniform(0.75, 1.3),
        clouds=clouds * rng.uniform(0.6, 1.1),
        noise=noise * rng.uniform(0.7, 1.3),
        wet=name in ('overcast', 'mist', 'dusk') and rng.random() < 0.4,
    )
