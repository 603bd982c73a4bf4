"""Sampling that stops: fewer passes, the same bounds, resumable, checked when merged."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from scipy.special import ndtr

from certbench import params, plugins
from certbench.certify import noise as noises
from certbench.certify import randomized_smoothing, sampling
from certbench.certify import sequential_smoothing as plugin
from certbench.certify.protocol import Shard
from certbench.certify.sequential import StoppingRule, doubling_looks
from certbench.certify.sequential_smoothing import CollectParams, DecideParams
from certbench.errors import CertbenchError
from certbench.job import Terminated
from certbench.params import as_dict
from certbench.results import rows
from certbench.results.progress import Progress
from certbench.threat import Threat

QUESTION = CollectParams(sigma=0.5, n=1600, n0=50, radii=(0.0, 0.25))


def whole(certifying, collect=QUESTION, **changes):
    work = certifying.work(as_dict(collect), (0, None), count=6, **changes)
    return certifying.shard(plugin, work, "whole.parquet"), work


def decided(shards, work, collect=QUESTION):
    stats = plugin.merge(shards, collect, work.item_index)
    return plugin.decide(stats, collect, DecideParams(), np.zeros(len(work.item_index), int))


def test_the_plugin_is_complete_and_shards_over_items_only(certifying):
    assert plugins.load("certifier", "sequential_smoothing") is plugin
    assert plugin.samples(QUESTION) is None
    shard, work = whole(certifying)
    made = decided([shard], work)
    extra = {
        "label": np.zeros(6, int),
        "correct": made["predict"] == 0,
        "abstain": made["predict"] < 0,
    }
    keys = {"task": "classification", **plugin.threat(QUESTION, DecideParams()).row()}
    assert rows.table("certificates", {**made, **extra}, keys, plugin.columns).num_rows == 6
    assert not set(plugin.columns) - set(made)
    assert plugin.threat(QUESTION, DecideParams()) == Threat(
        "lp", "l2", guarantee="probabilistic", alpha=0.001
    )


def test_votes_are_those_of_fixed_sampling_up_to_where_it_stopped(certifying):
    shard, work = whole(certifying)
    stats = plugin.merge([shard], QUESTION, work.item_index)
    made = decided([shard], work)
    assert len(set(made["n_used"].tolist())) > 1  # the images need different numbers
    for spot, used in enumerate(made["n_used"].tolist()):
        one = certifying.part(work, spot, spot + 1)
        fixed = dataclasses.replace(one, params={"sigma": 0.5, "n0": 50}, samples=(0, used))
        collect = randomized_smoothing.CollectParams(sigma=0.5, n=used, n0=50)
        other = randomized_smoothing.merge(
            [certifying.shard(randomized_smoothing, fixed)], collect, one.item_index
        )
        assert np.array_equal(other.estimated[0], stats.cumulative[-1, spot])
        assert np.array_equal(other.selected[0], stats.selected[spot])
    assert made["n_forward"].tolist() == (made["n_used"] + 50).tolist()


def test_decided_images_draw_no_more_and_certificates_are_the_rules(certifying):
    shard, work = whole(certifying)
    stats = plugin.merge([shard], QUESTION, work.item_index)
    rule = StoppingRule(0.5, 0.001, doubling_looks(1600), radii=(0.0, 0.25))
    top = stats.selected[:, :-1].argmax(1)
    bounds = rule.replay(stats.cumulative[:, np.arange(6), top].T, top)
    expected = rule.certificates(bounds)
    made = decided([shard], work)
    for name in ("predict", "n_used", "conclusive"):
        assert np.array_equal(made[name], expected[name])
    np.testing.assert_allclose(made["radius"], expected["radius"], rtol=1e-12)
    assert shard.rows.num_rows == sum(
        np.count_nonzero(np.diff(stats.cumulative, axis=0, prepend=0)[:, spot])
        + np.count_nonzero(stats.selected[spot])
        for spot in range(6)
    )


@pytest.mark.parametrize("batch_size", [7, 400])
def test_counts_do_not_depend_on_batches_or_item_shards(certifying, batch_size):
    shard, work = whole(certifying)
    wanted = plugin.merge([shard], QUESTION, work.item_index).cumulative
    again = dataclasses.replace(work, batch_size=batch_size)
    parts = [
        certifying.shard(plugin, certifying.part(again, a, b), f"{a}.parquet")
        for a, b in ((4, 6), (0, 1), (1, 4))
    ]
    assert np.array_equal(plugin.merge(parts, QUESTION, work.item_index).cumulative, wanted)


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_killed_job_goes_on_within_its_look(certifying, tmp_path, monkeypatch, after):
    shard, work = whole(certifying)
    forward, calls = type(work.network).forward, []

    def struck(self, x):
        calls.append(len(x))
        if len(calls) == after + 1:
            raise Terminated
        return forward(self, x)

    path = tmp_path / "p.npz"
    with monkeypatch.context() as patch:
        patch.setattr(type(work.network), "forward", struck)
        with pytest.raises(Terminated), Progress(path, "w", every_s=1e9) as progress:
            plugin.collect(dataclasses.replace(work, progress=progress))
    counted = []
    monkeypatch.setattr(
        type(work.network), "forward", lambda self, x: counted.append(1) or forward(self, x)
    )
    with Progress(path, "w") as progress:
        again = certifying.shard(plugin, dataclasses.replace(work, progress=progress))
    assert again.rows.equals(shard.rows)
    monkeypatch.setattr(
        type(work.network), "forward", lambda self, x: calls.append(1) or forward(self, x)
    )
    calls.clear()
    plugin.collect(work)
    assert len(counted) == len(calls) - after


def test_progress_counts_decided_images(certifying):
    ticks = []
    whole(certifying, tick=ticks.append)
    assert sum(ticks) == 6
    assert len(ticks) > 6  # and shows life between


# --- validity ------------------------------------------------------------------------------------


def linear(z):
    score = z.flatten(1).double().sum(1) * 4**-0.5 - 0.5 * 4**0.5 + 0.25
    return torch.stack([-score, score], 1)


LOOKS = (40, 80, 160, 320, 640)


@pytest.fixture(scope="module")
def repetitions():
    """Votes at each look of 1000 images at distance 0.25 = sigma from a linear boundary."""
    images = torch.full((1000, 1, 2, 2), 0.5)

    def votes(stream, start, stop):
        return sampling.count_votes(
            linear, images, np.arange(1000), stream, start, stop, sigma=0.25, num_classes=2,
            noise=sampling.Noise(11, "eager"), batch_size=20_000, numerics="fast", device="cpu",
        )  # fmt: skip

    steps = [votes(noises.ESTIMATION, a, b) for a, b in itertools.pairwise((0, *LOOKS))]
    return plugin.LookVotes(
        np.arange(1000, dtype=np.uint32),
        votes(noises.SELECTION, 0, 40),
        np.cumsum(steps, axis=0),
        {"shape": [1, 2, 2], "scheme": "s", "backend": "b", "dtype": "float32"},
    )


@pytest.mark.parametrize(
    "options", [{}, {"selection": "single_stage"}, {"method": "mixture"}], ids=str
)
def test_stopping_when_it_pleases_is_wrong_no_more_often_than_alpha(repetitions, options):
    # Alpha 0.1; the radius is to be known within 0.01, which no look achieves, so all are taken.
    # More than 0.1 + 3 standard errors has probability below 0.002.
    collect = CollectParams(
        sigma=0.25, n=640, n0=40, alpha=0.1, looks=LOOKS, tolerance=0.01, **options
    )
    made = plugin.decide(repetitions, collect, DecideParams(), np.ones(1000, int))
    wrong = np.mean((made["radius"] > 0.25) | (made["predict"] == 0))
    assert wrong <= 0.1 + 3 * np.sqrt(0.09 / 1000)
    assert np.mean(made["predict"] == 1) > 0.99
    assert (made["n_used"] == 640).mean() > 0.99


def test_peeking_with_plain_limits_would_be_caught(repetitions):
    # The exact rate of "some look exceeds the truth" is 0.2335; 0.15 is 6 standard errors below.
    from certbench.certify.intervals import cp_lower

    votes = repetitions.cumulative[:, :, 1]
    assert (cp_lower(votes, np.array(LOOKS)[:, None], 0.1) > ndtr(1.0)).any(0).mean() > 0.15
    assert votes[-1].sum() / 640_000 == pytest.approx(ndtr(1.0), abs=0.0023)  # 5 standard errors


def test_both_questions_are_answered_to_the_letter(certifying):
    by_radii = dataclasses.replace(QUESTION, n=25_600)
    shard, work = whole(certifying, by_radii)
    made = decided([shard], work, by_radii)
    within = dataclasses.replace(by_radii, radii=(), tolerance=0.1)
    shard, work = whole(certifying, within)
    other = decided([shard], work, within)
    assert (made["n_used"] < 25_600).sum() >= 4
    assert made["conclusive"][made["n_used"] < 25_600].all()
    # A positive radius is not known within 0.1 after 100 samples, whatever the votes.
    assert (other["n_used"][other["predict"] >= 0] > 100).all()
    assert (other["predict"] >= 0).any()
    assert np.array_equal(made["predict"] >= 0, made["radius"] > 0)


# --- legality of a merge -------------------------------------------------------------------------


def without(shard, mask):
    return Shard(Path("cut.parquet"), shard.rows.filter(pc.invert(mask)), shard.identity)


def estimation(shard, item, start):
    table = shard.rows
    return pc.and_(
        pc.and_(pc.equal(table["item_index"], pa.scalar(item, pa.uint32())),
                pc.equal(table["stream"], noises.ESTIMATION)),
        pc.greater_equal(table["sample_start"], start),
    )  # fmt: skip


def test_missing_looks_are_refused(certifying):
    shard, work = whole(certifying)
    made = decided([shard], work)
    longest = int(made["n_used"].argmax())
    item = int(work.item_index[longest])
    cut = without(shard, estimation(shard, item, int(made["n_used"][longest]) // 2))
    with pytest.raises(CertbenchError, match=f"item {item} .* asks for more") as caught:
        decided([cut], work)
    assert caught.value.where == "cut.parquet"
    selection = pc.equal(shard.rows["stream"], noises.SELECTION)
    with pytest.raises(CertbenchError, match=r"stream 0\) has 0|stream 1"):
        decided([without(shard, selection)], work)


def test_more_votes_than_the_rule_asks_for_are_refused(certifying):
    # An image that goes on after its decision, in the hope of a better bound.
    shard, work = whole(certifying)
    made = decided([shard], work)
    early = int(made["n_used"].argmin())
    used = int(made["n_used"][early])
    extra = {
        "stream": [1], "sample_start": [used], "sample_stop": [2 * used], "class": [0],
        "count": [used], "item_index": [int(work.item_index[early])],
    }  # fmt: skip
    longer = pa.concat_tables([shard.rows, pa.table(extra).cast(shard.rows.schema)])
    with pytest.raises(CertbenchError, match=f"asks for {used}"):
        decided([Shard(Path("long.parquet"), longer, shard.identity)], work)


@pytest.mark.parametrize(
    "change", [{"alpha": 0.01}, {"radii": (0.5,)}, {"growth": 4.0}, {"method": "mixture"}]
)
def test_other_questions_need_other_votes(certifying, change):
    shard, work = whole(certifying)
    with pytest.raises(CertbenchError, match=r"rule is .* but .* in the configuration"):
        decided([shard], work, dataclasses.replace(QUESTION, **change))


# --- parameters ----------------------------------------------------------------------------------


def test_schedules():
    assert plugin.schedule(CollectParams(sigma=1, n=100_000)) == doubling_looks(100_000)
    fine = plugin.schedule(CollectParams(sigma=1, n=1000, growth=1.1))
    assert fine[0] == 100
    assert fine[-1] == 1000
    assert all(a < b <= np.ceil(a * 1.1 + 1e-9) for a, b in itertools.pairwise(fine))
    assert plugin.schedule(CollectParams(sigma=1, n=50)) == (50,)
    assert plugin.schedule(CollectParams(sigma=1, n=90, looks=(30, 90))) == (30, 90)


@pytest.mark.parametrize(
    "values, match",
    [
        ({}, r"radii: nothing to decide.*\n.*give radii, a tolerance, or both"),
        ({"radii": [0.5], "n": 9}, r"\bn: 9 samples can never certify.*\n.*at least 10 samples"),
        ({"radii": [0.5], "looks": [5, 9], "n": 9}, "looks: 9 samples can never certify"),
        ({"radii": [5.0]}, "radii: are all beyond"),
        ({"radii": [0.5], "sigma": 25.0}, "sigma: is 25.0.*\n.*give 0.098"),
        ({"radii": [0.5], "n": 2**32 + 1}, r"\bn: .*\n.*4,294,967,296 samples"),
        ({"radii": [0.5], "looks": [100, 50]}, "ascending"),
        ({"radii": [0.5], "looks": [100, 200]}, "let the last look be n"),
        ({"radii": [0.5], "n0": 0}, "n0 >= 1"),
        (
            {"radii": [0.5], "method": "mixture", "selection": "single_stage"},
            "selection: .*fixed looks only",
        ),
    ],
)
def test_questions_that_are_none_are_refused_when_planning(values, match):
    collect = params.build(CollectParams, {"sigma": 0.5, **values}, "defenses.s")
    with pytest.raises(CertbenchError, match=match) as caught:
        plugin.validate(collect, DecideParams(), "defenses.s")
    assert caught.value.where.startswith("defenses.s.")


def test_attacks_see_the_same_classifier_as_in_randomized_smoothing():
    a = plugin.attack_params(QUESTION, DecideParams())
    b = randomized_smoothing.attack_params(
        randomized_smoothing.CollectParams(sigma=0.5), randomized_smoothing.DecideParams()
    )
    assert a == b
