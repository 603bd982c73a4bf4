"""The plug-in: votes to rows, options, columns, and what changes cost no forward pass."""

import numpy as np
import pytest

from certbench import params, plugins
from certbench.certify import randomized_smoothing as plugin
from certbench.certify import votes
from certbench.certify.intervals import cp_lower, two_bounds
from certbench.certify.lattice import distance_from_law
from certbench.certify.radii import radius_one, radius_two
from certbench.certify.randomized_smoothing import CollectParams, DecideParams
from certbench.errors import CertbenchError
from certbench.results import rows
from certbench.threat import Threat

SHAPE = [3, 32, 32]
N = 1000


def stats_of(estimated, selected=None, **identity):
    estimated = np.asarray(estimated)
    selected = estimated if selected is None else np.asarray(selected)
    known = {"seed64": "7", "shape": SHAPE, "scheme": "philox-v1", "backend": "eager"}
    return votes.Votes(
        np.arange(len(estimated), dtype=np.uint32),
        selected,
        estimated,
        {**known, "dtype": "float32", **identity},
    )


STATS = stats_of(
    [[990, 10, 0, 0], [480, 100, 420, 0], [450, 50, 50, 450], [1000, 0, 0, 0], [500, 500, 0, 0]]
)
LABELS = np.array([0, 0, 0, 1, 1])


def decided(stats=STATS, **options):
    collect = {k: options.pop(k) for k in ("sigma", "noise") if k in options}
    collect = CollectParams(**{"sigma": 0.5, "n": N, "n0": 100, **collect})
    return plugin.decide(stats, collect, DecideParams(**options), LABELS)


def test_the_plugin_is_complete_and_its_columns_are_rows_of_certificates():
    assert plugins.load("certifier", "randomized_smoothing") is plugin
    made = decided()
    keys = {"task": "classification", **Threat("lp", "l2").row()}
    extra = {"label": LABELS, "correct": made["predict"] == LABELS, "abstain": made["predict"] < 0}
    table = rows.table("certificates", {**made, **extra}, keys, plugin.columns)
    assert table.num_rows == 5
    assert not set(plugin.columns) - set(made)


def test_one_bound_certificates_are_those_of_the_formula():
    made = decided(alpha=0.001)
    lower = cp_lower([990, 480, 450, 1000, 500], N, 0.001)
    np.testing.assert_allclose(made["p_lower"], lower, rtol=1e-12)
    np.testing.assert_allclose(made["radius"], radius_one(lower, 0.5), rtol=1e-9)
    assert (made["radius"] <= radius_one(lower, 0.5)).all()
    assert made["predict"].tolist() == [0, -1, -1, 0, -1]
    assert made["radius_capped"].tolist() == [False, False, False, True, False]
    assert made["p_upper"] == [None] * 5
    assert made["n_forward"].tolist() == [1100] * 5
    assert made["n"].tolist() == [N] * 5
    assert made["n_runner"].tolist() == [10, 420, 50, 0, 500]
    assert made["n_invalid"].tolist() == [0, 0, 450, 0, 0]


def test_two_bounds_certify_divided_votes_and_count_invalid_ones_as_a_rival():
    made = decided(alpha=0.001, bound="two")
    lower, upper = two_bounds([990, 480, 450, 1000, 500], [10, 420, 450, 0, 500], N, 0.001)
    np.testing.assert_allclose(made["radius"], radius_two(lower, upper, 0.5), rtol=1e-9)
    assert made["predict"].tolist() == [0, -1, -1, 0, -1]
    strong = stats_of([[480, 100, 420, 0]] * 5)
    assert decided(strong, bound="two")["predict"].tolist() == [-1] * 5
    wide = stats_of([[480, 100, 100, 320]] * 5)
    assert decided(wide, bound="two")["predict"][0] == 0
    assert decided(wide)["predict"][0] == -1


def test_selection_decides_which_class_is_tested_and_at_which_level():
    other = stats_of([[990, 10, 0, 0]] * 5, selected=[[0, 9, 0, 0]] * 5)
    assert decided(other)["predict"].tolist() == [-1] * 5
    single = decided(other, selection="single_stage", alpha=0.001)
    assert single["predict"].tolist() == [0] * 5
    assert single["p_lower"][0] == pytest.approx(cp_lower(990, N, 0.0005), rel=1e-12)
    by_label = decided(other, selection="label")
    assert by_label["predict"].tolist() == [0, 0, 0, -1, -1]


def test_randomised_limits_take_coins_that_belong_to_the_image():
    plain, coined = decided(), decided(interval="cp_randomised")
    assert (coined["radius"] >= plain["radius"]).all()
    assert (coined["radius"] > plain["radius"])[0]
    assert np.array_equal(coined["radius"], decided(interval="cp_randomised")["radius"])
    other = stats_of(STATS.estimated, seed64="8")
    assert coined["radius"][0] != decided(other, interval="cp_randomised")["radius"][0]


def test_equivalents_in_other_norms_need_only_the_shape():
    made = decided()
    assert np.array_equal(made["radius_l1_equivalent"], made["radius"])
    np.testing.assert_allclose(
        made["radius_linf_equivalent"], made["radius"] / 55.42562584, rtol=1e-9
    )


def test_lattice_noise_pays_for_the_distance_of_its_law():
    gaussian, lattice = decided(), decided(noise="lattice")
    lost = gaussian["p_lower"] - lattice["p_lower"]
    np.testing.assert_allclose(lost, distance_from_law(0.5, 3072), rtol=1e-4)
    assert (
        lattice["radius"][lattice["radius"] > 0] < gaussian["radius"][lattice["radius"] > 0]
    ).all()


def test_lattice_and_gaussian_shards_run_and_are_told_apart(certifying):
    for noise, scheme in (("gaussian", "philox-v1/eager"), ("lattice", "lattice-v1/integer")):
        collect = CollectParams(sigma=0.5, n=100, n0=10, noise=noise)
        work = certifying.work(plugin.shard_params(collect, 0, 100), (0, 100))
        shard = certifying.shard(plugin, work)
        stats = plugin.merge([shard], collect, work.item_index)
        made = plugin.decide(stats, collect, DecideParams(), np.zeros(4, int))
        assert made["noise_scheme"] == [scheme] * 4
        other = CollectParams(sigma=0.5, n=100, n0=10, noise="lattice")
        if noise == "gaussian":
            with pytest.raises(CertbenchError, match="kind is 'gaussian', but 'lattice'"):
                plugin.merge([shard], other, work.item_index)


def test_lattice_noise_refuses_float_images(certifying):
    collect = CollectParams(sigma=0.5, n=100, n0=10, noise="lattice")
    work = certifying.work(plugin.shard_params(collect, 0, 100), (0, 100))
    work.images = work.images * 0.999
    with pytest.raises(CertbenchError, match="multiples of 1/255"):
        plugin.collect(work)


@pytest.mark.slow
def test_a_compiled_model_votes_alike_and_says_so(certifying):
    from certbench.certify.noise import resolve_backend

    if resolve_backend("cpu") != "compiled":
        pytest.skip("no C++ compiler")
    shards = {}
    for compiled in (False, True):
        collect = CollectParams(sigma=0.5, n=400, n0=10, compile=compiled)
        work = certifying.work(plugin.shard_params(collect, 0, 400), (0, 400))
        shards[compiled] = certifying.shard(plugin, work)
    merged = [
        plugin.merge([shard], CollectParams(sigma=0.5, n=400, n0=10), work.item_index)
        for shard in shards.values()
    ]
    assert np.abs(merged[0].estimated - merged[1].estimated).sum() / 2 <= 1
    assert shards[True].identity["layout"] == "as-given-compiled"
    with pytest.raises(CertbenchError, match="layout is"):
        plugin.merge(list(shards.values()), collect, work.item_index)


def test_a_shard_depends_on_its_samples_not_on_their_total():
    few, many = (CollectParams(sigma=0.5, n=n, n0=100) for n in (1000, 100_000))
    assert plugin.shard_params(few, 0, 500) == plugin.shard_params(many, 0, 500)
    assert plugin.shard_params(few, 500, 1000)["n0"] == 0
    assert plugin.samples(many) == 100_000


def test_attacks_do_not_depend_on_alpha_bound_or_budget():
    a = plugin.attack_params(CollectParams(sigma=0.5, n=1000), DecideParams(alpha=0.001))
    b = plugin.attack_params(CollectParams(sigma=0.5, n=99), DecideParams(alpha=0.1, bound="two"))
    assert a == b
    assert plugin.threat(CollectParams(sigma=0.5), DecideParams(alpha=0.01)) == Threat(
        "lp", "l2", guarantee="probabilistic", alpha=0.01
    )


@pytest.mark.parametrize(
    "collect, decide, match",
    [
        ({"n": 9}, {}, r"n: 9 samples can never certify.*\n.*n >= 10"),
        ({"n": 10}, {"bound": "two"}, "n >= 11"),
        ({"n0": 0}, {}, "n0 >= 1"),
        ({}, {"bound": "two", "selection": "single_stage"}, "selection: two_stage with bound: two"),
        ({}, {"bound": "two", "interval": "cp_randomised"}, "interval: cp with bound: two"),
        ({}, {"predict_n": 10}, "predict_n >= 11"),
        ({"sigma": 64.0}, {}, "for noise of 64.0 levels of 255 give 0.251"),
    ],
)
def test_budgets_that_can_never_answer_are_refused_when_planning(collect, decide, match):
    with pytest.raises(CertbenchError, match=match) as caught:
        plugin.validate(
            CollectParams(**{"sigma": 0.5, **collect}), DecideParams(**decide), "defenses.rs"
        )
    assert caught.value.where.startswith("defenses.rs.")


def test_unknown_choices_are_refused_with_the_nearest_spelling():
    with pytest.raises(CertbenchError, match="did you mean 'lattice'"):
        params.build(CollectParams, {"sigma": 0.5, "noise": "latice"}, "defenses.rs")
    with pytest.raises(CertbenchError, match="is 0"):
        params.build(CollectParams, {"sigma": 0}, "defenses.rs")
