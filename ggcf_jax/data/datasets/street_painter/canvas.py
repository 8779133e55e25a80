"""Image and label drawn together, far to near."""

from collections.abc import Iterable

import cv2
import numpy as np
from jaxtyping import UInt8

from ggcf_jax.data.datasets.street_painter.camera import Camera, Point, Point3
from ggcf_jax.data.datasets.street_painter.light import Light
from ggcf_jax.data.datasets.street_painter.textures import Color

NEAREST = 2.0  # metres: upright sprites nearer than this would fill the image
_SHIFT = 4  # OpenCV's fixed-point bits: shapes are placed to 1/16 pixel
_ONE = 1 << _SHIFT


class Canvas:
    """A scene that is being painted.

    Attributes:
        camera: camera of the scene.
        light: illumination of the scene.
        image: uint8 [h, w, 3] RGB.
        label: uint8 [h, w], train ids, 255 = ignore.
    """

    def __init__(self, camera: Camera, light: Light):
        """Starts with a black image without labels.

        Args:
            camera: camera of the scene.
            light: illumination of the scene.
        """
        self.camera = camera
        self.light = light
        self.image = np.zeros((*camera.size, 3), np.uint8)
        self.label = np.full(camera.size, 255, np.uint8)

    def polygon(self, points: Iterable[Point], color: Color, label: int | None) -> None:
        """Fills a polygon.

        Args:
            points: corners (u, v) in pixels.
            color: RGB as drawn (see `Light.tone`).
            label: train id; None where the shape lies on one that is labelled already.
        """
        # The centre of a pixel is at +0.5 here and at 0 in OpenCV.
        fixed = np.array(
            [(int((u - 0.5) * _ONE), int((v - 0.5) * _ONE)) for u, v in points], np.int32
        )
        cv2.fillPoly(self.image, [fixed], color, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.fillPoly(self.label, [fixed], label, cv2.LINE_8, _SHIFT)

    def surface(
        self,
        points: Iterable[Point3],
        color: Color,
        z: float,
        shade: float,
        label: int | None,
    ) -> None:
        """Fills a polygon in the street, lit and hazed.

        Args:
            points: corners (x, y, z) in metres.
            color: RGB of the material.
            z: distance that the haze is computed for, in metres.
            shade: brightness, see `Light.shade`.
            label: train id; None where the shape lies on one that is labelled already.
        """
        project = self.camera.project
        self.polygon([project(*p) for p in points], self.light.tone(color, z, shade), label)

    def ellipse(self, center: Point, axes: Point, color: Color, label: int | None) -> None:
        """Fills an upright ellipse.

        Args:
            center: centre (u, v) in pixels.
            axes: half axes (horizontal, vertical) in pixels.
            color: RGB as drawn.
            label: train id; None where the shape lies on one that is labelled already.
        """
        place = (int((center[0] - 0.5) * _ONE), int((center[1] - 0.5) * _ONE))
        half = (max(int(axes[0] * _ONE), 6), max(int(axes[1] * _ONE), 6))
        cv2.ellipse(self.image, place, half, 0, 0, 360, color, -1, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.ellipse(self.label, place, half, 0, 0, 360, label, -1, cv2.LINE_8, _SHIFT)

    def ring(self, center: Point, axes: Point, width: float, color: Color, label: int) -> None:
        """Draws the outline of an upright ellipse in the image and fills it in the label.

        Args:
            center: centre (u, v) in pixels.
            axes: half axes (horizontal, vertical) in pixels.
            width: width of the outline in pixels, drawn with at least one.
            color: RGB as drawn.
            label: train id.
        """
        place = (int((center[0] - 0.5) * _ONE), int((center[1] - 0.5) * _ONE))
        half = (max(int(axes[0] * _ONE), 6), max(int(axes[1] * _ONE), 6))
        thickness = max(1, round(width))
        cv2.ellipse(self.image, place, half, 0, 0, 360, color, thickness, cv2.LINE_AA, _SHIFT)
        cv2.ellipse(self.label, place, half, 0, 0, 360, label, -1, cv2.LINE_8, _SHIFT)

    def stroke(
        self, points: Iterable[Point], width: float, color: Color, label: int | None
    ) -> None:
        """Draws connected line segments.

        Args:
            points: ends (u, v) of the segments in pixels.
            width: width of the lines in pixels, drawn with at least one.
            color: RGB as drawn.
            label: train id; None where the lines lie on a shape that is labelled already.
        """
        fixed = np.array(
            [(int((u - 0.5) * _ONE), int((v - 0.5) * _ONE)) for u, v in points], np.int32
        )
        thickness = max(1, round(width))
        cv2.polylines(self.image, [fixed], False, color, thickness, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.polylines(self.label, [fixed], False, label, thickness, cv2.LINE_8, _SHIFT)

    def paste(
        self,
        top: int,
        left: int,
        pixels: UInt8[np.ndarray, 'h w 3'],
        mask: UInt8[np.ndarray, 'h w'],
        label: int,
    ) -> None:
        """Copies the masked pixels of a picture, as far as they lie in the image.

        Args:
            top: row of the picture's first row.
            left: column of the picture's first column.
            pixels: RGB pixels of the picture.
            mask: non-zero where the picture is copied.
            label: train id.
        """
        height, width = self.camera.size
        y0, x0 = max(0, -top), max(0, -left)
        y1 = min(mask.shape[0], height - top)
        x1 = min(mask.shape[1], width - left)
        if y0 >= y1 or x0 >= x1:
            return
        part = np.ascontiguousarray(mask[y0:y1, x0:x1])
        region = (slice(top + y0, top + y1), slice(left + x0, left + x1))
        self.image[region] = cv2.copyTo(
            np.ascontiguousarray(pixels[y0:y1, x0:x1]), part, self.image[region].copy()
        )
        self.label[region][part > 0] = label

    def visible(self, x: float, z: float, reach: float) -> bool:
        """Returns whether a thing can touch the image.

        Args:
            x: lateral position of the thing in metres.
            z: distance of the thing in metres.
            reach: half its width in metres.
        """
        if z < NEAREST:
            return False
        u, _ = self.camera.project(x, 0.0, z)
        margin = reach * self.camera.scale(z)
        return -margin < u < self.camera.size[1] + margin
