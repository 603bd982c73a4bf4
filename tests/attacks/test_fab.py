import numpy as np
import pytest
import torch

from certbench.attacks import fab, geometry
from certbench.attacks.outcome import FLAGS
from certbench.attacks.target import Target

SHAPE = (1, 5, 4)
SMALLEST = [0.08345, 0.04569, 0.07065, 0.02529]


def settings_of(norm="linf", epsilon=0.05, **more):
    return fab.Params(norm=norm, epsilon=epsilon, **more)


def exact_distances(model, x, y, norm):
    order = 1 if norm == "linf" else 2
    weight = model.weight.double()
    slopes = torch.linalg.vector_norm(weight[y][:, None] - weight[None], ord=order, dim=2)
    logits = model(x).double()
    gaps = logits.gather(1, y[:, None]) - logits
    return (gaps / slopes).scatter(1, y[:, None], torch.inf).amin(1)


@pytest.mark.parametrize("targeted", [False, True])
def test_smallest_norms_of_the_toy_network_equal_the_reference(toy, toy_x, toy_y, targeted):
    # A radius below all of them keeps every target in play.
    params = settings_of(epsilon=1e-4, targeted=targeted, targets=5)
    outcome = fab.run(Target(toy), toy_x, toy_y, params, np.arange(4))
    np.testing.assert_allclose(outcome.extra["distance"].numpy(), SMALLEST, atol=5e-3)
    assert not outcome.broken.any()


@pytest.mark.parametrize("epsilon", [0.02, 0.03, 0.05, 0.08, 0.10])
def test_robust_counts_of_the_toy_network_equal_the_reference(toy, toy_x, toy_y, epsilon):
    outcome = fab.run(Target(toy), toy_x, toy_y, settings_of(epsilon=epsilon), np.arange(4))
    expected = {0.02: 4, 0.03: 3, 0.05: 2, 0.08: 1, 0.10: 0}[epsilon]
    assert int((~outcome.broken).sum()) == expected
    geometry.require_feasible(outcome.x_adv, toy_x, "linf", epsilon, np.arange(4))
    assert torch.equal(toy(outcome.x_adv).argmax(1) != toy_y, outcome.broken)
    assert torch.equal(outcome.margin < 0, outcome.broken)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_distances_on_linear_classifiers_are_within_one_per_cent(linear, middle, norm, targeted):
    model = linear(5, SHAPE, 0)
    x = middle(40, SHAPE, 1)
    y = model(x).argmax(1)
    params = settings_of(norm, 1e-5, targeted=targeted, targets=4)
    found = fab.run(Target(model), x, y, params, np.arange(40)).extra["distance"]
    exact = exact_distances(model, x, y, norm)
    assert (found >= exact * (1 - 1e-3)).all()
    assert (found <= exact * 1.01 + 1e-6).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_distances_agree_with_the_published_code(norm, targeted):
    published = pytest.importorskip("pyautoattack.fab_pt")
    torch.manual_seed(0)
    conv = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    ).eval()
    conv.requires_grad_(False)
    x = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    y = conv(x).argmax(1)
    ours = fab.run(
        Target(conv), x, y, settings_of(norm, 1e-6, targeted=targeted, targets=1), np.arange(16)
    )
    reference = published.FABAttack_PT(
        conv, norm={"linf": "Linf", "l2": "L2"}[norm], eps=1e-6, targeted=targeted, device="cpu"
    )
    reference.target_class = 2
    theirs = reference.attack_single_run(x, y, is_targeted=targeted)
    size = geometry.length(theirs - x, norm)
    # Linf follows the authors' arithmetic to the last bit.
    tolerance = 0 if norm == "linf" else 2e-3
    np.testing.assert_allclose(ours.extra["distance"].numpy(), size.numpy(), rtol=tolerance)


def test_a_surviving_image_costs_what_the_method_says(linear, middle):
    model = linear(10, SHAPE, 0)
    x = middle(3, SHAPE, 1)
    y = model(x).argmax(1)
    target = Target(model)
    target.clean_logits = model(x)
    outcome = fab.run(target, x, y, settings_of(epsilon=1e-6), np.arange(3))
    assert outcome.n_forward.tolist() == [9 * 200] * 3
    assert outcome.n_backward.tolist() == [9 * 100] * 3
    untargeted = fab.run(
        Target(model), x, y, settings_of(epsilon=1e-6, targeted=False, steps=7), np.arange(3)
    )
    assert untargeted.n_forward.tolist() == [14] * 3
    assert untargeted.n_backward.tolist() == [70] * 3


@pytest.mark.parametrize("classes", [2, 3, 5, 9])
def test_few_classes_cap_the_targets(linear, middle, classes):
    model = linear(classes, SHAPE, 0)
    x = middle(6, SHAPE, 1)
    y = model(x).argmax(1)
    outcome = fab.run(Target(model), x, y, settings_of(epsilon=1e-6, steps=5), np.arange(6))
    assert outcome.n_backward.tolist() == [(classes - 1) * 5] * 6
    assert ((outcome.flags & FLAGS["targets_capped"]) > 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_columns_do_not_depend_on_batch_size_or_order(make_work, linear, middle, norm):
    model = linear(5, SHAPE, 0)
    x = middle(14, SHAPE, 1)
    y = model(x).argmax(1)
    params = settings_of(norm, 0.012 if norm == "linf" else 0.06, steps=10, restarts=2, targets=3)
    tables = [
        fab.attack(make_work(params, model, x, y, batch_size=size, num_classes=5))
        for size in (1, 7, 64)
    ]
    order = np.random.default_rng(0).permutation(14)
    shuffled = fab.attack(
        make_work(params, model, x[order], y[order], item_index=order, num_classes=5)
    )
    assert set(tables[0]["status"]) == {"broken", "survived"}
    assert set(fab.columns) <= set(tables[0])
    for name, column in tables[0].items():
        for other in tables[1:]:
            np.testing.assert_array_equal(column, other[name], err_msg=name)
        np.testing.assert_array_equal(column[order], shuffled[name], err_msg=name)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_restarts_begin_at_half_the_smaller_of_radius_and_distance(middle, norm):
    x = middle(3, SHAPE, 0)
    distance = torch.tensor([0.01, torch.inf, 0.08], dtype=torch.float64)
    rows = torch.arange(3)

    def start(restart):
        params = settings_of(norm, 0.04)
        return fab._restart_point(x, rows, distance, params, np.arange(3), (2, restart))

    size = geometry.length(start(1) - x, norm)
    assert torch.allclose(size, torch.tensor([0.005, 0.02, 0.02]), atol=1e-6)
    assert torch.equal(start(1), start(1)) and not torch.equal(start(1), start(2))


def test_restarts_never_lengthen_the_distance_and_cost_a_run_each(toy, toy_x, toy_y):
    def attack(restarts):
        params = settings_of(epsilon=0.02, steps=4, targets=2, restarts=restarts)
        return fab.run(Target(toy), toy_x, toy_y, params, np.arange(4))

    one, many = attack(1), attack(3)
    assert (many.extra["distance"] <= one.extra["distance"]).all()
    assert torch.equal(many.n_backward, 3 * one.n_backward)


def test_a_separate_judge_sets_the_distance(linear, middle):
    model = linear(4, SHAPE, 0)
    x = middle(20, SHAPE, 1)

    def judge(points):
        logits = model(points)
        other = logits.topk(2, dim=1)
        stubborn = other.values[:, 0] - other.values[:, 1] < 0.02
        return torch.where(stubborn, model(x).argmax(1)[: len(points)], logits.argmax(1))

    y = model(x).argmax(1)
    params = settings_of(epsilon=0.2, judge_every=1, targets=3)
    free = fab.run(Target(model), x, y, settings_of(epsilon=0.2, targets=3), np.arange(20))
    outcome = fab.run(Target(model, judge, judge_every=1), x, y, params, np.arange(20))
    won = outcome.broken
    assert won.any()
    assert (outcome.extra["distance"][won] >= free.extra["distance"][won] - 1e-6).all()
