import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certbench.datasets.streets_camera import Camera
from certbench.errors import CertbenchError

angle = st.floats(-60, 60)


@given(yaw=angle, pitch=angle, roll=angle)
def test_camera_axes_are_orthonormal_and_point_right_down_forward(yaw, pitch, roll):
    rotation = Camera(10, 20, yaw=yaw, pitch=pitch, roll=roll).rotation
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    level = Camera(10, 20).rotation
    assert np.array_equal(level, [[1, 0, 0], [0, -1, 0], [0, 0, 1]])
    # The same handedness as the level camera: no mirror image at any angle.
    assert np.linalg.det(rotation) == pytest.approx(np.linalg.det(level))


@given(yaw=angle, pitch=angle, roll=angle, view=st.floats(20, 120))
def test_rays_through_pixel_centres_project_back_onto_them(yaw, pitch, roll, view):
    camera = Camera(6, 9, (1.0, 2.0, -3.0), yaw=yaw, pitch=pitch, roll=roll, field_of_view=view)
    x, y = np.meshgrid(camera.columns(), camera.rows())
    point = camera.position + 7.0 * (np.stack([x, y, np.ones_like(x)], -1) @ camera.rotation)
    column, row, depth = camera.project(point)
    assert np.allclose(column, np.arange(9) + 0.5)
    assert np.allclose(row, (np.arange(6) + 0.5)[:, None])
    assert np.allclose(depth, 7.0)


def test_the_borders_of_the_image_are_half_the_field_of_view_away():
    camera = Camera(50, 100, field_of_view=90)
    edge = camera.project(np.array([10.0, 1.5, 10.0]))
    assert edge[0] == pytest.approx(100) and edge[1] == pytest.approx(25)


def test_angles_turn_the_view_the_way_they_say():
    ahead = np.array([0.0, 1.5, 10.0])
    centre = Camera(50, 100)
    assert centre.project(ahead)[0] == pytest.approx(50)
    assert centre.moved(yaw=5.0).project(ahead)[0] < 50  # turn right, things move left
    assert centre.moved(pitch=5.0).project(ahead)[1] > 25  # look up, things move down
    right = np.array([2.0, 1.5, 10.0])
    assert centre.moved(roll=5.0).project(right)[1] < 25  # lean right, the right side rises


@pytest.mark.parametrize(
    "wrong", [{"height": 0}, {"field_of_view": 180.0}, {"position": (0.0, 0.0, 0.0)}]
)
def test_impossible_cameras_are_refused(wrong):
    with pytest.raises(CertbenchError, match="streets camera"):
        Camera(**{"height": 10, "width": 20, **wrong})
