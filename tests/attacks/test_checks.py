import numpy as np
import pytest
import torch

from certbench.attacks import apgd, autoattack, checks, geometry
from certbench.attacks.target import Target

SHAPE = (1, 5, 4)
SEEDS = np.arange(40)


@pytest.fixture
def linear_case(linear, middle):
    model = linear(10, SHAPE, 0)
    x = middle(40, SHAPE, 1)
    return model, x, model(x).argmax(1)


def climbing(epsilon=0.05, **more):
    return apgd.Params(epsilon=epsilon, **{"steps": 20, "allow_short": True, **more})


def quantised(model):
    """The model behind 8 grey levels: gradients are exactly zero."""
    return lambda x: model((x * 7).round() / 7)


def test_c1_finds_randomised_models(linear_case):
    model, x, y = linear_case
    torch.manual_seed(0)
    assert not checks.randomised(model, x, y).alarm
    noisy = checks.randomised(lambda p: model(p + 0.01 * torch.randn_like(p)), x, y)
    assert noisy.alarm and noisy.value > 1e-4
    assert noisy.row()["check"] == "C1"


def test_c2_finds_probabilities(linear_case):
    model, x, _ = linear_case
    assert not checks.probabilities(model(x)).alarm
    assert checks.probabilities(model(x).softmax(1)).alarm
    assert not checks.probabilities(model(x).log_softmax(1)).alarm


def test_c3_finds_zero_gradients(linear_case):
    model, x, y = linear_case
    assert not checks.zero_gradient(Target(model), x, y, climbing(), SEEDS).alarm
    masked = checks.zero_gradient(Target(quantised(model)), x, y, climbing(), SEEDS)
    assert masked.alarm and masked.value == 1


def test_c4_counts_what_square_broke_first():
    flags = np.array(["", "zero_gradient,square_better", "late_best"] + [""] * 997)
    found = checks.square_lowers({"check_flags": flags})
    assert found.value == pytest.approx(0.1) and not found.alarm
    flags[2:5] = "square_better"
    assert checks.square_lowers({"check_flags": flags}).alarm


@pytest.mark.parametrize(
    "differentiate",
    [
        lambda x, f: torch.autograd.grad(f(x), x),
        lambda x, f: f(x).backward(),
        lambda x, f: torch.autograd.backward(f(x)),
        lambda x, f: torch.func.grad(f)(x),
    ],
)
def test_c5_finds_models_that_differentiate_while_they_predict(linear_case, differentiate):
    model, x, _ = linear_case

    def purified(points):
        with torch.enable_grad():
            points = points.detach().requires_grad_(True)
            differentiate(points, lambda p: (p**2).sum())
        return model(points.detach())

    assert not checks.dynamic(model, x[:1]).alarm
    assert checks.dynamic(purified, x[:1]).alarm


def test_c6_counts_wrong_classes():
    assert not checks.target_count(10).alarm
    assert checks.target_count(7).alarm


def test_c7_sees_a_falling_curve_and_a_broken_attack(linear_case):
    model, x, y = linear_case
    sound = checks.accuracy_curve(Target(model), x, y, climbing(0.006), SEEDS)
    assert [c.alarm for c in sound] == [False, False]
    masked = quantised(model)
    labels = masked(x).argmax(1)
    broken = checks.accuracy_curve(Target(masked), x, labels, climbing(1e-7), SEEDS)
    assert broken[0].alarm and broken[0].value == 0


def test_c8_sees_whether_the_loss_is_climbed(linear_case):
    model, x, y = linear_case
    rows = torch.arange(40)

    def climb(logits, steps):
        target = Target(logits)
        target.bind(x)
        run = apgd.Climb(target, x, y, rows, climbing(steps=steps), checks.losses.LOSSES["ce"])
        run.run(x)
        return checks.enough_steps(run)

    rising, converged = climb(model, 60)
    assert not rising.alarm and not converged.alarm
    flat, _ = climb(quantised(model), 20)
    assert flat.alarm
    _, short = climb(lambda p: model(p) + 5 * model(p).roll(1, 1) * (p - 0.5).mean(), 1)
    assert short.alarm


def test_c9_sees_noise_that_breaks_what_the_attack_left(linear_case):
    model, x, y = linear_case
    good = checks.broken_by(Target(model), x, y, climbing(0.1), SEEDS)
    assert not checks.noise_against_attack(Target(model), x, y, climbing(0.1), SEEDS, good).alarm
    nothing = torch.zeros(40, dtype=torch.bool)
    found = checks.noise_against_attack(Target(model), x, y, climbing(0.1), SEEDS, nothing)
    assert found.alarm and found.value >= 1


def test_c10_sees_transfer_that_beats_the_white_box(linear_case):
    model, x, y = linear_case
    params = climbing(0.15)
    transferred = apgd.run(Target(model), x, y, params, SEEDS)
    masked = quantised(model)
    labels = masked(x).argmax(1)
    white = checks.broken_by(Target(masked), x, labels, params, SEEDS)
    target = Target(masked)
    found = checks.transfer_against_white_box(target, transferred.x_adv, labels, white)
    assert found.alarm and found.value > 0.5
    same = checks.transfer_against_white_box(
        Target(model), transferred.x_adv, y, transferred.broken
    )
    assert not same.alarm and same.value == 0


def test_c11_sees_saturating_cross_entropy(linear_case):
    model, x, y = linear_case
    params = climbing(0.012, steps=60, random_start=False)
    assert checks.logit_scale(model, x, y, params, SEEDS).alarm

    def invariant(points):
        logits = model(points)
        return logits / logits.std(dim=1, keepdim=True).detach()

    assert checks.logit_scale(lambda p: 1e-3 * invariant(p), x, y, params, SEEDS).value >= 0


def test_c12_sees_unusable_gradients(linear_case):
    model, x, y = linear_case
    assert not checks.unbounded_targets(Target(model), x, y, climbing(steps=100), SEEDS).alarm
    found = checks.unbounded_targets(Target(quantised(model)), x, y, climbing(), SEEDS)
    assert found.alarm


def test_examination_gives_every_check_as_a_row(linear_case, make_work):
    model, x, y = linear_case
    params = autoattack.Params(
        epsilon=0.006, suite="custom", attacks=("apgd-ce", "square"), queries=50
    )
    work = make_work(params, model, x, y, num_classes=10)
    columns = autoattack.attack(work)
    adversarial = torch.from_numpy(columns["x_adv"])
    geometry.require_feasible(adversarial, x, "linf", 0.006, SEEDS)
    found = checks.examine(work, columns, steps=50, surrogate_adv=adversarial)
    assert list(dict.fromkeys(c.check for c in found)) == [f"C{i}" for i in range(1, 13)]
    assert set(checks.alarms(found)) <= {"C8", "C11"}
    masked = make_work(params, quantised(model), x, quantised(model)(x).argmax(1), num_classes=10)
    assert {"C3", "C7", "C8", "C12"} <= set(checks.alarms(checks.examine(masked, steps=50)))
    blind = make_work(params, None, x, y, num_classes=10, scores=model)
    left = checks.examine(blind, columns)
    assert {c.check for c in left} == {"C1", "C2", "C4", "C5", "C6", "C9", "C10"}
    # Without a surrogate's images the check is there, without a number, and says why.
    (missing,) = [c for c in left if c.check == "C10"]
    assert np.isnan(missing.value) and not missing.alarm
    assert "names no surrogate" in missing.test
