import subprocess
import sys

import numpy as np
import pytest
import torch

from certbench import params as parameters
from certbench import plugins
from certbench.attacks import geometry, noise, pgd, shard
from certbench.attacks.target import Target
from certbench.errors import CertbenchError

SHAPE = (1, 5, 4)


def settings_of(norm="linf", epsilon=0.05, **more):
    return pgd.Params(norm=norm, epsilon=epsilon, **more)


def distances(model, x, y, norm):
    """Exact distance of each image to the decision boundary of a linear classifier."""
    logits = model(x).double()
    weight = model.weight.double()
    order = 1 if norm == "linf" else 2
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for c in range(logits.shape[1]):
        gap = logits.gather(1, y[:, None])[:, 0] - logits[:, c]
        slope = torch.linalg.vector_norm(weight[y] - weight[c], ord=order, dim=1)
        best = torch.where(y == c, best, torch.minimum(best, gap / slope))
    return best


def attack_linear(linear, middle, norm, epsilon, classes=5, count=80, **more):
    model = linear(classes, SHAPE, 0)
    x = middle(count, SHAPE, 1)
    y = model(x).argmax(1)
    seeds = noise.image_seeds(0, np.arange(count))
    outcome = pgd.run(Target(model), x, y, settings_of(norm, epsilon, **more), seeds)
    return model, x, y, outcome


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.03), ("l2", 0.12)])
def test_pgd_breaks_linear_classifiers_exactly_up_to_their_distance(
    linear, middle, norm, epsilon, loss
):
    # Two classes: with more, an untargeted loss may climb towards a class that is not the nearest.
    model, x, y, outcome = attack_linear(linear, middle, norm, epsilon, classes=2, loss=loss)
    exact = distances(model, x, y, norm)
    assert 5 < int((exact < epsilon).sum()) < 75
    assert outcome.broken[exact < 0.98 * epsilon].all()
    assert not outcome.broken[exact > epsilon].any()
    geometry.require_feasible(outcome.x_adv, x, norm, epsilon, np.arange(80))
    assert torch.equal(model(outcome.x_adv).argmax(1) != y, outcome.broken)
    assert torch.equal(outcome.x_adv[~outcome.broken], x[~outcome.broken])
    assert torch.equal(outcome.margin < 0, outcome.broken)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_does_not_depend_on_batch_size_order_or_company(linear, middle, norm):
    epsilon = 0.012 if norm == "linf" else 0.06
    model = linear(5, SHAPE, 0)
    x = middle(40, SHAPE, 1)
    y = model(x).argmax(1)
    seeds = noise.image_seeds(0, np.arange(40))
    params = settings_of(norm, epsilon, steps=12, restarts=3)
    whole = pgd.run(Target(model), x, y, params, seeds)
    assert 0 < int(whole.broken.sum()) < 40
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    shuffled = pgd.run(Target(model), x[order], y[order], params, seeds[order.numpy()])
    for name in ("x_adv", "broken", "iterations_to_success", "restart", "n_forward", "margin"):
        assert torch.equal(getattr(whole, name)[order], getattr(shuffled, name)), name
    for i in range(0, 40, 7):
        alone = pgd.run(Target(model), x[i : i + 1], y[i : i + 1], params, seeds[i : i + 1])
        for name in ("x_adv", "broken", "n_forward", "n_backward", "margin", "restart"):
            assert torch.equal(getattr(whole, name)[i : i + 1], getattr(alone, name)), name


def test_columns_do_not_depend_on_the_batch_size(make_work, linear, middle):
    model = linear(5, SHAPE, 0)
    x = middle(30, SHAPE, 1)
    y = model(x).argmax(1)
    y[3] = (y[3] + 1) % 5
    tables = []
    for size in (1, 7, 64):
        work = make_work(
            settings_of(epsilon=0.012, steps=8), model, x, y, batch_size=size, num_classes=5
        )
        tables.append(pgd.attack(work))
        assert work.ticks[-1] == (30, 30)
    for other in tables[1:]:
        assert other.keys() == tables[0].keys()
        for name, column in tables[0].items():
            np.testing.assert_array_equal(column, other[name], err_msg=name)
    table = tables[0]
    assert set(pgd.columns) <= set(table)
    assert table["status"][3] == "clean_error" and table["n_forward"][3] == 1
    assert set(table["status"]) == {"clean_error", "broken", "survived"}
    broken = table["status"] == "broken"
    np.testing.assert_array_equal(table["first_breaking_attack"] == "pgd", broken)
    np.testing.assert_array_equal(table["iterations_to_success"] >= 0, broken)
    assert (table["adv_pred"][broken] != table["label"][broken]).all()
    assert (table["pert_linf"][broken] <= 0.012 * 1.0001).all()
    assert (table["pert_linf"][~broken] == 0).all()


def test_a_surviving_image_costs_one_pass_per_iterate(linear, middle):
    model = linear(5, SHAPE, 0)
    x = middle(4, SHAPE, 1)
    y = model(x).argmax(1)
    params = settings_of(epsilon=1e-5, steps=12, restarts=3)
    outcome = pgd.run(Target(model), x, y, params, np.arange(4))
    assert outcome.n_forward.tolist() == [3 * 13] * 4
    assert outcome.n_backward.tolist() == [3 * 12] * 4


def test_radius_zero_breaks_nothing_and_radius_one_breaks_everything(linear, middle):
    *_, outcome = attack_linear(linear, middle, "linf", 0.0)
    assert not outcome.broken.any()
    *_, outcome = attack_linear(linear, middle, "linf", 1.0)
    assert outcome.broken.all()


def test_more_restarts_and_more_steps_never_raise_the_accuracy(toy, toy_x, toy_y):
    x, y = toy_x.repeat(8, 1, 1, 1), toy_y.repeat(8)
    seeds = noise.image_seeds(5, np.arange(len(x)))
    broken = []
    for restarts in (1, 2, 4):
        params = settings_of(epsilon=0.075, steps=10, restarts=restarts)
        broken.append(pgd.run(Target(toy), x, y, params, seeds).broken)
    assert bool((broken[0] <= broken[1]).all()) and bool((broken[1] <= broken[2]).all())


def test_pgd_reaches_the_known_smallest_norms_of_the_toy_network(toy, toy_x, toy_y):
    smallest = torch.tensor([0.08345, 0.04569, 0.07065, 0.02529])
    for epsilon in (0.02, 0.03, 0.05, 0.08, 0.10):
        params = settings_of(epsilon=epsilon, loss="dlr")
        outcome = pgd.run(Target(toy), toy_x, toy_y, params, np.arange(4))
        assert torch.equal(outcome.broken, smallest < epsilon), epsilon


def test_foolbox_breaks_a_subset_of_the_images_at_equal_settings():
    foolbox = pytest.importorskip("foolbox")
    torch.manual_seed(0)
    conv = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    ).eval()
    conv.requires_grad_(False)
    x = torch.rand(100, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    y = conv(x).argmax(1)
    epsilon, steps = 0.015, 40
    params = settings_of(
        epsilon=epsilon, steps=steps, step_size=1 / 30, restarts=1, random_start=False
    )
    ours = pgd.run(Target(conv), x, y, params, np.arange(len(x))).broken
    attack = foolbox.attacks.LinfPGD(rel_stepsize=1 / 30, steps=steps, random_start=False)
    wrapped = foolbox.PyTorchModel(conv, bounds=(0, 1), device="cpu")
    *_, theirs = attack(wrapped, x, y, epsilons=epsilon)
    # Both walk the same path from the clean image; foolbox judges its last point only.
    assert (theirs <= ours).all()
    assert 10 < int(theirs.sum()) < 90 and int((ours & ~theirs).sum()) <= 2


def test_a_separate_judge_decides_success_and_abstention_is_a_choice(linear, middle):
    model = linear(4, SHAPE, 0)
    x = middle(30, SHAPE, 1)
    y = model(x).argmax(1)

    def judge(points):
        logits = model(points)
        top = logits.topk(2, dim=1).values
        return torch.where(top[:, 0] - top[:, 1] < 0.3, -1, logits.argmax(1))

    sure = judge(x) == y
    x, y = x[sure], y[sure]
    params = settings_of(epsilon=0.01, restarts=1)
    seeds = np.arange(len(x))
    strict = pgd.run(Target(model, judge), x, y, params, seeds)
    safe = pgd.run(Target(model, judge, abstain_breaks=False), x, y, params, seeds)
    assert torch.equal(judge(strict.x_adv) != y, strict.broken)
    answers = judge(safe.x_adv)
    assert torch.equal((answers != y) & (answers != -1), safe.broken)
    assert int(safe.broken.sum()) < int(strict.broken.sum())


def test_zero_gradients_are_flagged(make_work, linear, middle):
    model = linear(4, SHAPE, 0)

    def stepped(x):
        return model((x * 4).round() / 4) + 0 * x.flatten(1).sum(1, keepdim=True)

    x = middle(6, SHAPE, 1)
    y = stepped(x).argmax(1)
    for norm in ("linf", "l2"):
        params = settings_of(norm, 0.01, steps=3, restarts=1)
        table = pgd.attack(make_work(params, stepped, x, y, num_classes=4))
        assert set(table["check_flags"]) == {"zero_gradient"}


def test_planning_reads_the_plug_in_without_torch():
    code = (
        "import sys; from certbench import plugins, params;"
        "m = plugins.load('attack', 'pgd'); p = params.build(m.Params, {'epsilon': 0.1}, 'here');"
        "m.threat(p); assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threat_is_a_threat_of_the_package():
    from certbench.threat import Threat

    assert Threat(**pgd.threat(settings_of("l2", 0.5))).id == "lp-l2-0.5"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epsilon": 8}, r"did you mean 8/255 = 0\.0313725"),
        ({"epsilon": 127, "norm": "l2"}, r"did you mean 127/255"),
        ({"epsilon": 0}, "epsilon"),
        ({"epsilon": -0.1}, "epsilon"),
        ({}, "epsilon: is required"),
        ({"epsilon": 0.1, "norm": "l1"}, "unknown value 'l1'"),
        ({"epsilon": 0.1, "step": 3}, "did you mean 'steps'"),
    ],
)
def test_wrong_parameters_are_refused(values, message):
    module = plugins.load("attack", "pgd")
    with pytest.raises(CertbenchError, match=message):
        parameters.build(module.Params, values, "config: attacks.pgd")


class TestRefusals:
    @pytest.fixture
    def good(self, make_work, linear, middle):
        def build(**change):
            model = linear(4, SHAPE, 0)
            x = middle(5, SHAPE, 1)
            base = {"params": settings_of(steps=2, restarts=1), "logits": model, "images": x}
            base |= {"labels": model(x).argmax(1), "num_classes": 4, "item_index": np.arange(5) + 9}
            return make_work(**{**base, **change})

        pgd.attack(build())
        return build

    def refused(self, work, message):
        with pytest.raises(CertbenchError, match=message):
            pgd.attack(work)

    def test_radius_zero(self, good):
        self.refused(good(params=settings_of(epsilon=0.0)), "epsilon")

    def test_images_outside_the_box(self, good):
        images = good().images.clone()
        images[2] *= 255
        self.refused(good(images=images), r"item 11 has values outside \[0, 1\]")

    def test_images_that_are_not_numbers(self, good):
        images = good().images.clone()
        images[1, 0, 0, 0] = torch.nan
        self.refused(good(images=images), "item 10")

    def test_integer_images(self, good):
        self.refused(good(images=(good().images * 255).to(torch.uint8)), "uint8")

    def test_labels_outside_the_classes(self, good):
        labels = good().labels.clone()
        labels[4] = 4
        self.refused(good(labels=labels), "item 13 has label 4")

    def test_models_without_gradients(self, good):
        self.refused(good(logits=None), "no gradients.*\n.*square")
        model = good().logits
        self.refused(good(logits=lambda x: model(x.detach())), "no gradient")

    def test_logits_that_are_not_numbers(self, good):
        model = good().logits
        self.refused(
            good(logits=lambda x: model(x) + torch.tensor([[0.0]] * 3 + [[torch.nan]] + [[0.0]])),
            "NaN or infinite for item 12",
        )

    def test_models_in_train_mode(self, good):
        self.refused(good(logits=good().logits.train()), "train mode")

    def test_randomised_models(self, good):
        model = good().logits
        self.refused(good(logits=lambda x: model(x) + torch.randn(1)), "randomised")

    def test_models_with_another_number_of_classes(self, good):
        self.refused(good(num_classes=7), "4 logits.* 7 classes")

    def test_losses_that_need_more_classes(self, good, linear):
        model = linear(2, SHAPE, 0)
        x = good().images
        params = settings_of(loss="dlr")
        work = good(params=params, logits=model, labels=model(x).argmax(1), num_classes=2)
        self.refused(work, "'dlr' needs 3 classes.*\n.*'ce'")


def test_a_sabotaged_attack_trips_the_geometry_check(make_work, linear, middle):
    model = linear(4, SHAPE, 0)
    x = middle(6, SHAPE, 1)
    work = make_work(settings_of(epsilon=0.02), model, x, model(x).argmax(1), num_classes=4)

    def sabotaged(target, x, y, params, seeds):
        outcome = pgd.run(target, x, y, settings_of(epsilon=0.2), seeds)
        assert outcome.broken.any()
        return outcome

    with pytest.raises(geometry.GeometryError, match="leave the linf ball"):
        shard.attack_shard(work, [shard.Step("pgd", work.params, sabotaged)])


def test_a_killed_shard_resumes_to_identical_columns(make_work, linear, middle, memory_progress):
    model = linear(5, SHAPE, 0)
    x = middle(30, SHAPE, 1)
    y = model(x).argmax(1)

    def fresh(progress):
        params = settings_of(epsilon=0.012, steps=6, restarts=2)
        return make_work(params, model, x, y, batch_size=8, num_classes=5, progress=progress)

    whole = pgd.attack(fresh(None))
    for kill_after in range(1, 9):
        progress = memory_progress(kill_after)
        with pytest.raises(KeyboardInterrupt):
            pgd.attack(fresh(progress))
        progress.kill_after = None
        saves = progress.saves
        resumed = pgd.attack(fresh(progress))
        assert progress.saves - saves == 8 - kill_after
        for name, column in whole.items():
            np.testing.assert_array_equal(column, resumed[name], err_msg=name)


def test_a_success_that_is_not_seen_again_does_not_count(make_work, linear, middle):
    model = linear(4, SHAPE, 0)
    x = middle(6, SHAPE, 1)
    y = model(x).argmax(1)
    work = make_work(settings_of(epsilon=0.02), model, x, y, num_classes=4)

    def boaster(target, x, y, params, seeds):
        outcome = pgd.run(target, x, y, settings_of(epsilon=1e-6, steps=1), seeds)
        return type(outcome)(**{**vars(outcome), "broken": torch.ones_like(outcome.broken)})

    table = shard.attack_shard(work, [shard.Step("pgd", work.params, boaster)])
    assert set(table["status"]) == {"survived"}
    assert set(table["check_flags"]) == {"unconfirmed"}
