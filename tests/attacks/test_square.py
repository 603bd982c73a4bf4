import itertools

import numpy as np
import pytest
import torch

from certbench.attacks import geometry, noise, pgd, square
from certbench.attacks.target import Target

SHAPE = (3, 10, 10)


def settings_of(norm="linf", epsilon=0.05, **more):
    return square.Params(norm=norm, epsilon=epsilon, **more)


def test_window_sides_of_an_imagenet_image_equal_the_reference():
    params = settings_of()
    sides = {0: 200, 10: 200, 11: 142, 51: 100, 201: 71, 501: 50, 1001: 35, 2001: 25, 4001: 18}
    for query, side in sides.items():
        assert square.window_side(query, params, 224, 224) == side
    assert square.window_side(4999, params, 224, 224) == 18


def test_the_schedule_can_be_stretched_to_the_number_of_queries():
    params = settings_of(queries=100, rescale_schedule=True)
    assert square.window_share(0, params) == 0.8
    assert square.window_share(99, params) == 0.8 / 512
    assert square.window_share(99, settings_of(queries=100)) == 0.8 / 4


def test_windows_fit_non_square_images_and_are_odd_in_l2():
    for query in range(0, 5000, 7):
        assert square.window_side(query, settings_of(), 24, 40) <= 24
        side = square.window_side(query, settings_of("l2", 1.0), 24, 40)
        assert 3 <= side <= 24 and (side % 2 == 1 or side == 24)


def test_every_window_position_is_drawn():
    x = torch.zeros(4000, 1, 6, 8)
    drawn = noise.uniform(np.arange(4000), "t", (0,), (2,))
    corners = square._corner(drawn, 3, x)
    # 4 x 6 positions; each is missed by 4000 draws with probability below 24 * e^-166.
    assert len({tuple(c) for c in corners.tolist()}) == 24
    assert corners.amax(0).tolist() == [3, 5]
    assert square._corner(torch.tensor([[0.99999999, 1.0]]), 3, x).tolist() == [[3, 5]]


class Scripted:
    """The published attack with our random numbers, recording every point it evaluates."""

    def __init__(self, published, model, params, queries):
        name = {"linf": "Linf", "l2": "L2"}[params.norm]
        self.points = []

        def predict(x):
            self.points.append(x.clone())
            return model(x)

        self.attack = published.SquareAttack(
            predict, norm=name, n_queries=queries, eps=params.epsilon, resc_schedule=False
        )
        self.signs, self.integers, self.flips = [], [], []
        self.attack.random_choice = lambda shape: self.signs.pop(0).reshape(shape)
        self.attack.random_int = lambda low, high, shape=None: self.integers.pop(0)
        plain = square._pyramid
        self.attack.eta = lambda s: (
            plain(s, torch.device("cpu")).T
            if self.flips.pop(0)
            else plain(s, torch.device("cpu")).clone()
        )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_query_equals_the_published_code_given_its_random_numbers(linear, middle, norm):
    published = pytest.importorskip("pyautoattack.square")
    model = linear(4, SHAPE, 0, scale=0.1)
    x = middle(1, SHAPE, 3)
    y = model(x).argmax(1)
    queries, seeds = 40, np.array([11])
    params = settings_of(norm, 1e-3 if norm == "linf" else 5e-3, queries=queries)
    ours = []

    def recorded(points):
        ours.append(points.clone())
        return model(points)

    outcome = square.run(Target(recorded), x, y, params, seeds)
    assert not outcome.broken.any()

    script = Scripted(published, model, params, queries)
    sign = square._sign
    if norm == "linf":
        script.signs.append(sign(noise.uniform(seeds, "square.stripes", (0,), (3, 1, 10))))
    else:
        tiles = noise.uniform(seeds, "square.tiles", (0,), (4, 5, 5))[0]
        for down in range(5):
            for across in range(5):
                script.flips.append(bool(tiles[0, down, across] > 0.5))
                script.signs.append(sign(tiles[1:, down, across]))
    head = 2 if norm == "linf" else 5
    drawn = noise.uniform(seeds, "square.window", (0, 0), (queries, head + 3))
    for query in range(queries):
        side = square.window_side(query, params, 10, 10)
        row = drawn[:, query]
        for pair in range(0, head - 1, 2):
            script.integers += square._corner(row[:, pair : pair + 2], side, x)[0].tolist()
        script.signs.append(sign(row[0, head:]))
        script.flips.append(bool(row[0, 4] > 0.5))
    script.attack.init_hyperparam(x)
    script.attack.attack_single_run(x, y)
    theirs = script.points
    assert len(ours) == len(theirs) == queries + 1
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)


def test_pyramids_equal_the_published_patterns():
    published = pytest.importorskip("pyautoattack.square")
    attack = published.SquareAttack(lambda x: x, norm="L2", eps=1.0, device="cpu")
    for side in (2, 3, 5, 8, 13):
        theirs = attack.eta(side)
        ours = square._pyramid(side, torch.device("cpu"))
        assert torch.allclose(theirs, ours, atol=1e-6) or torch.allclose(theirs, ours.T, atol=1e-6)
        assert ours.norm().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.012), ("l2", 0.12)])
def test_columns_do_not_depend_on_batch_size_or_order(make_work, linear, middle, norm, epsilon):
    model = linear(5, SHAPE, 0)
    x = middle(10, SHAPE, 1)
    y = model(x).argmax(1)
    # More queries than one block of random numbers.
    params = settings_of(norm, epsilon, queries=260, restarts=2)
    tables = [
        square.attack(make_work(params, model, x, y, batch_size=size, num_classes=5))
        for size in (5, 64)
    ]
    order = np.random.default_rng(0).permutation(10)
    shuffled = square.attack(
        make_work(params, model, x[order], y[order], item_index=order, num_classes=5)
    )
    assert set(tables[0]["status"]) == {"broken", "survived"}
    for name, column in tables[0].items():
        np.testing.assert_array_equal(column, tables[1][name], err_msg=name)
        np.testing.assert_array_equal(column[order], shuffled[name], err_msg=name)
    survived = tables[0]["status"] == "survived"
    assert (tables[0]["n_forward"][survived] == 1 + 2 * 261).all()
    assert (tables[0]["n_backward"] == 0).all()
    once = (tables[0]["restart"] == 0) & ~survived
    steps = tables[0]["iterations_to_success"]
    # Clean label, queries with the start, confirmation, 8-bit copy.
    np.testing.assert_array_equal(tables[0]["n_forward"][once], steps[once] + 4)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.01), ("l2", 0.1)])
def test_points_stay_in_the_ball_and_margins_never_rise(linear, middle, norm, epsilon):
    model = linear(4, SHAPE, 0)
    x = middle(12, SHAPE, 2)
    y = model(x).argmax(1)
    seen = []

    def watched(points):
        seen.append((len(points), points.clone()))
        return model(points)

    outcomes = [
        square.run(Target(watched), x, y, settings_of(norm, epsilon, queries=q), np.arange(12))
        for q in (1, 20, 150)
    ]
    for count, points in seen:
        if count == 12:
            assert geometry.feasible(points, x, norm, epsilon).all()
    for weaker, stronger in itertools.pairwise(outcomes):
        assert (stronger.margin <= weaker.margin).all()
        assert (weaker.broken <= stronger.broken).all()
    final = outcomes[-1]
    assert (final.margin < outcomes[0].margin).any()
    geometry.require_feasible(final.x_adv, x, norm, epsilon, np.arange(12))
    assert torch.equal(model(final.x_adv).argmax(1) != y, final.broken)


def test_square_approaches_the_exact_robustness_of_a_linear_classifier(linear, middle):
    model = linear(2, (1, 6, 6), 0)
    x = middle(40, (1, 6, 6), 1)
    y = model(x).argmax(1)
    logits = model(x)
    gap = (logits[:, 0] - logits[:, 1]).abs()
    distance = gap / (model.weight[0] - model.weight[1]).abs().sum()
    epsilon = 0.02
    params = settings_of(epsilon=epsilon, queries=1500)
    outcome = square.run(Target(model), x, y, params, np.arange(40))
    assert not outcome.broken[distance > epsilon].any()
    easy = distance < 0.8 * epsilon
    assert 3 < int(easy.sum()) < 37
    assert outcome.broken[easy].all()


def test_square_needs_no_gradients_and_finds_what_masked_gradients_hide(make_work, linear, middle):
    model = linear(4, SHAPE, 0)

    def stepped(x):
        with torch.no_grad():
            return model((x * 255).round() / 255)

    x = middle(20, SHAPE, 1)
    y = stepped(x).argmax(1)
    params = settings_of(epsilon=0.02, queries=150)
    work = make_work(params, None, x, y, num_classes=4, scores=stepped)
    table = square.attack(work)
    assert (table["status"] == "broken").sum() > 10

    def flat(x):
        return stepped(x) + 0 * x.flatten(1).sum(1, keepdim=True)

    white = pgd.attack(
        make_work(pgd.Params(epsilon=0.02, steps=5, random_start=False), flat, x, y, num_classes=4)
    )
    assert (white["status"] == "broken").sum() == 0


def test_an_exact_tie_ends_the_search_without_success():
    def tied(x):
        return torch.zeros(len(x), 3)

    x = torch.full((2, 1, 4, 4), 0.5)
    y = torch.zeros(2, dtype=torch.int64)
    outcome = square.run(Target(tied), x, y, settings_of(queries=50), np.arange(2))
    assert not outcome.broken.any()
    assert outcome.n_forward.tolist() == [1, 1]


def test_a_separate_judge_decides_on_its_schedule(linear, middle):
    model = linear(4, SHAPE, 0)
    calls = []

    def judge(points):
        calls.append(len(points))
        shifted = model(points)
        top = shifted.topk(2, dim=1)
        # Answers wrongly only behind a margin.
        return torch.where(top.values[:, 0] - top.values[:, 1] > 0.5, top.indices[:, 0], y[0])

    x = middle(30, SHAPE, 1)
    labels = model(x).argmax(1)
    y = labels[labels == labels[0]]
    x = x[labels == labels[0]]
    target = Target(model, judge, judge_every=20)
    outcome = square.run(target, x, y, settings_of(epsilon=0.03, queries=100), np.arange(len(x)))
    assert outcome.broken.any() and len(calls) <= 5
    assert torch.equal(judge(outcome.x_adv) != y, outcome.broken)
    assert (outcome.iterations_to_success[outcome.broken] % 20 == 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(3, 24, 40), (1, 3, 3), (2, 19, 7)])
def test_all_shapes_are_attacked(linear, middle, norm, shape):
    model = linear(3, shape, 0, scale=0.1)
    x = middle(3, shape, 1)
    y = model(x).argmax(1)
    params = settings_of(norm, 0.01, queries=60)
    outcome = square.run(Target(model), x, y, params, np.arange(3))
    geometry.require_feasible(outcome.x_adv, x, norm, 0.01, np.arange(3))
