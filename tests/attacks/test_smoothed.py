import numpy as np
import pytest
import torch
from scipy import stats

from certbench.attacks import losses, pgd
from certbench.attacks.smoothed import SmoothedLogits, log_mean_softmax
from certbench.attacks.target import Target

SHAPE = (1, 4, 3)


def step_model(weight, bias):
    """Two classes, hard decision: no gradient anywhere."""

    def logits(x):
        side = (x.flatten(1).double() @ weight - bias) > 0
        return 200.0 * torch.stack([side, ~side], 1).float()

    return logits


def test_objective_is_the_log_of_the_mean_probability():
    draws = torch.tensor([[[2.0, 0.0, -1.0]], [[0.0, 1.0, 0.0]], [[3.0, -1.0, 1.0]]])
    y = torch.tensor([0])
    smoothed = log_mean_softmax(draws)
    assert losses.cross_entropy(smoothed, y).item() == pytest.approx(0.444960, abs=1e-6)
    mean_ce = torch.stack([losses.cross_entropy(z, y) for z in draws]).mean()
    assert mean_ce.item() == pytest.approx(0.621407, abs=1e-6)


def test_log_probabilities_sum_to_one_and_are_kept_above_the_floor():
    torch.manual_seed(0)
    z = 3 * torch.randn(7, 5, 4)
    assert torch.allclose(log_mean_softmax(z).exp().sum(1), torch.ones(5), atol=1e-6)
    far = torch.tensor([[[0.0, -500.0]]])
    assert log_mean_softmax(far)[0, 1].item() == pytest.approx(np.log(1e-20))


def test_probabilities_of_a_hard_linear_classifier_equal_the_normal_distribution():
    rng = np.random.default_rng(0)
    weight = torch.tensor(rng.normal(size=12))
    x = torch.tensor(rng.uniform(size=(4, *SHAPE))).float()
    bias = float((x.flatten(1).double() @ weight).mean())
    sigma, draws = 0.4, 4000
    smooth = SmoothedLogits(step_model(weight, bias), sigma, draws, seed64=3)
    estimated = smooth(x, items=np.arange(4)).exp()[:, 0]
    z = ((x.flatten(1).double() @ weight) - bias) / (sigma * weight.norm())
    exact = torch.tensor(stats.norm.cdf(z.numpy()))
    # Binomial deviation over 4 images; false alarm below 1e-6 (5.5 standard deviations).
    error = (exact * (1 - exact) / draws).sqrt() * 5.5
    assert ((estimated - exact).abs() < error + 1e-4).all()


def test_score_gradient_equals_the_analytic_gradient_of_a_hard_classifier():
    rng = np.random.default_rng(1)
    weight = torch.tensor(rng.normal(size=12))
    x = torch.tensor(rng.uniform(size=(3, *SHAPE))).float()
    bias = float((x.flatten(1).double() @ weight).mean())
    sigma, draws = 0.5, 20000
    smooth = SmoothedLogits(step_model(weight, bias), sigma, draws, gradient="score")
    point = x.clone().requires_grad_(True)
    logp = smooth(point, items=np.arange(3))[:, 0]
    (slope,) = torch.autograd.grad(logp.sum(), point)
    z = ((x.flatten(1).double() @ weight) - bias) / (sigma * weight.norm())
    density, mass = stats.norm.pdf(z.numpy()), stats.norm.cdf(z.numpy())
    exact = torch.tensor(density / mass)[:, None] * weight / (sigma * weight.norm())
    # Each coordinate of the estimate is a mean of 20000 terms of variance at most
    # 1/(4 p^2 sigma^2) (probabilities centred); six deviations on 36 coordinates: alarm < 1e-7.
    bound = 6 / (2 * mass.min() * sigma * draws**0.5)
    assert (slope.flatten(1) - exact).abs().max() < bound
    cosine = torch.cosine_similarity(slope.flatten(1).double(), exact)
    assert (cosine > 0.98).all()


def test_score_gradient_is_unbiased_for_a_differentiable_model(toy, toy_x):
    items = np.arange(4)
    point = toy_x.clone().requires_grad_(True)
    exact = SmoothedLogits(toy, 0.5, 20000)
    (slope,) = torch.autograd.grad(exact(point, items=items)[:, 2].sum(), point)
    free = SmoothedLogits(toy, 0.5, 20000, gradient="score", seed64=9)
    (guess,) = torch.autograd.grad(free(point, items=items)[:, 2].sum(), point)
    assert (torch.cosine_similarity(slope.flatten(1), guess.flatten(1)) > 0.95).all()
    ratio = guess.flatten(1).norm(dim=1) / slope.flatten(1).norm(dim=1)
    assert ((ratio > 0.85) & (ratio < 1.2)).all()


@pytest.mark.parametrize("gradient", ["autograd", "score"])
def test_draws_belong_to_the_image_and_change_only_on_request(toy, toy_x, gradient):
    items = np.array([4, 8, 15, 16])
    smooth = SmoothedLogits(toy, 0.3, 50, gradient=gradient)
    whole = smooth(toy_x, items=items)
    assert torch.equal(smooth(toy_x, items=items), whole)
    alone = SmoothedLogits(toy, 0.3, 50, gradient=gradient)(toy_x[2:3], items=items[2:3])
    assert torch.allclose(alone, whole[2:3], atol=1e-5)
    subset = smooth(toy_x[[3, 1]], items=items[[3, 1]])
    assert torch.allclose(subset, whole[[3, 1]], atol=1e-5)
    smooth.redraw(1)
    assert not torch.allclose(smooth(toy_x, items=items), whole, atol=1e-5)
    smooth.redraw(0)
    assert torch.equal(smooth(toy_x, items=items), whole)


def test_gradients_do_not_depend_on_the_memory_bound(toy, toy_x):
    with torch.no_grad():
        small = SmoothedLogits(toy, 0.3, 40, batch_size=7)(toy_x, items=np.arange(4))
        large = SmoothedLogits(toy, 0.3, 40)(toy_x, items=np.arange(4))
    graph = SmoothedLogits(toy, 0.3, 40)(toy_x.requires_grad_(True), items=np.arange(4))
    assert torch.allclose(small, large, atol=1e-6) and torch.allclose(graph, large, atol=1e-6)


def test_attacking_the_objective_lowers_the_smoothed_probability_and_counts_every_pass(
    toy, toy_x, toy_y
):
    smooth = SmoothedLogits(toy, 0.25, 32)
    items = np.arange(4)
    target = Target(smooth, items=items)
    params = pgd.Params(
        epsilon=0.3, norm="l2", steps=20, step_size=0.1, restarts=1, random_start=False
    )
    outcome = pgd.run(target, toy_x, toy_y, params, items)
    before = smooth(toy_x, items=items).gather(1, toy_y[:, None])
    after = smooth(outcome.x_adv, items=items).gather(1, toy_y[:, None])
    won = outcome.broken
    assert won.any() and (after[won] < before[won]).all()
    survivors = ~won
    assert (outcome.n_forward[survivors] == 21 * 32).all()
    assert (outcome.n_backward[survivors] == 20 * 32).all()


def test_wrong_settings_are_refused(toy):
    with pytest.raises(ValueError, match="gradient"):
        SmoothedLogits(toy, 0.3, 10, gradient="nes")
    with pytest.raises(ValueError, match="2 draws"):
        SmoothedLogits(toy, 0.3, 1, gradient="score")


def smoothed_surface(network, **decide):
    from certbench.certify import randomized_smoothing as plugin
    from certbench.certify.protocol import SurfaceWork

    collect = plugin.CollectParams(sigma=0.5)
    chosen = plugin.attack_params(collect, plugin.DecideParams(predict_n=200, **decide))
    return plugin.attack_surface(SurfaceWork(network, chosen, 2, 3, "cpu", 256, "fast", "eager"))


class HardLinear(torch.nn.Module):
    """The sign of a linear function, as logits: no gradient anywhere."""

    num_classes = 2

    def __init__(self):
        super().__init__()
        self.weight = torch.tensor(np.random.default_rng(4).normal(size=12))
        self.bias = 0.5 * float(self.weight.sum())
        self.eval()

    def forward(self, x):
        side = (x.flatten(1).double() @ self.weight - self.bias) > 0
        return 20.0 * torch.stack([side, ~side], 1).float() + 0.0 * x.flatten(1).sum(1)[:, None]


def test_a_defended_model_without_gradients_is_attacked_through_its_scores(make_work):
    network = HardLinear()
    # Ten points at 0.4 from the plane, on both sides, spread along it.
    rng = np.random.default_rng(5)
    normal = network.weight / network.weight.norm()
    along = torch.tensor(rng.uniform(-0.1, 0.1, size=(10, 12)))
    along -= (along @ normal)[:, None] * normal
    side = torch.tensor([0.4, -0.4] * 5)[:, None]
    x = (0.5 + along + side * normal).float().reshape(10, *SHAPE)
    y = network(x).argmax(1)
    params = pgd.Params(
        epsilon=0.9, norm="l2", steps=6, restarts=1, random_start=False, judge_every=3
    )
    broken = {}
    for gradient, draws in (("autograd", 16), ("score", 1000)):
        surface = smoothed_surface(network, attack_draws=draws, attack_gradient=gradient)
        work = make_work(
            params,
            surface.logits,
            x,
            y,
            judge=surface.judge,
            num_classes=2,
            item_index=np.arange(10),
        )
        for name in ("attacked", "judged_by", "objectives"):
            setattr(work, name, getattr(surface, name))
        made = pgd.attack(work)
        broken[gradient] = int((made["status"] == "broken").sum())
        assert made["judged_by"][0] == "PREDICT, n = 200, alpha = 0.001"
        assert made["attacked"][0] == "smoothed"
        if gradient == "score":
            # Nothing is differentiated: no backward pass is counted, and only scores are known.
            assert (made["n_backward"] == 0).all() and made["knowledge"][0] == "scores"
        else:
            assert made["n_backward"].max() > 0 and made["knowledge"][0] == "gradients"
    # 0.9 along the normal leads 0.5 beyond the plane, one sigma: PREDICT answers wrongly there.
    # Without a gradient the attack walks in one random direction per image.
    assert broken["score"] == 10 and broken["autograd"] <= 4


def test_estimated_gradients_need_a_thousand_draws_and_gaussian_noise():
    from certbench.certify import randomized_smoothing, uniform_smoothing
    from certbench.errors import CertbenchError

    few = randomized_smoothing.DecideParams(attack_gradient="score", attack_draws=999)
    with pytest.raises(CertbenchError, match="999 draws are too few") as caught:
        randomized_smoothing.validate(
            randomized_smoothing.CollectParams(sigma=0.5), few, "defenses.rs"
        )
    assert caught.value.where == "defenses.rs.attack_draws"
    many = uniform_smoothing.DecideParams(attack_gradient="score", attack_draws=1000)
    with pytest.raises(CertbenchError, match="Gaussian noise"):
        uniform_smoothing.validate(
            uniform_smoothing.CollectParams(half_width=0.4), many, "defenses.u"
        )
