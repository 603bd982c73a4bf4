"""Votes over bands and blocks: how many views a patch touches, ties, and exhaustive patches."""

import itertools

import numpy as np
import pytest
import torch

from certbench import plugins
from certbench.certify import derandomized_smoothing as plugin
from certbench.certify.derandomized_smoothing import CollectParams, DecideParams
from certbench.certify.protocol import SurfaceWork
from certbench.errors import CertbenchError
from certbench.params import as_dict
from patch_tables import Toy, every_patch, toy_images


def params(**change):
    return as_dict(CollectParams(**{"band": 4, **change}))


def test_the_module_is_a_complete_plug_in():
    assert plugins.load("certifier", "derandomized_smoothing") is plugin


@pytest.mark.parametrize(
    ("ablation", "shape", "band", "patch", "most"),
    [
        ("column", (3, 32, 32), 4, 5, 8),
        ("row", (3, 32, 32), 4, 5, 8),
        ("column", (3, 299, 299), 25, 42, 66),
        ("block", (3, 32, 32), 12, 5, 16**2),
        ("column", (3, 20, 32), 30, 5, 32),  # every band meets the patch
    ],
)
def test_a_patch_touches_as_many_views_as_published(ablation, shape, band, patch, most):
    found = plugin.touched(params(ablation=ablation, band=band), shape)
    assert found[patch - 1] == most
    assert len(found) == min(shape[1:]) and (np.diff(found) >= 0).all()


@pytest.mark.parametrize("ablation", plugin.ABLATIONS)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_touched_views_are_those_that_show_a_pixel_of_the_patch(ablation, stride):
    chosen, shape = params(ablation=ablation, band=3, stride=stride), (1, 7, 9)
    visible = ~plugin.blanked(chosen, shape)
    for side, most in enumerate(plugin.touched(chosen, shape), 1):
        counts = [
            visible[:, a : a + side, b : b + side].any((1, 2)).sum()
            for a, b in itertools.product(range(8 - side), range(10 - side))
        ]
        assert most == max(counts)


def test_views_wrap_around_and_keep_their_band_only():
    seen = ~plugin.blanked(params(band=3), (3, 5, 6))
    assert seen.shape == (6, 5, 6)
    assert (seen.sum((1, 2)) == 15).all()
    assert seen[5, 0].tolist() == [True, True, False, False, False, True]
    with pytest.raises(CertbenchError, match="does not fit") as caught:
        plugin.blanked(params(band=7), (3, 5, 6))
    assert "at most 6" in caught.value.remedy


@pytest.mark.parametrize(
    ("counts", "top", "runner", "lead"),
    [
        ([10, 4, 3], 0, 1, 6),
        ([4, 10, 3], 1, 0, 5),  # the lower class wins equal counts
        ([4, 10, 5], 1, 0, 5),
        ([4, 10, 6], 1, 2, 4),
        ([5, 5, 5], 0, 1, 0),
        ([0, 0, 0], 0, 1, 0),
    ],
)
def test_the_lead_follows_the_tie_rule(counts, top, runner, lead):
    made = plugin.leads(np.array([counts]))
    assert [int(value[0]) for value in made] == [top, runner, lead]


@pytest.mark.parametrize(
    ("n_top", "radius"),
    # Bands of 4 in 32: a patch of p touches p + 3 views, so 2 (p + 3) votes are needed.
    [(7, 0), (8, 1), (9, 1), (10, 2), (24, 9)],
)
def test_the_radius_is_the_largest_patch_that_the_lead_outweighs(n_top, radius):
    stats = plugin.Votes(np.array([[n_top, 0, 0]]), np.array([0]), (3, 32, 32))
    made = plugin.decide(stats, CollectParams(band=4), DecideParams(), np.array([0]))
    assert made["radius"][0] == radius
    assert made["touched"][0] == (radius + 3 if radius else 0)
    assert made["n_forward"][0] == 33


def surface_of(network, collect, classes=3):
    chosen = plugin.attack_params(collect, DecideParams(attack_views=3))
    return plugin.attack_surface(SurfaceWork(network, chosen, classes, 7, "cpu", 64, "exact"))


@pytest.mark.parametrize(
    ("ablation", "band", "stride", "threshold"),
    [("column", 2, 1, 0.4), ("row", 2, 1, None), ("block", 3, 2, 0.4)],
)
def test_no_patch_of_the_exhaustive_toy_breaks_a_certified_image(
    certifying, ablation, band, stride, threshold
):
    network = Toy()
    images, labels = toy_images(network)
    collect = CollectParams(
        band=band, ablation=ablation, stride=stride, threshold=threshold, fill=0.5
    )
    work = certifying.work(
        as_dict(collect),
        (0, None),
        network=network,
        images=images,
        labels=labels.numpy().astype(np.int32),
        item_index=np.arange(12, dtype=np.uint32),
    )
    stats = plugin.merge([certifying.shard(plugin, work)], collect, np.arange(12))
    made = plugin.decide(stats, collect, DecideParams(), work.labels)
    judge = surface_of(network, collect).judge
    assert judge(images).tolist() == made["predict"].tolist()
    assert (made["radius"] >= 2).sum() >= 4
    broken = 0
    for i, image in enumerate(images):
        attacked = every_patch(image, 2, (0.0, 1.0)).flatten(0, 1)
        holds = bool((judge(attacked) == int(made["predict"][i])).all())
        assert holds or made["radius"][i] < 2
        broken += not holds
    # Some images do fall, so the certificate had something to lose.
    assert broken >= 1


def test_the_bound_is_reached(certifying):
    """A model that votes by brightness: one touched view more than certified overturns it."""

    class Bright(torch.nn.Module):
        num_classes = 2

        def forward(self, x):
            peak = x.flatten(1).amax(1)
            return 10 * torch.stack([0.75 - peak, peak - 0.75], 1)

    network = Bright().eval()
    images = torch.full((1, 1, 8, 8), 0.5)
    collect = CollectParams(band=2, threshold=None, fill=0.5)
    work = certifying.work(
        as_dict(collect),
        (0, None),
        network=network,
        images=images,
        labels=np.zeros(1, np.int32),
        item_index=np.zeros(1, np.uint32),
    )
    stats = plugin.merge([certifying.shard(plugin, work)], collect, np.zeros(1))
    made = plugin.decide(stats, collect, DecideParams(), work.labels)
    # All 8 views vote for class 0; a patch of 3 touches 4 of them, and 8 >= 2 x 4.
    assert stats.counts.tolist() == [[8, 0]] and made["radius"][0] == 3
    judge = surface_of(network, collect, classes=2).judge
    for side, answer in ((3, 0), (4, 1)):
        attacked = images.clone()
        attacked[:, :, :side, :side] = 1.0
        assert judge(attacked).tolist() == [answer]


def test_shards_merge_and_a_killed_job_goes_on(certifying):
    collect = CollectParams(band=3, threshold=0.3, fill=0.2)
    work = certifying.work(as_dict(collect), (0, None), count=200)
    items = work.item_index
    whole = plugin.merge([certifying.shard(plugin, work)], collect, items)
    parts = [certifying.shard(plugin, certifying.part(work, a, b)) for a, b in ((90, 200), (0, 90))]
    assert np.array_equal(plugin.merge(parts, collect, items).counts, whole.counts)

    class Killed:
        state = None

        def load(self):
            return self.state

        def save(self, state):
            first = self.state is None
            self.state = {k: np.copy(v) for k, v in state.items()}
            if first:
                raise KeyboardInterrupt

    progress = Killed()
    with pytest.raises(KeyboardInterrupt):
        plugin.collect(certifying.work(as_dict(collect), (0, None), count=200, progress=progress))
    assert 0 < int(progress.state["done"]) < 200
    again = certifying.work(as_dict(collect), (0, None), count=200, progress=progress)
    assert plugin.collect(again)[0]["votes"] == plugin.collect(work)[0]["votes"]


def test_surrogates_are_offered_and_point_the_right_way():
    network = Toy()
    images, labels = toy_images(network)
    surface = surface_of(network, CollectParams(band=3, threshold=0.4, fill=0.5))
    assert list(surface.objectives) == ["base", "expectation", "soft-votes", "coherent", "votes"]
    assert "columns" in surface.judged_by or "column of 3 pixels" in surface.judged_by
    soft = surface.objectives["soft-votes"]
    items = np.arange(12)
    passes = soft.per_pass(images, items=items)
    assert passes.shape == (12, 8, 3)
    loss = soft.loss(passes, labels, None, None)
    probability = torch.softmax(passes, 2)
    votes = torch.sigmoid(10 * (probability - 0.4)).mean(1)
    others = torch.stack(
        [votes[i, [c for c in range(3) if c != y]].max() for i, y in enumerate(labels.tolist())]
    )
    assert torch.allclose(loss, others - votes[items, labels], atol=1e-6)
