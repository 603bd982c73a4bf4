import numpy as np
import pytest
import torch
from scipy import optimize

from certbench.attacks.hyperplane import displacement


def random_cases(count, dimension, seed):
    rng = np.random.default_rng(seed)
    t = rng.uniform(size=(count, dimension))
    t[rng.uniform(size=t.shape) < 0.1] = 0.0
    t[rng.uniform(size=t.shape) < 0.1] = 1.0
    w = rng.normal(size=(count, dimension))
    w[rng.uniform(size=w.shape) < 0.2] = 0.0
    b = (w * rng.uniform(size=(count, dimension))).sum(1)
    return t, w, b


def test_displacements_of_the_worked_example():
    t, w = torch.tensor([[0.2, 0.9, 0.5, 0.05]]), torch.tensor([[1.0, -2.0, 0.5, 0.0]])
    b = torch.tensor([0.6])
    linf = displacement(t, w, b, "linf")[0].tolist()
    assert linf == pytest.approx([0.566667, -0.566667, 0.5, 0], abs=1e-6)
    l2 = displacement(t, w, b, "l2")[0]
    assert l2.tolist() == pytest.approx([0.371429, -0.742857, 0.185714, 0], abs=1e-6)
    assert l2.norm().item() == pytest.approx(0.851050, abs=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_displacements_are_feasible_and_reach_the_plane(norm):
    t, w, b = (torch.tensor(a).float() for a in random_cases(500, 30, 0))
    moved = t + displacement(t, w, b, norm)
    assert ((moved >= -1e-6) & (moved <= 1 + 1e-6)).all()
    assert torch.allclose((w * moved).sum(1), b, atol=2e-5)


def test_linf_displacement_equals_linear_programming():
    t, w, b = random_cases(40, 8, 1)
    ours = displacement(*(torch.tensor(a).float() for a in (t, w, b)), "linf").abs().amax(1)
    for i in range(40):
        # Variables: d (8) and the bound s on |d|; minimise s.
        eye, ones = np.eye(8), np.ones((8, 1))
        solved = optimize.linprog(
            [0] * 8 + [1],
            A_ub=np.block([[eye, -ones], [-eye, -ones]]),
            b_ub=np.zeros(16),
            A_eq=np.append(w[i], 0)[None],
            b_eq=[b[i] - w[i] @ t[i]],
            bounds=[*zip(-t[i], 1 - t[i], strict=True), (0, None)],
        )
        assert ours[i].item() == pytest.approx(solved.fun, abs=1e-5)


def test_l2_displacement_fulfils_the_optimality_conditions():
    t, w, b = (torch.tensor(a).double() for a in random_cases(200, 12, 2))
    d = displacement(t.float(), w.float(), b.float(), "l2").double()
    moved = t + d
    free = (moved > 1e-5) & (moved < 1 - 1e-5) & (w.abs() > 1e-6)
    for i in range(200):
        # On coordinates off the walls d is a multiple of w; on the walls it is a shorter one.
        ratio = (d[i] / w[i])[free[i]]
        if len(ratio) == 0:
            continue
        assert (ratio - ratio[0]).abs().max() < 1e-4
        walls = ~free[i] & (w[i].abs() > 1e-3)
        assert ((d[i] / w[i])[walls].abs() <= ratio[0].abs() + 1e-4).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_unreachable_planes_give_the_nearest_corner(norm):
    t, w = torch.tensor([[0.3, 0.6, 0.5]]), torch.tensor([[1.0, -1.0, 0.0]])
    above = displacement(t, w, torch.tensor([5.0]), norm)
    assert torch.allclose(t + above, torch.tensor([[1.0, 0.0, 0.5]]))
    below = displacement(t, w, torch.tensor([-5.0]), norm)
    assert torch.allclose(t + below, torch.tensor([[0.0, 1.0, 0.5]]))
    still = displacement(t, torch.zeros(1, 3), torch.tensor([1.0]), norm)
    assert torch.equal(still, torch.zeros(1, 3))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_displacements_equal_the_published_code(norm):
    published = pytest.importorskip("pyautoattack.fab_projections")
    t, w, b = (torch.tensor(a).float() for a in random_cases(300, 50, 3))
    theirs = getattr(published, f"projection_{norm}")(t, w, b)
    assert torch.allclose(displacement(t, w, b, norm), theirs, atol=3e-5)
