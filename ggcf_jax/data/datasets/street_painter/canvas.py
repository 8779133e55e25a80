"""Image and label drawn together, far to near."""

import cv2
import numpy as np

from ggcf_jax.data.datasets.street_painter.camera import Camera
from ggcf_jax.data.datasets.street_painter.light import Light

NEAREST = 2.0  # metres: upright sprites nearer than this would fill the image
_SHIFT = 4  # OpenCV's fixed-point bits: shapes are placed to 1/16 pixel
_ONE = 1 << _SHIFT


class Canvas:
    """One scene being painted.

    Attributes:
        camera, light: the scene's camera and illumination.
        image: [h, w, 3] uint8 RGB.
        label: [h, w] uint8 train ids, 255 = ignore.
    """

    def __init__(self, camera: Camera, light: Light):
        self.camera = camera
        self.light = light
        self.image = np.zeros((*camera.size, 3), np.uint8)
        self.label = np.full(camera.size, 255, np.uint8)

    def polygon(self, points, color, label: int | None) -> None:
        """Fills a polygon.

        Args:
            points: pixel coordinates (u, v), any number.
            color: RGB as drawn (see `Light.tone`).
            label: train id, or None where the shape lies on one that is labelled already.
        """
        # A pixel's centre is at +0.5 here and at 0 in OpenCV.
        fixed = np.array(
            [(int((u - 0.5) * _ONE), int((v - 0.5) * _ONE)) for u, v in points], np.int32
        )
        cv2.fillPoly(self.image, [fixed], color, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.fillPoly(self.label, [fixed], label, cv2.LINE_8, _SHIFT)

    def surface(self, points, color, z: float, shade: float, label: int | None) -> None:
        """Fills a polygon given by points (x, y, z) in metres, lit and hazed for distance z."""
        project = self.camera.project
        self.polygon([project(*p) for p in points], self.light.tone(color, z, shade), label)

    def ellipse(self, center, axes, color, label: int | None) -> None:
        """Fills an upright ellipse: centre (u, v) and half axes in pixels."""
        place = (int((center[0] - 0.5) * _ONE), int((center[1] - 0.5) * _ONE))
        half = (max(int(axes[0] * _ONE), 6), max(int(axes[1] * _ONE), 6))
        cv2.ellipse(self.image, place, half, 0, 0, 360, color, -1, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.ellipse(self.label, place, half, 0, 0, 360, label, -1, cv2.LINE_8, _SHIFT)

    def ring(self, center, axes, width: float, color, label: int) -> None:
        """Draws the outline of an upright ellipse in the image and fills it in the label."""
        place = (int((center[0] - 0.5) * _ONE), int((center[1] - 0.5) * _ONE))
        half = (max(int(axes[0] * _ONE), 6), max(int(axes[1] * _ONE), 6))
        thickness = max(1, round(width))
        cv2.ellipse(self.image, place, half, 0, 0, 360, color, thickness, cv2.LINE_AA, _SHIFT)
        cv2.ellipse(self.label, place, half, 0, 0, 360, label, -1, cv2.LINE_8, _SHIFT)

    def stroke(self, points, width: float, color, label: int | None) -> None:
        """Draws connected line segments of `width` pixels (at least one)."""
        fixed = np.array(
            [(int((u - 0.5) * _ONE), int((v - 0.5) * _ONE)) for u, v in points], np.int32
        )
        thickness = max(1, round(width))
        cv2.polylines(self.image, [fixed], False, color, thickness, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.polylines(self.label, [fixed], False, label, thickness, cv2.LINE_8, _SHIFT)

    def paste(self, top: int, left: int, pixels, mask, label: int) -> None:
        """Copies pixels [h, w, 3] uint8 where mask [h, w] uint8 is non-zero; clips to the image."""
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
        """Whether a thing of half width `reach` metres at (x, z) can touch the image."""
        if z < NEAREST:
            return False
        u, _ = self.camera.project(x, 0.0, z)
        margin = reach * self.camera.scale(z)
        return -margin < u < self.camera.size[1] + margin
