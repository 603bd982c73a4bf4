"""Renders of a street scene under single point lamps, for corruptions that change the light."""

from __future__ import annotations

import numpy as np

from certbench.datasets.streets_camera import Camera
from certbench.datasets.streets_layout import SceneDescription
from certbench.datasets.streets_random import generator
from certbench.datasets.streets_raster import GROUND, look_at
from certbench.datasets.streets_scene import world_points
from certbench.datasets.streets_surfaces import surfaces
from certbench.datasets.streets_vectors import dot, single

ENERGY = 2.5
"""Brightness of a surface that faces the lamp from nearby."""

HALF_DISTANCE = 8.0
"""Distance in metres at which a flash has fallen to a half."""

LAMP_HALF_DISTANCE = 20.0
"""The same for the lamps: streets are larger than the rooms that the 8 m were made for."""

AMBIENT = 0.10
"""Light in full shadow."""

_FACES = ((0.0, -90.0), (0.0, 0.0), (90.0, 0.0), (180.0, 0.0), (270.0, 0.0))


def light_renders(
    description: SceneDescription,
    camera: Camera,
    seed: int,
    count: int = 10,
    shadow_size: int = 128,
) -> np.ndarray:
    """Light that falls on every visible point from point lamps at random places over the street.

    Lambert's law times ``D^2 / (D^2 + r^2)``, with shadows from depth maps around each lamp; the
    model is that of the relit renders of Kar et al. (CVPR 2022, 3D Common Corruptions), whose lamps
    are point lights with energy 2.5; ``D`` is 20 m instead of 8 m, and full shadow is not black.

    Args:
        description: The scene.
        camera: The camera.
        seed: Places the lamps.
        count: Number of lamps.
        shadow_size: Side of a shadow map in pixels.

    Returns:
        Display values (gamma 2, as the scenes') of white surfaces, float32 [count, H, W] in [0, 1];
        the sky, which no lamp reaches, is 1.
    """
    rng = generator(seed, 0x4C)
    eye = np.asarray(camera.position)
    scene = description.primitives
    points, normal, lit = _visible_surface(description, camera)
    renders = np.ones((count, camera.height * camera.width), np.float32)
    forward = camera.rotation[2]
    for i in range(count):
        ahead, aside = float(rng.uniform(-2, 32)), float(rng.uniform(-6, 6))
        place = eye + ahead * forward + aside * camera.rotation[0]
        place[1] = float(rng.uniform(3, 9))
        ray = single(place) - points[lit]
        square = dot(ray, ray)
        facing = np.maximum(dot(ray, normal[lit]) / np.sqrt(np.maximum(square, 1e-6)), 0)
        fall = LAMP_HALF_DISTANCE**2 / (LAMP_HALF_DISTANCE**2 + square)
        open_ = _unblocked(scene, place, points[lit], shadow_size)
        renders[i, lit] = np.sqrt(np.minimum(AMBIENT + ENERGY * facing * fall * open_, 1))
    return renders.reshape(count, camera.height, camera.width)


def camera_shading(description: SceneDescription, camera: Camera) -> np.ndarray:
    """Share of a flash at the camera that every visible point returns.

    Args:
        description: The scene.
        camera: The camera.

    Returns:
        ``max(0, cos) D^2 / (D^2 + z^2)`` with the true normals, float32 [H, W]; 0 in the sky.
    """
    points, normal, lit = _visible_surface(description, camera)
    ray = single(camera.position) - points[lit]
    depth = -(ray @ camera.rotation[2].astype(np.float32))
    facing = np.maximum(dot(ray, normal[lit]) / np.sqrt(dot(ray, ray)), 0)
    shading = np.zeros(camera.height * camera.width, np.float32)
    shading[lit] = facing * HALF_DISTANCE**2 / (HALF_DISTANCE**2 + depth * depth)
    return shading.reshape(camera.height, camera.width)


def _visible_surface(description, camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World points and normals of all pixels, and which of them are not sky."""
    scene = description.primitives
    seen = look_at(scene, camera)
    _, points = world_points(seen)
    normal = np.zeros_like(points)
    flat = seen.primitive.ravel()
    normal[flat == GROUND] = (0, 1, 0)
    made = surfaces(scene, seen, points)
    normal[made.pixel] = made.normal
    return points, normal, np.flatnonzero(flat >= GROUND)


def _unblocked(scene, place, points, size) -> np.ndarray:
    """Whether the lamp sees each point: depth maps down and to four sides, 90 degrees each."""
    free = np.ones(len(points), bool)
    todo = np.ones(len(points), bool)
    for yaw, pitch in _FACES:
        lens = Camera(size, size, tuple(place), yaw=yaw, pitch=pitch, field_of_view=90.0)
        column, row, depth = lens.project(points)
        inside = todo & (depth > 0.2) & (column >= 0) & (column < size) & (row >= 0) & (row < size)
        at = np.flatnonzero(inside)
        if not len(at):
            continue
        todo[at] = False
        near = look_at(scene, lens, ground=False).depth
        stored = near[row[at].astype(int), column[at].astype(int)]
        free[at] = depth[at] <= stored * 1.02 + 0.12
    return free
