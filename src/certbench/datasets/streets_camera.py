"""The pinhole camera of the street scenes.

World axes: x to the right, y up, z forward along the road, in metres; the ground is ``y = 0``.
Camera axes: x to the right, y down, z forward. Depth is the camera's z, not the ray's length.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from certbench.errors import CertbenchError


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with square pixels and the principal point in the image's centre.

    Attributes:
        height: Image height in pixels.
        width: Image width in pixels.
        position: World position in metres.
        yaw: Turn to the right, degrees.
        pitch: Tilt upwards, degrees.
        roll: Clockwise roll of the camera (the scene turns counter-clockwise), degrees.
        field_of_view: Horizontal angle of view, degrees, in (0, 180).
    """

    height: int
    width: int
    position: tuple[float, float, float] = (0.0, 1.5, 0.0)
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    field_of_view: float = 65.0

    def __post_init__(self):
        if self.height < 1 or self.width < 1:
            raise CertbenchError(
                f"image size {self.height} x {self.width} is not positive", where="streets camera"
            )
        if not 0 < self.field_of_view < 180:
            raise CertbenchError(
                f"field of view is {self.field_of_view}",
                where="streets camera",
                remedy="expected degrees in (0, 180)",
            )
        if not self.position[1] > 0:
            raise CertbenchError(
                f"the camera stands at height {self.position[1]} m",
                where="streets camera",
                remedy="it must be above the ground plane y = 0",
            )

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return self.width / 2 / math.tan(math.radians(self.field_of_view) / 2)

    @property
    def rotation(self) -> np.ndarray:
        """Rotation from world to camera axes: float64 [3, 3], rows right, down, forward."""
        yaw, pitch, roll = (math.radians(a) for a in (self.yaw, self.pitch, self.roll))
        forward = np.array(
            [
                math.sin(yaw) * math.cos(pitch),
                math.sin(pitch),
                math.cos(yaw) * math.cos(pitch),
            ]
        )
        level = np.array([math.cos(yaw), 0.0, -math.sin(yaw)])
        upright = np.array(
            [
                -math.sin(yaw) * math.sin(pitch),
                math.cos(pitch),
                -math.cos(yaw) * math.sin(pitch),
            ]
        )
        right = math.cos(roll) * level - math.sin(roll) * upright
        up = math.sin(roll) * level + math.cos(roll) * upright
        return np.stack([right, -up, forward])

    def columns(self) -> np.ndarray:
        """Normalised image x of the pixel centres: float64 [W]; the ray is (x, y, 1)."""
        return (np.arange(self.width) + 0.5 - self.width / 2) / self.focal

    def rows(self) -> np.ndarray:
        """Normalised image y of the pixel centres: float64 [H]; the ray is (x, y, 1)."""
        return (np.arange(self.height) + 0.5 - self.height / 2) / self.focal

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image position of world points.

        Args:
            points: [..., 3] world coordinates in metres.

        Returns:
            Column and row in pixels (pixel (0, 0) spans 0..1) and depth in metres; positions are
            meaningless where the depth is not positive.
        """
        local = (np.asarray(points, dtype=np.float64) - self.position) @ self.rotation.T
        depth = local[..., 2]
        safe = np.where(np.abs(depth) < 1e-9, 1e-9, depth)
        column = self.focal * local[..., 0] / safe + self.width / 2
        row = self.focal * local[..., 1] / safe + self.height / 2
        return column, row, depth

    def moved(self, **changes) -> Camera:
        """A copy with some attributes replaced."""
        return dataclasses.replace(self, **changes)
