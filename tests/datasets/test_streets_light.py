import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from certbench.datasets import streets_geometry as g
from certbench.datasets import streets_relight as relight
from certbench.datasets.streets_camera import Camera
from certbench.datasets.streets_geometry import Part
from certbench.datasets.streets_layout import describe
from certbench.datasets.streets_light import atmosphere, daylight, ground_shadow
from certbench.datasets.streets_raster import GROUND, look_at


def oracle():
    path = Path(__file__).with_name("streets_raycast.py")
    spec = importlib.util.spec_from_file_location("streets_raycast", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


raycast = oracle()
GREY, rays, world = raycast.GREY, raycast.rays, raycast.world


def clear(sun):
    sun = np.array(sun) / np.linalg.norm(sun)
    return dataclasses.replace(atmosphere(describe(0), "clear"), sun=tuple(sun))


def solid_part():
    part = Part().box((-3, 0, 7), (-1.5, 2, 9), GREY)
    part.ellipsoid((1.5, 1.2, 8), (0.9, 0.6, 0.5), GREY)
    part.rod((3, 0, 9), (3, 4, 9), 0.2, GREY)
    return part.quad((-0.6, 1, 11), (1.2, 0, 0), (0, 1.2, 0), GREY, outline=g.DISC)


@pytest.mark.parametrize("sun", [(0.5, 0.8, -0.3), (-0.9, 0.5, 0.2), (0.1, 1.0, 0.4)])
def test_shadows_on_the_ground_are_where_a_ray_to_the_sun_is_blocked(sun):
    scene = world(solid_part())
    camera = Camera(60, 120, (0, 3.0, 0), pitch=-12, field_of_view=70)
    air = clear(sun)
    seen = look_at(scene, camera)
    shadow = ground_shadow(scene, camera, air).ravel() > 0.5
    at = np.flatnonzero(seen.primitive.ravel() == GROUND)
    points = camera.position + rays(camera)[at] * seen.depth.ravel()[at, None]
    toward = np.broadcast_to(np.array(air.sun), points.shape)
    everything = np.zeros(scene.quads, bool)
    blocked = np.isfinite(raycast.intersect(scene, points, toward, everything, 1e-6)).any(0)
    assert blocked.mean() > 0.01
    # Silhouettes may fall on either side of a pixel's centre.
    assert (blocked == shadow[at]).mean() > 0.995


def test_a_pole_has_a_shadow_as_long_as_the_sun_is_low():
    part = Part().quad((-0.05, 0, 10), (0.1, 0, 0), (0, 2.0, 0), GREY)
    camera = Camera(200, 400, (0, 8.0, -2), pitch=-30, field_of_view=80)
    lengths = []
    for tangent in (1.0, 0.5):
        shadow = ground_shadow(world(part), camera, clear((0.0, tangent, 1.0)))
        rows, columns = np.nonzero(shadow)
        points = (
            camera.position
            + rays(camera)[rows * 400 + columns]
            * (8.0 / -rays(camera)[rows * 400 + columns, 1])[:, None]
        )
        lengths.append(10 - points[:, 2].min())
    assert lengths == pytest.approx([2.0, 4.0], abs=0.12)


def test_surfaces_that_face_the_sun_get_its_light_and_others_the_sky():
    air = clear((0.0, 1.0, 0.0))
    normals = np.float32([[0, 1, 0], [0, -1, 0], [1, 0, 0]])
    light = daylight(air, normals, 0.0)
    sky, bounce, sun = (np.array(c) for c in (air.skylight, air.bounce, air.sunlight))
    assert np.allclose(light[0], sky + sun, atol=1e-6)
    assert np.allclose(light[1], bounce, atol=1e-6)
    assert np.allclose(light[2], (sky + bounce) / 2, atol=1e-6)
    shaded = daylight(air, normals[:1], np.float32([1.0]))
    assert np.allclose(shaded[0], 0.82 * sky + (1 - air.shadow) * sun, atol=1e-6)


def test_lamps_light_the_ground_by_lamberts_law_and_distance():
    description = describe(3)
    empty = dataclasses.replace(
        description, placed=far_away(description.placed), lamps=np.zeros((0, 3))
    )
    camera = Camera(24, 48, (0, 1.5, 0), pitch=-10)
    lights = relight.light_renders(empty, camera, seed=5, count=3)
    assert lights.shape == (3, 24, 48) and lights.min() > 0 and lights.max() <= 1
    direction = rays(camera)
    below = direction[:, 1] < -0.02
    points = camera.position + direction[below] * (1.5 / -direction[below, 1])[:, None]
    rng = relight.generator(5, 0x4C)
    for i in range(3):
        ahead, aside = rng.uniform(-2, 32), rng.uniform(-6, 6)
        lamp = np.array(camera.position) + ahead * camera.rotation[2] + aside * camera.rotation[0]
        lamp[1] = rng.uniform(3, 9)
        ray = lamp - points
        square = (ray**2).sum(1)
        exact = relight.AMBIENT + relight.ENERGY * ray[:, 1] / np.sqrt(square) * 400 / (
            400 + square
        )
        assert np.allclose(lights[i].ravel()[below], np.sqrt(np.minimum(exact, 1)), atol=1e-3)


def far_away(placed):
    """One object out of sight keeps the arrays non-empty."""
    one = {f.name: getattr(placed, f.name)[:1] for f in dataclasses.fields(placed)}
    return type(placed)(**{**one, "position": np.array([[0.0, 0.0, -500.0]])})


def test_the_lamp_does_not_reach_behind_a_wall():
    scene = world(Part().box((-4, 0, 6), (4, 6, 6.5), GREY))
    points = np.float32([[0, 0, 3], [0, 0, 8], [3, 1, 10], [0, 3, 5.99]])
    free = relight._unblocked(scene, np.array([0.0, 3.0, 2.0]), points, 128)
    assert free.tolist() == [True, False, False, True]


def test_a_flash_lights_a_wall_by_its_angle_and_distance():
    description = dataclasses.replace(describe(0), placed=far_away(describe(0).placed))
    camera = Camera(40, 60, (0, 1.5, 0), pitch=-20)
    shading = relight.camera_shading(description, camera).ravel()
    direction = rays(camera)
    below = direction[:, 1] < -0.02
    depth = 1.5 / -direction[below, 1]
    cosine = -direction[below, 1] / np.linalg.norm(direction[below], axis=1)
    exact = cosine * 64 / (64 + depth**2)
    assert np.allclose(shading[below], exact, atol=1e-4)
    assert (shading[direction[:, 1] > 0] == 0).all()
