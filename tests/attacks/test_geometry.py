import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from certbench.attacks import geometry, noise

SEEDS = np.arange(8, dtype=np.int64)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["linf", "l2"]), st.floats(1e-4, 3.0))
def test_projection_is_feasible_and_leaves_feasible_points_alone(seed, norm, epsilon):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.uniform(size=(3, 2, 5, 4))).float()
    point = torch.tensor(rng.normal(scale=2, size=(3, 2, 5, 4))).float()
    projected = geometry.project(point, x, norm, epsilon)
    assert geometry.feasible(projected, x, norm, epsilon).all()
    again = geometry.project(projected, x, norm, epsilon)
    assert torch.allclose(again, projected, atol=2e-6)


def test_linf_projection_is_the_nearest_point_of_ball_and_box():
    x = torch.tensor([[[[0.05, 0.5, 0.97]]]])
    point = torch.tensor([[[[-1.0, 0.55, 2.0]]]])
    nearest = geometry.project(point, x, "linf", 0.1)
    assert torch.allclose(nearest, torch.tensor([[[[0.0, 0.55, 1.0]]]]))


def test_boundary_start_touches_the_cube_and_l2_start_lies_on_the_sphere():
    x = torch.full((8, 3, 6, 6), 0.5)
    cube = geometry.random_start(x, "linf", 0.1, SEEDS, "s", (0,), boundary=True)
    assert torch.allclose(geometry.length(cube - x, "linf"), torch.tensor(0.1), atol=1e-6)
    plain = geometry.random_start(x, "linf", 0.1, SEEDS, "s", (0,), boundary=False)
    assert (geometry.length(plain - x, "linf") < 0.1).all()
    sphere = geometry.random_start(x, "l2", 0.7, SEEDS, "s", (0,), boundary=True)
    assert torch.allclose(geometry.length(sphere - x, "l2"), torch.tensor(0.7), atol=1e-5)


def test_noise_belongs_to_the_image_and_not_to_its_company():
    whole = noise.normal(SEEDS, "s", (1, 2), (4,))
    alone = noise.normal(SEEDS[5:6], "s", (1, 2), (4,))
    shuffled = noise.normal(SEEDS[::-1], "s", (1, 2), (4,))
    assert torch.equal(whole[5:6], alone)
    assert torch.equal(shuffled.flip(0), whole)
    assert len({tuple(row) for row in whole.tolist()}) == 8
    assert not torch.equal(noise.normal(SEEDS, "s", (2, 1), (4,)), whole)
    assert not torch.equal(noise.normal(SEEDS, "t", (1, 2), (4,)), whole)


def test_image_seeds_differ_by_item_and_by_run_seed():
    first, second = noise.image_seeds(1, np.arange(100)), noise.image_seeds(2, np.arange(100))
    assert len(set(first) | set(second)) == 200
    assert noise.image_seeds(1, np.array([42]))[0] == first[42]
    assert noise.image_seeds(2**63, np.array([0])).dtype == np.int64


def test_uniform_start_noise_is_uniform():
    # Kolmogorov-Smirnov at level 1e-6: false alarm once in a million seeds.
    from scipy import stats

    drawn = noise.uniform(np.arange(200), "s", (0,), (100,)).numpy().ravel()
    assert stats.kstest(drawn, "uniform").pvalue > 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_points_outside_ball_or_box_or_not_finite_are_infeasible(norm):
    x = torch.full((4, 1, 2, 2), 0.5)
    point = x.clone()
    point[0, 0, 0, 0] += 0.2
    point[1, 0, 0, 0] = torch.nan
    point[2] = 0.55
    point[3, 0, 1, 1] = -0.01
    wide = geometry.feasible(point, x, norm, 0.1)
    assert wide.tolist() == [False, False, True, False]
    with pytest.raises(geometry.GeometryError, match=r"item 70 .*item 71"):
        geometry.require_feasible(point, x, norm, 0.1, np.array([70, 71, 72, 73]))
    geometry.require_feasible(point[2:3], x[2:3], norm, 0.1, np.array([72]))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.004, 0.3), st.booleans())
def test_quantised_linf_points_never_leave_the_ball(seed, epsilon, on_grid):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.uniform(size=(4, 1, 6, 6))).float()
    if on_grid:
        x = torch.round(255 * x) / 255
    corner = torch.tensor(rng.choice([-1.0, 1.0], size=x.shape)).float()
    point = geometry.project(x + epsilon * corner, x, "linf", epsilon)
    stored, inside = geometry.quantise(point, x, "linf", epsilon)
    back = stored.float() / 255
    assert stored.dtype == torch.uint8
    # An interval wider than one level always holds an 8-bit value.
    assert inside.all()
    assert (geometry.length(back - x, "linf") <= epsilon + geometry.tolerance(epsilon)).all()
    assert (geometry.length(back - point, "linf") <= 1 / 255 + 1e-6).all()


def test_quantisation_of_a_grid_image_with_a_grid_radius_keeps_the_full_radius():
    x = torch.arange(256).float().reshape(1, 1, 16, 16) / 255
    epsilon = 8 / 255
    point = geometry.project(x + epsilon, x, "linf", epsilon)
    stored, inside = geometry.quantise(point, x, "linf", epsilon)
    expected = torch.arange(256).add(8).clamp(max=255).reshape(1, 1, 16, 16)
    assert inside.all()
    assert torch.equal(stored.long(), expected)


def test_quantisation_says_so_where_no_8_bit_value_is_inside():
    x = torch.full((1, 1, 2, 2), 0.5 / 255)
    _, inside = geometry.quantise(x, x, "linf", 0.1 / 255)
    assert not inside.any()
    _, inside = geometry.quantise(x, x, "l2", 0.1 / 255)
    assert not inside.any()
