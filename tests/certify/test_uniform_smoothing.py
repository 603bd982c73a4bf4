"""Uniform noise: l1 radii from votes, and an exact case."""

import dataclasses

import numpy as np
import pytest
import torch

from certbench import plugins
from certbench.certify import noise as noises
from certbench.certify import sampling, votes
from certbench.certify import uniform_smoothing as plugin
from certbench.certify.intervals import cp_lower, two_bounds
from certbench.certify.protocol import SurfaceWork
from certbench.certify.uniform_smoothing import CollectParams, DecideParams
from certbench.errors import CertbenchError
from certbench.results import rows
from certbench.threat import Threat

STATS = votes.Votes(
    np.arange(3, dtype=np.uint32),
    np.array([[50, 50, 0], [100, 0, 0], [0, 100, 0]]),
    np.array([[90_000, 10_000, 0], [49_000, 51_000, 0], [500, 99_000, 500]]),
    {"shape": [3, 32, 32], "scheme": "philox-v1", "backend": "eager", "dtype": "float32"},
)


def decided(half_width=0.5, **options):
    collect = CollectParams(half_width=half_width, n=100_000, n0=100)
    return plugin.decide(STATS, collect, DecideParams(**options), np.array([0, 1, 1]))


def test_radii_are_those_of_the_formulas():
    made = decided()
    assert made["radius"][0] == pytest.approx(0.3970364962, abs=1e-9)
    assert made["predict"].tolist() == [0, -1, 1]
    lower = cp_lower([90_000, 49_000, 99_000], 100_000, 0.001)
    expected = 2 * 0.5 * (1 - (1.5 - lower[[0, 2]]) ** (1 / 3072))
    np.testing.assert_allclose(made["radius_linf"][[0, 2]], expected, rtol=1e-6)
    assert made["radius_linf"][1] == 0
    two = decided(bound="two")
    lower, upper = two_bounds([90_000, 99_000], [10_000, 500], 100_000, 0.001)
    np.testing.assert_allclose(two["radius"][[0, 2]], 0.5 * (lower - upper), rtol=1e-9)
    assert two["radius"][2] > made["radius"][2]


def test_the_threat_is_l1_and_the_rows_are_certificates():
    assert plugins.load("certifier", "uniform_smoothing") is plugin
    made = decided()
    threat = plugin.threat(CollectParams(half_width=0.5), DecideParams(alpha=0.01))
    assert threat == Threat("lp", "l1", guarantee="probabilistic", alpha=0.01)
    extra = {"label": [0, 1, 1], "correct": [True] * 3, "abstain": made["predict"] < 0}
    keys = {"task": "classification", **threat.row()}
    assert rows.table("certificates", {**made, **extra}, keys, plugin.columns).num_rows == 3


def test_no_shift_within_the_radius_changes_the_class(certifying):
    """A stripe pattern along two axes: g is known by volume, certificates stay below its edge."""

    class Corner(torch.nn.Module):
        num_classes = 2

        def forward(self, z):
            inside = (z.flatten(1)[:, :2] > 0.35).all(1).float()
            return torch.stack([0.5 - inside, inside - 0.5], 1)

    # Noise on [-0.2, 0.2] at 0.5: each of two values stays above 0.35 with probability 7/8, and
    # after moving both by t with (7/8 - t / 0.4): g changes at l1 size 2 t = 0.134, one axis 0.121.
    x = torch.full((1, 3, 1, 1), 128 / 255)
    collect = CollectParams(half_width=0.2, n=10_000, n0=100)
    work = certifying.work(
        plugin.shard_params(collect, 0, 10_000), (0, 10_000), count=1, images=x, batch_size=2000,
        network=Corner().eval(), numerics="fast",
    )  # fmt: skip
    stats = plugin.merge([certifying.shard(plugin, work)], collect, work.item_index)
    made = plugin.decide(stats, collect, DecideParams(), np.ones(1, int))
    share = (128 / 255 - 0.35 + 0.2) / 0.4
    assert stats.estimated[0, 1] / 10_000 == pytest.approx(share**2, abs=5 * 0.5 / 100)
    truth = 0.4 * (share - 0.5 / share)  # moving one value alone
    assert 0.08 < made["radius"][0] < truth


def test_noise_is_uniform_within_the_half_width(certifying):
    seen = []

    class Watching(torch.nn.Module):
        num_classes = 2

        def forward(self, z):
            seen.append(z.clone())
            return torch.zeros(len(z), 2)

    collect = CollectParams(half_width=0.3, n=200, n0=0)
    work = certifying.work(
        plugin.shard_params(collect, 0, 200), (0, 200), count=1, network=Watching().eval()
    )
    plugin.collect(work)
    noise = (torch.cat(seen)[:200] - work.images).flatten(1).numpy()
    reference = 0.3 * noises.philox_uniform(work.seed64, noises.ESTIMATION, 10, np.arange(200), 192)
    np.testing.assert_allclose(noise, reference, atol=1e-6)
    # 38400 values: 5 standard errors of mean and variance.
    assert abs(noise.mean()) < 5 * 0.3 / np.sqrt(3 * noise.size)
    assert noise.var() == pytest.approx(0.03, rel=5 * np.sqrt(0.8 / noise.size))


def test_uniform_and_gaussian_shards_never_merge(certifying):
    from certbench.certify import randomized_smoothing

    work = certifying.work({"half_width": 0.5, "n0": 10, "compile": False}, (0, 50))
    gaussian = dataclasses.replace(work, params={"sigma": 0.5, "n0": 10})
    collect = CollectParams(half_width=0.5, n=50, n0=10)
    with pytest.raises(CertbenchError, match="kind is 'gaussian', but 'uniform'"):
        plugin.merge([certifying.shard(randomized_smoothing, gaussian)], collect, work.item_index)


def test_attacks_climb_uniform_noise_and_are_judged_by_it(certifying):
    work = certifying.work({}, (0, 1))
    surface = plugin.attack_surface(
        SurfaceWork(
            network=work.network,
            params=plugin.attack_params(CollectParams(half_width=0.4), DecideParams(predict_n=100)),
            num_classes=5,
            seed64=work.seed64,
            device="cpu",
            batch_size=64,
            numerics="exact",
            noise_backend="eager",
        )
    )
    items = work.item_index.astype(np.int64)
    drawn = surface.logits._draws_of(work.images, items)
    # 12288 values.
    assert drawn.abs().max() <= 1
    assert float(drawn.var()) == pytest.approx(1 / 3, rel=5 * np.sqrt(0.8 / drawn.numel()))
    counts = sampling.count_votes(
        work.network, work.images, items, noises.PREDICTION, 0, 100, sigma=0.4, num_classes=5,
        noise=sampling.Noise(work.seed64, "eager", "uniform"), batch_size=64, numerics="exact",
        device="cpu",
    )  # fmt: skip
    from certbench.certify.smoothing import predict_counts

    assert surface.judge(work.images, items).tolist() == predict_counts(counts, 0.001)[0].tolist()


def test_budgets_that_can_never_certify_are_refused():
    with pytest.raises(CertbenchError, match="n >= 10"):
        plugin.validate(CollectParams(half_width=0.5, n=9), DecideParams(), "defenses.u")
