"""Visibility against plain ray casting, one primitive at a time."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from certbench.datasets import streets_geometry as g
from certbench.datasets.streets_camera import Camera
from certbench.datasets.streets_geometry import Part
from certbench.datasets.streets_layout import describe
from certbench.datasets.streets_raster import GROUND, SKY, look_at


def oracle():
    path = Path(__file__).with_name("streets_raycast.py")
    spec = importlib.util.spec_from_file_location("streets_raycast", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


raycast = oracle()
GREY, cast, rays, world = raycast.GREY, raycast.cast, raycast.rays, raycast.world


def random_part(rng) -> Part:
    part = Part()
    for i in range(14):
        origin = rng.uniform((-4, 0, -2), (4, 4, 14))
        u, v = rng.normal(0, 1.5, (2, 3))
        insets = ((0, 0), (0.3, 0.2), (0.5, 0.5))[i % 3]
        outline = (g.POLYGON, g.DISC, g.POLYGON, g.OCTAGON)[i % 4]
        outward = (0, 0, 0) if i % 2 else rng.normal(0, 1, 3)
        part.quad(origin, u, v, GREY, outward, (0, 0) if outline else insets, outline)
    for i in range(8):
        centre = rng.uniform((-4, 0, 2), (4, 3, 14))
        turn = np.linalg.qr(rng.normal(0, 1, (3, 3)))[0]
        if i % 2:
            part.ellipsoid(centre, rng.uniform(0.2, 1.2, 3), GREY, rotation=turn)
        else:
            part.rod(centre, centre + rng.normal(0, 1.5, 3), rng.uniform(0.05, 0.4), GREY)
    return part


@pytest.mark.parametrize("seed", range(6))
def test_random_primitives_are_seen_as_by_casting_each_ray(seed):
    rng = np.random.default_rng(seed)
    scene = world(random_part(rng))
    camera = Camera(
        36,
        54,
        position=tuple(rng.uniform((-1, 0.5, -3), (1, 2, 1))),
        yaw=float(rng.uniform(-25, 25)),
        pitch=float(rng.uniform(-15, 15)),
        roll=float(rng.uniform(-30, 30)),
        field_of_view=float(rng.uniform(40, 100)),
    )
    seen = look_at(scene, camera, ground=False)
    found = cast(scene, camera)
    nearest = found.min(0)
    depth = seen.depth.ravel().astype(np.float64)
    agree = np.isclose(depth, nearest, rtol=1e-5) | (np.isinf(depth) & np.isinf(nearest))
    # Rays within rounding of a silhouette may fall on either side.
    assert agree.mean() >= 1 - 2 / agree.size
    hit = np.isfinite(nearest) & agree
    assert hit.mean() > 0.05
    assert (found[seen.primitive.ravel()[hit], np.flatnonzero(hit)] <= nearest[hit] * 1.00001).all()


def test_nothing_solid_in_a_street_is_nearer_than_what_is_seen():
    description = describe(5)
    scene = description.primitives
    camera = description.camera(30, 60)
    seen = look_at(scene, camera)
    found = cast(scene, camera)
    ragged = np.concatenate([scene.outline == g.RAGGED, scene.ragged])
    solid = np.where(ragged[:, None], np.inf, found).min(0)
    direction = rays(camera)
    with np.errstate(divide="ignore"):
        ground = np.where(direction[:, 1] < 0, -camera.position[1] / direction[:, 1], np.inf)
    nearest = np.minimum(solid, ground)
    depth = seen.depth.ravel().astype(np.float64)
    assert (depth <= nearest * (1 + 1e-5)).mean() >= 1 - 2 / depth.size
    on_solid = (seen.primitive.ravel() < 0) | ~ragged[np.maximum(seen.primitive.ravel(), 0)]
    finite = on_solid & np.isfinite(depth)
    assert np.isclose(depth[finite], nearest[finite], rtol=1e-5).mean() >= 1 - 2 / finite.sum()
    assert on_solid.mean() > 0.7


@pytest.mark.parametrize("pose", [(0, 0, 0), (-4, 3, 0), (5, 20, 25)])
def test_the_depth_of_the_ground_is_that_of_the_plane(pose):
    pitch, yaw, roll = pose
    camera = Camera(48, 96, (0.4, 1.6, 2.0), yaw=yaw, pitch=pitch, roll=roll)
    seen = look_at(world(Part().quad((0, 0, -9), (1, 0, 0), (0, 1, 0), GREY)), camera)
    direction = rays(camera)
    below = direction[:, 1] < -1e-4
    exact = 1.6 / -direction[below, 1]
    assert np.allclose(seen.depth.ravel()[below], exact, rtol=1e-6)
    assert (seen.primitive.ravel()[below] == GROUND).all()
    above = direction[:, 1] > 0
    assert np.isinf(seen.depth.ravel()[above]).all()
    assert (seen.primitive.ravel()[above] == SKY).all()
    assert below.mean() > 0.2


def test_a_square_is_as_large_in_the_image_as_focal_length_over_distance():
    camera = Camera(400, 400, (0, 5, 0), field_of_view=60)
    for distance in (5.0, 10.0, 20.0):
        part = Part().quad((-1, 4, distance), (2, 0, 0), (0, 2, 0), GREY)
        seen = look_at(world(part), camera, ground=False)
        rows, columns = np.nonzero(seen.primitive == 0)
        assert (seen.depth[rows, columns] == np.float32(distance)).all()
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert abs(height - camera.focal * 2 / distance) <= 1
        assert abs(width - camera.focal * 2 / distance) <= 1
        assert len(rows) == height * width


def test_texture_coordinates_name_the_point_that_is_seen():
    part = Part().quad((-2, 0, 6), (4, 0, 2), (0, 3, 1), GREY)
    scene = world(part)
    camera = Camera(40, 60, (0.3, 1.2, 0), yaw=5, pitch=4, roll=7)
    seen = look_at(scene, camera, ground=False)
    hit = seen.primitive.ravel() == 0
    u, v = seen.local.reshape(-1, 3)[hit, :2].T.astype(np.float64)
    named = scene.origin[0] + u[:, None] * scene.u[0] + v[:, None] * scene.v[0]
    reached = camera.position + seen.depth.ravel()[hit, None].astype(np.float64) * rays(camera)[hit]
    assert np.abs(named - reached).max() < 1e-4
    assert hit.sum() > 100


def test_of_two_equal_surfaces_the_later_one_is_seen():
    part = Part()
    for _ in range(2):
        part.quad((-1, 0, 5), (2, 0, 0), (0, 2, 0), GREY)
    seen = look_at(world(part), Camera(30, 30, (0, 1, 0)), ground=False)
    assert set(np.unique(seen.primitive)) == {SKY, 1}


def test_a_wall_that_runs_past_the_camera_is_cut_at_the_near_plane():
    part = Part().quad((1.5, -20, -50), (0, 0, 100), (0, 40, 0), GREY)
    camera = Camera(20, 200, (0, 1.5, 0), field_of_view=120)
    seen = look_at(world(part), camera, ground=False)
    x = camera.columns()
    # The wall is the plane x = 1.5, so its depth is 1.5 / tan(angle), up to its end at z = 50.
    exact = 1.5 / x[x > 1.5 / 50]
    assert np.allclose(seen.depth[10, x > 1.5 / 50], exact, rtol=1e-6)
    assert np.isinf(seen.depth[10, x < 1.5 / 50]).all()
