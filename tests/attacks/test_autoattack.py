import itertools

import numpy as np
import pytest
import torch

from certbench import params as parameters
from certbench.attacks import autoattack, geometry, shard
from certbench.attacks.outcome import AttackOutcome
from certbench.errors import CertbenchError

SHAPE = (1, 5, 4)


def settings_of(norm="linf", epsilon=0.05, **more):
    return autoattack.Params(norm=norm, epsilon=epsilon, **more)


def quick(norm="linf", epsilon=0.012, attacks=("apgd-ce", "apgd-t", "fab-t", "square"), **more):
    values = {"steps": 12, "targets": 3, "queries": 60, "allow_short": True, **more}
    return settings_of(norm, epsilon, suite="custom", attacks=attacks, **values)


def test_suites_hold_the_published_attacks_and_settings():
    standard = autoattack.suite(settings_of(), 10)
    assert [s.name for s in standard] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    ce, targeted, fab, square = (s.params for s in standard)
    assert (ce.steps, ce.restarts, ce.rho, ce.eot) == (100, 1, 0.75, 1)
    assert (targeted.loss, targeted.targets, targeted.restarts) == ("dlr-targeted", 9, 1)
    assert (fab.steps, fab.targets, fab.restarts) == (100, 9, 1)
    assert (fab.alpha_max, fab.eta, fab.beta) == (0.1, 1.05, 0.9)
    assert (square.queries, square.p_init, square.restarts) == (5000, 0.8, 1)
    assert not square.rescale_schedule
    plus = autoattack.suite(settings_of(suite="plus"), 10)
    assert [s.name for s in plus] == [
        "apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"
    ]  # fmt: skip
    assert [s.params.restarts for s in plus] == [5, 5, 5, 1, 1, 1]
    rand = autoattack.suite(settings_of(suite="rand"), 10)
    assert [(s.name, s.params.eot, s.params.restarts) for s in rand] == [
        ("apgd-ce", 20, 1),
        ("apgd-dlr", 20, 1),
    ]


class Scripted:
    """Attacks that break exactly the listed items, on a model that reads a mark in the image."""

    def __init__(self, breaks):
        self.breaks = breaks
        self.seen = {name: [] for name in breaks}

    @staticmethod
    def model(x):
        marked = x[:, 0, 0, 0] > 0.9
        return torch.stack([1.0 - marked.float(), marked.float(), x.mean((1, 2, 3)) * 0], 1)

    def step(self, name, params):
        def run(target, x, y, _, seeds):
            target.bind(x)
            items = target.items
            self.seen[name] += items.tolist()
            broken = torch.tensor([i in self.breaks[name] for i in items], dtype=torch.bool)
            x_adv = x.clone()
            x_adv[broken, 0, 0, 0] = 0.95
            count = torch.full((len(x),), 7)
            return AttackOutcome(
                x_adv, broken, torch.zeros_like(count), torch.zeros_like(count), count, count,
                torch.zeros(len(x)), torch.zeros_like(count),
            )  # fmt: skip

        return shard.Step(name, params, run)


SCRIPT = {"one": {2, 5}, "two": {2, 3, 7}, "three": set(), "four": {3, 9}}


def scripted_work(make_work, **more):
    x = torch.full((10, 1, 2, 2), 0.5)
    x[[0, 6], 0, 0, 0] = 0.95
    y = torch.zeros(10, dtype=torch.int64)
    return make_work(
        settings_of(epsilon=0.5), Scripted.model, x, y, num_classes=3, batch_size=4, **more
    )


def test_bookkeeping_of_attacked_sets_accuracies_and_first_breakers(make_work):
    script = Scripted(SCRIPT)
    work = scripted_work(make_work)
    table = shard.attack_shard(work, [script.step(n, work.params) for n in SCRIPT])
    assert script.seen == {
        "one": [1, 2, 3, 4, 5, 7, 8, 9],
        "two": [1, 3, 4, 7, 8, 9],
        "three": [1, 4, 8, 9],
        "four": [1, 4, 8, 9],
    }
    expected = ["", "", "one", "two", "", "one", "", "two", "", "four"]
    assert table["first_breaking_attack"].tolist() == expected
    assert table["status"].tolist() == [
        "clean_error", "survived", "broken", "broken", "survived",
        "broken", "clean_error", "broken", "survived", "broken",
    ]  # fmt: skip
    # Clean pass, 7 per attack seen, confirmation and 8-bit copy where broken.
    assert table["n_forward"].tolist() == [1, 29, 10, 17, 29, 10, 1, 17, 29, 31]
    assert table["adv_pred"].tolist() == [1, 0, 1, 1, 0, 1, 1, 1, 0, 1]
    robust = Scripted.model(torch.from_numpy(table["x_adv"])).argmax(1) == work.labels
    np.testing.assert_array_equal(robust.numpy(), table["status"] == "survived")


def test_individual_mode_shows_every_attack_every_image_and_agrees_on_the_union(make_work):
    script = Scripted(SCRIPT)
    work = scripted_work(make_work)
    steps = [script.step(n, work.params) for n in SCRIPT]
    table = shard.attack_shard(work, steps, individual=True)
    assert all(seen == [1, 2, 3, 4, 5, 7, 8, 9] for seen in script.seen.values())
    assert table["broken_by"].tolist() == [
        "", "", "one,two", "two,four", "", "one", "", "two", "", "four"
    ]  # fmt: skip
    sequential = shard.attack_shard(work, steps)
    np.testing.assert_array_equal(table["status"], sequential["status"])
    np.testing.assert_array_equal(
        table["first_breaking_attack"], sequential["first_breaking_attack"]
    )


def test_a_suite_stops_attacking_when_nothing_is_left(make_work):
    script = Scripted({"one": set(range(10)), "two": set()})
    work = scripted_work(make_work)
    table = shard.attack_shard(work, [script.step(n, work.params) for n in script.breaks])
    assert script.seen["two"] == []
    assert (table["status"] != "survived").all()
    assert work.ticks[-1] == (10, 10)
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(work.ticks))


def test_columns_do_not_depend_on_batch_size_or_order(make_work, linear, middle):
    model = linear(5, SHAPE, 0)
    x = middle(25, SHAPE, 1)
    y = model(x).argmax(1)
    y[4] = (y[4] + 1) % 5
    tables = [
        autoattack.attack(make_work(quick(), model, x, y, batch_size=size, num_classes=5))
        for size in (1, 7, 64)
    ]
    order = np.random.default_rng(0).permutation(25)
    shuffled = autoattack.attack(
        make_work(quick(), model, x[order], y[order], item_index=order, num_classes=5)
    )
    assert set(tables[0]["status"]) == {"clean_error", "broken", "survived"}
    assert set(autoattack.columns) <= set(tables[0])
    for name, column in tables[0].items():
        for other in tables[1:]:
            np.testing.assert_array_equal(column, other[name], err_msg=name)
        np.testing.assert_array_equal(column[order], shuffled[name], err_msg=name)


def test_a_kill_costs_at_most_one_batch_and_the_resumed_rows_are_identical(
    make_work, linear, middle, memory_progress
):
    model = linear(5, SHAPE, 0)
    x = middle(20, SHAPE, 1)
    y = model(x).argmax(1)
    calls = [0]

    def counted(points):
        calls[0] += len(points)
        return model(points)

    def fresh(progress):
        return make_work(
            quick(steps=4, queries=10),
            counted,
            x,
            y,
            batch_size=8,
            num_classes=5,
            progress=progress,
        )

    first = memory_progress()
    whole = autoattack.attack(fresh(first))
    total = calls[0]
    assert first.saves >= 9
    for kill_after in range(1, first.saves + 1):
        progress = memory_progress(kill_after)
        calls[0] = 0
        with pytest.raises(KeyboardInterrupt):
            autoattack.attack(fresh(progress))
        progress.kill_after = None
        resumed = autoattack.attack(fresh(progress))
        # The two looks at the model before the first batch are not repeated.
        assert calls[0] == total
        for name, column in whole.items():
            np.testing.assert_array_equal(column, resumed[name], err_msg=f"{kill_after} {name}")


@pytest.mark.parametrize("epsilon", [0.02, 0.03, 0.05, 0.08, 0.10])
def test_the_suite_reproduces_the_robust_counts_of_the_toy_network(
    make_work, toy, toy_x, toy_y, epsilon
):
    params = settings_of(
        epsilon=epsilon,
        suite="custom",
        attacks=autoattack.SUITES["standard"],
        queries=50,
        targets=2,
    )
    table = autoattack.attack(make_work(params, toy, toy_x, toy_y, num_classes=6))
    expected = {0.02: 4, 0.03: 3, 0.05: 2, 0.08: 1, 0.10: 0}[epsilon]
    assert (table["status"] == "survived").sum() == expected


@pytest.mark.parametrize("classes", [2, 3, 5, 9])
@pytest.mark.parametrize("suite", ["standard", "plus", "rand"])
def test_few_classes_run_through_every_suite(make_work, linear, middle, classes, suite):
    model = linear(classes, SHAPE, 0)
    x = middle(6, SHAPE, 1)
    y = model(x).argmax(1)
    params = quick(attacks=autoattack.SUITES[suite], steps=3, queries=5, targets=9)
    table = autoattack.attack(make_work(params, model, x, y, num_classes=classes))
    broken = torch.from_numpy(table["status"] == "broken")
    adversarial = torch.from_numpy(table["x_adv"])
    assert torch.equal(model(adversarial).argmax(1) != y, broken)
    if classes == 2 and suite != "standard":
        assert all("loss_replaced" in flags for flags in table["check_flags"])
        assert "apgd-dlr" not in {s.name for s in autoattack.suite(params, 2)}


def test_radius_one_breaks_everything_and_a_tiny_one_nothing(make_work, linear, middle):
    model = linear(4, SHAPE, 0)
    x = middle(10, SHAPE, 1)
    y = model(x).argmax(1)
    for epsilon, status in ((1.0, "broken"), (1e-7, "survived")):
        table = autoattack.attack(
            make_work(quick(epsilon=epsilon, steps=60), model, x, y, num_classes=4)
        )
        assert set(table["status"]) == {status}


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.012), ("l2", 0.06)])
def test_the_suite_is_exact_on_linear_classifiers(make_work, linear, middle, norm, epsilon):
    model = linear(6, SHAPE, 0)
    x = middle(60, SHAPE, 1)
    y = model(x).argmax(1)
    order = 1 if norm == "linf" else 2
    weight = model.weight.double()
    slopes = torch.linalg.vector_norm(weight[y][:, None] - weight[None], ord=order, dim=2)
    logits = model(x).double()
    gaps = logits.gather(1, y[:, None]) - logits
    exact = (gaps / slopes).scatter(1, y[:, None], torch.inf).amin(1).numpy()
    params = quick(norm, epsilon, steps=50, queries=20, targets=5)
    table = autoattack.attack(make_work(params, model, x, y, num_classes=6))
    broken = table["status"] == "broken"
    assert 5 < broken.sum() < 55
    assert broken[exact < 0.98 * epsilon].all() and not broken[exact > epsilon].any()
    geometry.require_feasible(torch.from_numpy(table["x_adv"]), x, norm, epsilon, np.arange(60))
    finite = np.isfinite(table["distance"])
    assert (table["distance"][finite] >= exact[finite] * 0.999).all()


def test_adding_attacks_never_raises_the_accuracy(make_work, linear, middle):
    model = linear(6, SHAPE, 0)
    x = middle(40, SHAPE, 1)
    y = model(x).argmax(1)
    order = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
    broken = []
    for count in range(1, 7):
        params = quick(attacks=order[:count], steps=6, queries=20)
        table = autoattack.attack(make_work(params, model, x, y, num_classes=6))
        broken.append(table["status"] == "broken")
    assert all((a <= b).all() for a, b in itertools.pairwise(broken))
    assert broken[-1].sum() > broken[0].sum()


def test_padded_batches_make_convolutions_independent_of_company(make_work, middle):
    torch.manual_seed(0)
    conv = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    ).eval()
    conv.requires_grad_(False)
    x = torch.rand(22, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    y = conv(x).argmax(1)
    params = quick(epsilon=0.015, steps=10, queries=30)
    order = np.random.default_rng(1).permutation(22)

    def attack(rows):
        return autoattack.attack(
            make_work(params, conv, x[rows], y[rows], item_index=rows, batch_size=8, exact=True)
        )

    whole, shuffled = attack(np.arange(22)), attack(order)
    assert {"broken", "survived"} == set(whole["status"])
    shards = [attack(np.arange(0, 5)), attack(np.arange(5, 22))]
    for name, column in whole.items():
        np.testing.assert_array_equal(column[order], shuffled[name], err_msg=name)
        merged = np.concatenate([part[name] for part in shards])
        np.testing.assert_array_equal(column, merged, err_msg=name)


def test_square_breaking_what_white_box_attacks_left_is_flagged(make_work, linear, middle):
    model = linear(4, SHAPE, 0)

    def masked(x):
        rounded = (x * 255).round() / 255
        return model(rounded.detach()) + 0 * x.flatten(1).sum(1, keepdim=True)

    x = middle(12, SHAPE, 1)
    y = masked(x).argmax(1)
    params = quick(epsilon=0.03, steps=5, queries=200)
    table = autoattack.attack(make_work(params, masked, x, y, num_classes=4))
    by_square = table["first_breaking_attack"] == "square"
    assert by_square.sum() > 2
    flagged = np.array(["square_better" in flags for flags in table["check_flags"]])
    np.testing.assert_array_equal(flagged, by_square)


def test_randomised_models_need_the_suite_made_for_them(make_work, linear, middle):
    model = linear(5, SHAPE, 0)
    torch.manual_seed(0)

    def randomised(x):
        return model(x + 0.01 * torch.randn_like(x))

    x = middle(8, SHAPE, 1)
    y = model(x).argmax(1)
    with pytest.raises(CertbenchError, match=r"randomised.*\n.*rand"):
        autoattack.attack(make_work(quick(), randomised, x, y, num_classes=5))
    params = quick(attacks=("apgd-ce", "apgd-dlr"), steps=5, eot=4)
    table = autoattack.attack(make_work(params, randomised, x, y, num_classes=5))
    assert all("randomised" in flags for flags in table["check_flags"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"suite": "standart"}, "did you mean 'standard'"),
        ({"suite": "custom"}, "names no attacks"),
        ({"suite": "custom", "attacks": ["apgd-cd"]}, "did you mean 'apgd-ce'"),
        ({"suite": "custom", "attacks": ["square", "square"]}, "twice"),
        ({"steps": 10}, "fixed by suite 'standard'"),
        ({"suite": "plus", "restarts": 1}, None),
        ({"suite": "rand", "queries": 10}, "fixed by suite 'rand'"),
        ({"epsilon": 8.0}, "did you mean 8/255"),
        ({"suite": "custom", "attacks": ["apgd-t"], "steps": 10}, "allow_short"),
    ],
)
def test_wrong_parameters_are_refused(values, message):
    values = {"epsilon": 0.03, **values}
    if message is None:
        assert parameters.build(autoattack.Params, values, "config").suite == "plus"
        return
    with pytest.raises(CertbenchError, match=message):
        parameters.build(autoattack.Params, values, "config")


def test_a_suite_without_a_possible_attack_is_refused():
    params = settings_of(suite="custom", attacks=("apgd-dlr",))
    with pytest.raises(CertbenchError, match="no attack is possible with 2 classes"):
        autoattack.suite(params, 2)


@pytest.mark.parametrize("name", ["pgd", "apgd", "fab", "square", "autoattack"])
def test_columns_of_every_plug_in_fit_the_table_of_attack_rows(make_work, toy, toy_x, toy_y, name):
    from certbench import plugins
    from certbench.results import rows
    from certbench.threat import Threat

    module = plugins.load("attack", name)
    short = {"pgd": {"steps": 2}, "fab": {"steps": 2}, "square": {"queries": 3}}.get(
        name, {"steps": 2, "allow_short": True}
    )
    if name == "autoattack":
        short |= {"suite": "custom", "attacks": ["apgd-ce", "fab-t"]}
    params = parameters.build(module.Params, {"epsilon": 0.03, **short}, "config")
    columns = module.attack(make_work(params, toy, toy_x, toy_y, num_classes=6))
    assert columns.pop("x_adv").dtype == np.float32
    threat = Threat(**module.threat(params))
    table = rows.table("attacks", columns, threat.row(), module.columns)
    assert table.num_rows == 4
    assert all(table[column].null_count == 0 for column in module.columns)
