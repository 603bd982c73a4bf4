"""Surrogates of masked and voting defences against their definitions, and rows independent of
company."""

import numpy as np
import pytest
import torch

from certbench.attacks import adaptive, losses, masked, square
from certbench.attacks.target import Target
from certbench.certify import derandomized_smoothing, double_masking
from certbench.certify.protocol import SurfaceWork
from certbench.errors import CertbenchError
from patch_tables import Toy, toy_images

ITEMS = np.array([3, 5, 8])


class Recorded:
    """A defence of 6 views; the logits of a pair are a fixed random function of image and views."""

    def __init__(self, classes=4, views=6):
        generator = torch.Generator().manual_seed(2)
        self.table = torch.randn(views, views, classes, 12, generator=generator)
        self.asked = []

    def views(self, shape):
        return len(self.table)

    def logits(self, x, views):
        self.asked.append(views.clone())
        first, second = views.min(2).values, views.max(2).values
        return torch.einsum("nmkd,nd->nmk", self.table[first, second], x.flatten(1))


@pytest.fixture
def images():
    return torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def test_expectation_is_the_mean_loss_over_drawn_views_and_over_all_at_checks(images):
    defence, y = Recorded(), torch.tensor([0, 1, 3])
    objective = masked.Expectation(defence, 3, 2, seed64=1)
    objective.at_step(0, 4, False)
    passes = objective.per_pass(images, items=ITEMS)
    assert passes.shape == (3, 5, 4) and objective.passes == 5
    value = objective.loss(passes, y, losses.LOSSES["ce"], None)
    by_hand = [
        torch.nn.functional.cross_entropy(passes[i], y[i].expand(5)).item() for i in range(3)
    ]
    assert value.tolist() == pytest.approx(by_hand, rel=1e-5)
    views = defence.asked[-1]
    singles, pairs = views[:, :3], views[:, 3:]
    assert (singles[..., 0] == singles[..., 1]).all() and (pairs[..., 0] != pairs[..., 1]).all()
    assert all(len(set(row.tolist())) == 3 for row in singles[..., 0])
    objective.at_step(0, 10, True)
    assert objective.per_pass(images, items=ITEMS).shape[1] == 6 + 2
    assert defence.asked[-1][0, :6, 0].tolist() == list(range(6))


def test_views_belong_to_image_restart_and_step(images):
    def drawn(items, restart, step, x):
        defence = Recorded()
        objective = masked.Expectation(defence, 3, 1, seed64=7)
        objective.at_step(restart, step, False)
        objective.per_pass(x, items=items)
        return defence.asked[-1]

    whole = drawn(ITEMS, 1, 4, images)
    order = np.array([2, 0])
    assert torch.equal(drawn(ITEMS[order], 1, 4, images[order]), whole[order])
    assert not torch.equal(drawn(ITEMS, 1, 5, images), whole)
    assert not torch.equal(drawn(ITEMS, 2, 4, images), whole)
    assert len({tuple(row.flatten().tolist()) for row in whole}) > 1


def test_each_view_is_drawn_equally_often(images):
    defence = Recorded()
    objective = masked.Expectation(defence, 2, 0, seed64=3)
    counts = torch.zeros(6)
    for step in range(600):
        objective.at_step(0, step, False)
        objective.per_pass(images[:1], items=ITEMS[:1])
        counts += torch.bincount(defence.asked[-1][0, :, 0], minlength=6)
    # 600 draws of 2 of 6: each view Binomial(600, 1/3), deviation 11.5; six of them on each of
    # six views: false alarm below 2e-8.
    assert (counts - 200).abs().max() < 6 * 11.6


def test_the_wanted_class_is_the_most_frequent_wrong_one_then_the_likeliest():
    votes = [[0, 1, 1], [0, 2, 2], [0, 0, 0]]
    passes = torch.stack([torch.eye(3)[torch.tensor(v)] * 5 for v in votes])
    order = masked.wrong_classes(passes, torch.tensor([0, 0, 0]))
    assert order[:2, 0].tolist() == [1, 2]
    passes[2, :, 2] = 1.0  # no wrong vote, but class 2 is likelier than class 1
    assert masked.wrong_classes(passes, torch.tensor([0, 0, 0]))[2].tolist() == [2, 1]


def test_unanimity_is_the_soft_minimum_of_the_leads_of_one_class(images):
    defence, y = Recorded(), torch.tensor([0, 1, 3])
    objective = masked.Unanimity(defence, seed64=1)
    objective.at_step(0, 0, True)
    passes = objective.per_pass(images, items=ITEMS)
    value = objective.loss(passes, y, losses.LOSSES["ce"], None)
    wanted = masked.wrong_classes(passes, y)[:, 0].tolist()
    for i, t in enumerate(wanted):
        others = [c for c in range(4) if c != t]
        leads = passes[i, :, t] - passes[i][:, others].max(1).values
        soft = -0.1 * torch.log(torch.exp(-leads.double() / 0.1).mean())
        assert value[i].item() == pytest.approx(soft.item(), rel=1e-4)
        assert leads.min() - 1e-5 <= value[i] <= leads.min() + 0.1 * np.log(6) + 1e-5
    # The class stays while the run goes on, for a batch of any make-up; restarts change it.
    objective.at_step(0, 7, False)
    turned = objective.per_pass(1 - images[[2, 0]], items=ITEMS[[2, 0]])
    assert objective.wanted(turned, y[[2, 0]]).tolist() == [wanted[2], wanted[0]]
    objective.at_step(1, 0, True)
    second = objective.wanted(objective.per_pass(images, items=ITEMS), y).tolist()
    assert second == masked.wrong_classes(passes, y)[:, 1].tolist()


def test_coherent_counts_no_lead_above_one_logit(images):
    defence, y = Recorded(), torch.tensor([0, 1, 3])
    objective = masked.Coherent(defence, 3, seed64=1)
    objective.at_step(0, 0, True)
    passes = 5 * objective.per_pass(images, items=ITEMS)
    leads = objective.leads(passes, y)
    assert (leads > 1).any()
    assert torch.allclose(
        objective.loss(passes, y, losses.LOSSES["ce"], None), leads.clamp(max=1).mean(1)
    )


def test_vote_scores_are_the_share_of_votes_and_a_hundredth_of_the_mean_margin(images):
    defence, y = Recorded(), torch.tensor([0, 1, 3])
    objective = masked.VoteScores(defence)
    scores = objective(images)
    each = torch.arange(6)
    passes = defence.logits(images, torch.stack([each, each], 1).expand(3, -1, 2))
    for i in range(3):
        share = (passes[i].argmax(1) == y[i]).float().mean()
        margin = losses.margin(passes[i], y[i].expand(6)).mean()
        expected = (share + 0.01 * margin).item()
        assert objective.vote_margin(scores, y)[i].item() == pytest.approx(expected, abs=1e-6)
    target = Target(objective)
    assert torch.equal(target.margin(scores, y), objective.vote_margin(scores, y))


def test_soft_votes_have_slope_ten_at_the_threshold():
    passes = torch.tensor([[[0.4, 0.35, 0.25]]]).log()
    at = masked.soft_votes(passes, 0.4)[0, 0]
    expected = 1 / (1 + np.exp(-10 * (np.array([0.4, 0.35, 0.25]) - 0.4)))
    assert at.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert masked.threshold_votes(passes, 0.3)[0, 0].tolist() == [1, 1, 0]
    best = masked.soft_votes(passes, None)[0, 0]
    assert best.tolist() == pytest.approx(
        (1 / (1 + np.exp(-10 * np.array([0.05, -0.05, -0.15])))).tolist(), rel=1e-5
    )


def surface(kind):
    network = Toy()
    if kind == "double_masking":
        module = double_masking
        collect = module.CollectParams(patch_size=2, masks=3, fill=0.5)
        decide = module.DecideParams(attack_masks=3, attack_pairs=1)
    else:
        module = derandomized_smoothing
        collect = module.CollectParams(band=2, threshold=0.4, fill=0.5)
        decide = module.DecideParams(attack_views=3)
    params = module.attack_params(collect, decide)
    return module.attack_surface(SurfaceWork(network, params, 3, 7, "cpu", 64, "exact"))


def work_on(kind, params, make_work, rows=slice(None), **change):
    images, labels = toy_images(Toy())
    found = surface(kind)
    work = make_work(
        params,
        found.logits,
        images[rows],
        labels[rows],
        judge=found.judge,
        num_classes=3,
        item_index=np.arange(12)[rows],
        scores=found.scores,
        **change,
    )
    for name in ("objectives", "attacked", "judged_by"):
        setattr(work, name, getattr(found, name))
    return work


KINDS = ["double_masking", "derandomized_smoothing"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_union_breaks_what_any_surrogate_breaks_and_the_rule_confirms(kind, make_work):
    params = adaptive.Params(epsilon=0.03, steps=10, judge_every=5, restarts=1, queries=60)
    made = adaptive.attack(work_on(kind, params, make_work))
    found = surface(kind)
    assert made["attacked"][0] == " + ".join(found.objectives)
    assert made["judged_by"][0] == found.judged_by
    assert made["knowledge"][0] == "gradients of the base model + gradients + scores"
    broken = made["status"] == "broken"
    assert 0 < broken.sum() < 12
    answers = found.judge(torch.from_numpy(made["x_adv"])).numpy()
    assert (answers[broken] == made["adv_pred"][broken]).all()
    labels = toy_images(Toy())[1].numpy()
    assert (answers[broken] != labels[broken]).all()
    assert set(made["first_breaking_attack"][broken]) <= {
        f"{'square' if name == 'votes' else 'pgd'}:{name}" for name in found.objectives
    }
    each = adaptive.Params(
        epsilon=0.03, steps=10, judge_every=5, restarts=1, queries=60, individual=True
    )
    alone = adaptive.attack(work_on(kind, each, make_work))
    # The same seeds: what one surrogate breaks alone, the union breaks.
    assert (alone["status"] == made["status"]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_company_order_or_shards(kind, make_work):
    params = adaptive.Params(epsilon=0.03, steps=6, judge_every=3, restarts=2, queries=20)
    # Exact numerics pad every pass to one shape, whatever is in it.
    exact = {"batch_size": 5, "exact": True}
    whole = adaptive.attack(work_on(kind, params, make_work, **exact))
    order = np.array([7, 1, 4, 10])
    some = adaptive.attack(work_on(kind, params, make_work, rows=order, **exact))
    for name in ("status", "first_breaking_attack", "n_forward", "n_backward", "restart"):
        assert whole[name][order].tolist() == some[name].tolist(), name
    assert np.array_equal(whole["x_adv"][order], some["x_adv"])


def test_a_killed_attack_goes_on_to_the_same_rows(make_work, memory_progress):
    params = adaptive.Params(epsilon=0.03, steps=6, judge_every=3, restarts=1, queries=20)
    whole = adaptive.attack(work_on("double_masking", params, make_work, batch_size=5))
    progress = memory_progress(kill_after=5)
    with pytest.raises(KeyboardInterrupt):
        adaptive.attack(
            work_on("double_masking", params, make_work, batch_size=5, progress=progress)
        )
    progress.kill_after = None
    again = adaptive.attack(
        work_on("double_masking", params, make_work, batch_size=5, progress=progress)
    )
    for name, values in whole.items():
        assert np.array_equal(values, again[name], equal_nan=values.dtype.kind == "f"), name


def test_passes_of_the_expectation_and_of_the_lazy_rule_are_counted(make_work):
    params = adaptive.Params(
        epsilon=1e-6, steps=4, judge_every=2, restarts=1, objectives=("expectation",)
    )
    work = work_on("double_masking", params, make_work)
    made = adaptive.attack(work)
    survived = made["status"] == "survived"
    assert survived.sum() == 12
    # Gradients at steps 0 and 2 (checks: 9 views and 1 pair), 1 and 3 (3 views and 1 pair).
    assert (made["n_backward"] == 2 * 10 + 2 * 4).all()
    _, spent = work.judge(work.images), work.judge.spent
    # Forward: the gradients, the last scores (a check), the clean look (4 views) and three calls
    # of the judge, each with as many passes as its second round took.
    expected = (2 * 10 + 2 * 4) + 10 + 4 + 3 * spent
    assert (made["n_forward"] == expected).all()
    assert len(set(spent.tolist())) > 1


def test_square_searches_the_vote_margin_of_the_defended_rule(make_work):
    params = square.Params(epsilon=0.25, queries=150, judge_every=10)
    work = work_on("double_masking", params, make_work)
    made = square.attack(work)
    assert made["attacked"][0] == "votes" and made["knowledge"][0] == "scores"
    assert (made["n_backward"] == 0).all()
    broken = made["status"] == "broken"
    assert broken.sum() >= 3
    # Margins are those of the votes: at most the whole share and the tie breaker.
    assert (made["margin_final"] <= made["margin_clean"]).all()
    assert (made["margin_clean"] < 1.5).all()


def test_an_unknown_surrogate_is_refused_and_a_bare_model_is_its_own(make_work):
    params = adaptive.Params(epsilon=0.1, objectives=("unanimty",))
    with pytest.raises(CertbenchError, match="no surrogate 'unanimty'") as caught:
        adaptive.attack(work_on("double_masking", params, make_work))
    assert "did you mean 'unanimity'" in caught.value.remedy
    images, labels = toy_images(Toy())
    bare = adaptive.attack(
        make_work(adaptive.Params(epsilon=0.1, steps=5), Toy(), images, labels, num_classes=3)
    )
    assert (bare["attacked"][0], bare["judged_by"][0], bare["knowledge"][0]) == (
        "base",
        "argmax",
        "gradients",
    )
