"""Splitting noise: against brute force over all small perturbations, and the tie rule."""

import itertools

import numpy as np
import pytest
import torch

from certbench import params, plugins
from certbench.certify import splitting as plugin
from certbench.certify.protocol import SurfaceWork
from certbench.certify.splitting import CollectParams, DecideParams
from certbench.errors import CertbenchError
from certbench.results import rows
from certbench.threat import Threat, contains


def middle_by_hand(level, split, total):
    """Middle of the interval around an integer level, clipped; points split + 1/2 + k total."""
    points = [split + 0.5 + k * total for k in range(-300, 300)]
    low = max(p for p in points if p < level)
    high = min(p for p in points if p > level)
    return (max(low, 0) + min(high, 255)) / 2 / 255


@pytest.mark.parametrize("total", [2, 7, 60, 255, 510])
def test_the_network_sees_the_middle_of_the_interval_clipped(total):
    levels = torch.tensor([0, 1, 3, 100, 254, 255], dtype=torch.float64)
    for split in sorted({0, 1, total // 2, total - 1}):
        made = plugin.split_middle(levels, torch.tensor(split), total)
        expected = [middle_by_hand(int(v), split, total) for v in levels]
        np.testing.assert_allclose(made.numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("total", [5, 40, 255])
def test_a_move_by_d_levels_changes_what_is_seen_in_at_most_d_shifts(total):
    shift = torch.arange(total)
    for start, d in itertools.product((0, 17, 200), (0, 1, 3, 39)):
        before, after = (
            plugin.split_middle(torch.tensor([float(v)], dtype=torch.float64), shift, total)
            for v in (start, start + d)
        )
        assert int((before != after).sum()) == min(d, total)


def test_every_value_meets_every_split_position_once():
    total = plugin.shifts(40 / 510)
    assert total == 40
    fixed = plugin.offsets(3, 50, total)
    positions = (fixed[None] + np.arange(total)[:, None]) % total
    assert (np.sort(positions, 0) == np.arange(total)[:, None]).all()
    assert len(set(fixed.tolist())) > 15
    assert np.array_equal(fixed[:20], plugin.offsets(3, 20, total))
    assert not np.array_equal(fixed, plugin.offsets(4, 50, total))


def test_half_a_pixel_range_takes_255_passes():
    assert plugin.samples(CollectParams(half_width=0.5)) == 255
    assert plugin.samples(CollectParams(half_width=1.0)) == 510
    for width in (0.123, 0.001):
        with pytest.raises(CertbenchError, match="no whole number of levels") as caught:
            plugin.validate(CollectParams(half_width=width), DecideParams(), "defenses.s")
        assert caught.value.where == "defenses.s.half_width"


@pytest.mark.parametrize(
    "counts, top, levels",
    [
        ([200, 55, 0, 0], 0, 72),  # floor(145 / 2)
        ([55, 200, 0, 0], 1, 72),  # floor((145 - 1) / 2): class 0 wins ties
        ([55, 199, 1, 0], 1, 71),  # floor((144 - 1) / 2)
        ([1, 199, 55, 0], 1, 72),  # floor(144 / 2): class 2 loses ties
        ([100, 100, 55, 0], 0, 0),  # equal counts: class 0, and nothing to spare
        ([0, 100, 100, 55], 1, 0),
        ([99, 100, 56, 0], 1, 0),  # one vote of lead before a lower class
        ([255, 0, 0, 0], 0, 127),
        ([100, 0, 0, 155], 0, -28),  # invalid answers lead
    ],
)
def test_the_radius_is_half_the_lead_under_the_tie_rule(counts, top, levels):
    made = plugin.certified_levels(np.array([counts]))
    assert (made["top"][0], made["levels"][0]) == (top, levels)


def test_a_rival_with_fewer_votes_but_a_lower_index_may_bind():
    # Class 2 leads by 5; class 1 is 5 behind (index lower: floor(4 / 2)), class 3 also.
    made = plugin.certified_levels(np.array([[0, 10, 15, 10, 0]]))
    assert (made["top"][0], made["runner"][0], made["levels"][0]) == (2, 1, 2)


def scattered(x):
    """Three classes that change often, so that votes are divided and the bound is put to work."""
    score = torch.stack(
        [torch.sin(x.flatten(1).double() @ torch.tensor(w).double()) for w in WEIGHTS], 1
    )
    return score.float()


WEIGHTS = [[9.0, -4.0, 3.0], [-6.0, 7.0, 2.0], [2.0, 5.0, -8.0]]


class Scattered(torch.nn.Module):
    num_classes = 3

    def forward(self, x):
        return scattered(x)


def work_of(certifying, levels, params, samples):
    images = torch.tensor(levels, dtype=torch.float32).view(-1, 3, 1, 1) / 255
    return certifying.work(
        params,
        samples,
        count=len(levels),
        images=images,
        network=Scattered().eval(),
    )


def certified(certifying, levels, collect):
    params = {"half_width": collect.half_width, "offset_seed": collect.offset_seed}
    work = work_of(certifying, levels, params, (0, plugin.samples(collect)))
    stats = plugin.merge([certifying.shard(plugin, work)], collect, work.item_index)
    return plugin.decide(stats, collect, DecideParams(), np.zeros(len(levels), int)), stats


def test_no_perturbation_of_the_certified_size_changes_the_class(certifying):
    collect = CollectParams(half_width=60 / 510, offset_seed=2)
    centres = [[30, 140, 200], [0, 255, 10], [90, 90, 90], [250, 3, 128]]
    made, _ = certified(certifying, centres, collect)
    assert made["radius_levels"].max() >= 4
    tested = 0
    for centre, radius, label in zip(centres, made["radius_levels"], made["predict"], strict=True):
        reach = int(min(radius, 6))
        around = [
            [c + d for c, d in zip(centre, move, strict=True)]
            for move in itertools.product(range(-reach, reach + 1), repeat=3)
            if sum(map(abs, move)) <= reach
        ]
        around = [point for point in around if min(point) >= 0 and max(point) <= 255]
        found, _ = certified(certifying, around, collect)
        assert (found["predict"] == label).all()
        tested += len(around)
    assert tested > 300


def test_votes_move_by_at_most_the_size_of_the_perturbation(certifying):
    collect = CollectParams(half_width=60 / 510)
    moves = [[0, 0, 0], [1, 0, 0], [-2, 1, 0], [3, 3, 3], [0, -20, 5]]
    _, stats = certified(certifying, [[100 + m for m in move] for move in moves], collect)
    for move, counts in zip(moves, stats.estimated, strict=True):
        assert np.abs(counts - stats.estimated[0]).sum() / 2 <= sum(map(abs, move))
    assert stats.estimated.sum(1).tolist() == [60] * 5


def test_shards_of_shifts_add_up_and_other_offsets_are_refused(certifying):
    collect = CollectParams(half_width=60 / 510, offset_seed=2)
    params = {"half_width": 60 / 510, "offset_seed": 2}
    levels = [[30, 140, 200], [0, 255, 10]]
    _, whole = certified(certifying, levels, collect)
    parts = [
        certifying.shard(plugin, work_of(certifying, levels, params, samples), str(samples))
        for samples in ((40, 60), (0, 13), (13, 40))
    ]
    index = np.array([10, 11], np.uint32)
    assert np.array_equal(plugin.merge(parts, collect, index).estimated, whole.estimated)
    with pytest.raises(CertbenchError, match="seed64 is '2', but '3'"):
        plugin.merge(parts, CollectParams(half_width=60 / 510, offset_seed=3), index)
    with pytest.raises(CertbenchError, match="missing"):
        plugin.merge(parts[1:], collect, index)


def test_the_guarantee_is_deterministic_and_about_8_bit_images(certifying):
    assert plugins.load("certifier", "splitting") is plugin
    threat = plugin.threat(CollectParams(half_width=0.5), DecideParams())
    assert threat == Threat("lp", "l1", space="uint8", guarantee="deterministic")
    # Real-valued perturbations are another space: they are never held against it.
    assert not contains(threat.sized(1.0), Threat("lp", "l1", 0.1))
    collect = CollectParams(half_width=60 / 510)
    made, _ = certified(certifying, [[30, 140, 200]], collect)
    assert made["alpha"].tolist() == [0.0]
    assert made["n_forward"].tolist() == [60]
    extra = {"label": [0], "correct": [False], "abstain": [False]}
    keys = {"task": "classification", **threat.row()}
    assert rows.table("certificates", {**made, **extra}, keys, plugin.columns).num_rows == 1
    work = work_of(certifying, [[1.5, 2, 3]], {"half_width": 60 / 510, "offset_seed": 0}, (0, 60))
    with pytest.raises(CertbenchError, match="multiples of 1/255"):
        plugin.collect(work)


def test_attacks_meet_the_certified_rule_and_a_useful_gradient(certifying):
    collect = CollectParams(half_width=60 / 510, offset_seed=2)
    levels = [[30, 140, 200], [0, 255, 10], [90, 90, 90]]
    made, _ = certified(certifying, levels, collect)
    surface = plugin.attack_surface(
        SurfaceWork(
            network=Scattered().eval(),
            params=plugin.attack_params(collect, DecideParams(attack_draws=8)),
            num_classes=3,
            seed64=1,
            device="cpu",
            batch_size=64,
            numerics="exact",
        )
    )
    x = torch.tensor(levels, dtype=torch.float32).view(-1, 3, 1, 1) / 255
    assert surface.judge(x).tolist() == made["predict"].tolist()
    assert (surface.judge.passes, surface.logits.passes) == (60, 8)
    x.requires_grad_()
    surface.logits(x)[:, 0].sum().backward()
    assert (x.grad.abs() > 1e-3).all()


def test_a_seed_that_no_column_holds_is_refused():
    with pytest.raises(CertbenchError, match="offset_seed"):
        params.build(CollectParams, {"half_width": 0.5, "offset_seed": 2**63}, "defenses.x")
    assert plugin.offsets(2**63 - 1, 8, 5).max() < 5
