"""Counts do not depend on how they were collected, and only what belongs together is added up."""

import dataclasses
import inspect
import itertools
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from certbench.certify import noise as noises
from certbench.certify import randomized_smoothing as plugin
from certbench.certify import sampling, sequential_smoothing, smoothing, votes
from certbench.certify.intervals import cp_lower
from certbench.certify.protocol import Shard
from certbench.certify.radii import radius_one
from certbench.certify.randomized_smoothing import CollectParams
from certbench.errors import CertbenchError
from certbench.job import Terminated
from certbench.models.network import Network
from certbench.results.progress import Progress

N, N0 = 300, 20
PARAMS = {"sigma": 0.5, "n0": N0}
LATER = {"sigma": 0.5, "n0": 0}
COLLECT = CollectParams(sigma=0.5, n=N, n0=N0)


@pytest.fixture
def whole(certifying):
    """Votes of one shard that has everything."""
    shard = certifying.shard(plugin, certifying.work(PARAMS, (0, N)))
    return plugin.merge([shard], COLLECT, certifying.work(PARAMS, (0, N)).item_index)


def same(a, b):
    return np.array_equal(a.selected, b.selected) and np.array_equal(a.estimated, b.estimated)


def test_votes_are_divided_enough_for_these_tests_to_notice(whole):
    assert (np.sort(whole.estimated, 1)[:, -2] > 10).sum() >= 3
    assert whole.estimated.sum(1).tolist() == [N] * 4
    assert whole.selected.sum(1).tolist() == [N0] * 4


@pytest.mark.parametrize("batch_size", [7, 64, 400, 1000])
def test_exact_counts_do_not_depend_on_the_batch_size(certifying, whole, batch_size):
    work = certifying.work(PARAMS, (0, N), batch_size=batch_size)
    assert same(plugin.merge([certifying.shard(plugin, work)], COLLECT, work.item_index), whole)


@pytest.mark.parametrize("pieces", [1, 3, 10])
def test_exact_counts_do_not_depend_on_shards_or_their_order(certifying, whole, pieces):
    edges = np.linspace(0, N, pieces + 1).astype(int)
    shards = [
        certifying.shard(
            plugin,
            certifying.work(PARAMS if start == 0 else LATER, (int(start), int(stop))),
            f"{start}.parquet",
        )
        for start, stop in itertools.pairwise(edges)
    ]
    index = certifying.work(PARAMS, (0, N)).item_index
    for order in (shards, shards[::-1], shards[1:] + shards[:1]):
        assert same(plugin.merge(order, COLLECT, index), whole)


def test_shards_of_items_and_of_samples_fit_together(certifying, whole):
    work = certifying.work(PARAMS, (0, N))
    shards = []
    for (a, b), (start, stop) in itertools.product([(0, 1), (1, 4)], [(0, 130), (130, N)]):
        part = dataclasses.replace(
            certifying.part(work, a, b),
            samples=(start, stop),
            params=PARAMS if start == 0 else LATER,
        )
        shards.append(certifying.shard(plugin, part, f"{a}-{start}"))
    assert same(plugin.merge(shards, COLLECT, work.item_index), whole)


def test_other_items_in_the_shard_do_not_change_an_items_votes(certifying, whole):
    work = certifying.part(certifying.work(PARAMS, (0, N)), 2, 3)
    alone = plugin.merge([certifying.shard(plugin, work)], COLLECT, work.item_index)
    assert np.array_equal(alone.estimated[0], whole.estimated[2])


@pytest.mark.parametrize("signal", [Terminated, KeyboardInterrupt])
@pytest.mark.parametrize("batches_done", [1, 2, 8])
def test_a_killed_job_goes_on_where_it_was(certifying, whole, tmp_path, signal, batches_done):
    passed = []

    def tick(count):
        passed.append(count)
        if len(passed) == batches_done:
            raise signal

    path = tmp_path / "p.npz"
    with pytest.raises(signal), Progress(path, "w", every_s=1e9) as progress:
        plugin.collect(certifying.work(PARAMS, (0, N), progress=progress, tick=tick))
    before = sum(passed)
    again = []
    with Progress(path, "w", every_s=1e9) as progress:
        work = certifying.work(PARAMS, (0, N), progress=progress, tick=again.append)
        shard = certifying.shard(plugin, work)
        assert progress.resumed
    assert same(plugin.merge([shard], COLLECT, work.item_index), whole)
    # Nothing is computed twice: the first ticks of each stream tell what was there already.
    assert sum(again) == 4 * (N + N0)
    assert again[0] == min(before, 4 * N0)


def test_a_signal_between_a_batch_and_its_bookkeeping_loses_and_doubles_nothing(
    certifying, whole, tmp_path, monkeypatch
):
    add = torch.Tensor.index_add_
    calls = []

    def struck(self, *args):
        made = add(self, *args)
        calls.append(1)
        if len(calls) == selection + 3:
            raise Terminated
        return made

    batch = sampling.exact_batch("cpu")
    selection = -(-4 * N0 // batch)
    path = tmp_path / "p.npz"
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "index_add_", struck)
        with pytest.raises(Terminated), Progress(path, "w", every_s=1e9) as progress:
            plugin.collect(certifying.work(PARAMS, (0, N), progress=progress))
    with Progress(path, "w") as progress:
        state = progress.load()
        assert state["stream1.done"] == 3 * batch
        work = certifying.work(PARAMS, (0, N), progress=progress)
        shard = certifying.shard(plugin, work)
    assert same(plugin.merge([shard], COLLECT, work.item_index), whole)


def test_fast_numerics_change_at_most_one_vote_in_ten_thousand(certifying):
    total = {}
    for batch_size in (64, 1000):
        work = certifying.work(PARAMS, (0, 2500), batch_size=batch_size, numerics="fast")
        collect = CollectParams(sigma=0.5, n=2500, n0=N0)
        shard = certifying.shard(plugin, work)
        total[batch_size] = plugin.merge([shard], collect, work.item_index).estimated
    assert np.abs(total[64] - total[1000]).sum() / 2 <= 1e-4 * 4 * 2500


@pytest.mark.data
def test_a_trained_network_votes_alike_folded_or_not_in_any_batch():
    folder = os.environ.get("CERTBENCH_DATA")
    if not folder:
        pytest.skip("CERTBENCH_DATA names no folder with real images")
    import io

    import pyarrow.parquet as pq
    from PIL import Image

    from certbench.models import cifar_resnet
    from certbench.models.checkpoints import load_into, read_state
    from certbench.models.network import Network

    weights = Path(folder) / "models" / "cifar10_resnet20_sigma0.25.safetensors"
    net = cifar_resnet.build(cifar_resnet.Params(20), 10)
    load_into(net, read_state(weights), str(weights))
    network = Network(net, cifar_resnet.CIFAR10_MEAN, cifar_resnet.CIFAR10_STD, 10).eval()
    file = pq.ParquetFile(Path(folder) / "data" / "cifar10-jpeg" / "test.parquet")
    rows = next(file.iter_batches(2)).to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255

    def counts(model, batch_size, numerics):
        return sampling.count_votes(
            model, images, np.array([0, 1]), noises.ESTIMATION, 0, 256,
            sigma=0.25, num_classes=10, noise=sampling.Noise(1, "eager"), batch_size=batch_size,
            numerics=numerics, device="cpu",
        )  # fmt: skip

    fast, layout = sampling.for_inference(network)
    exact = counts(fast, 400, "exact")
    assert layout == "folded-channels-last"
    # Of 512 votes none may differ at a rate of 1e-4 (one would have probability 5 %).
    assert np.abs(exact - counts(fast, 100, "fast")).sum() / 2 <= 1
    assert np.abs(exact - counts(network, 128, "fast")).sum() / 2 <= 1
    assert exact.max(1).sum() > 256  # the network has learnt something


def test_votes_in_bfloat16_are_those_of_the_rounded_network_and_say_so(certifying):
    work = certifying.work(PARAMS, (0, N))
    plain = certifying.shard(plugin, work)
    halved = dataclasses.replace(work, params={**PARAMS, "precision": "bfloat16"})
    shard = certifying.shard(plugin, halved)
    assert shard.identity["dtype"] == "bfloat16" and plain.identity["dtype"] == "float32"
    assert shard.identity["layout"] == plain.identity["layout"] + "-bfloat16"
    made, whole = (plugin.merge([s], COLLECT, work.item_index).estimated for s in (shard, plain))
    assert 0 < np.abs(made - whole).sum() / 2 < 0.02 * whole.sum()

    class Rounded(torch.nn.Module):
        num_classes = certifying.network_class.num_classes
        inner = certifying.network_class().eval().bfloat16()

        def forward(self, x):
            return self.inner(x.bfloat16())

    rounded = certifying.shard(plugin, dataclasses.replace(work, network=Rounded().eval()))
    assert np.array_equal(plugin.merge([rounded], COLLECT, work.item_index).estimated, made)
    assert {p.dtype for p in work.network.parameters()} == {torch.float32}


def test_normalisation_stays_in_float32_before_a_bfloat16_network():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(256, 5)
    )
    whole = Network(net, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25], 5).eval()
    model, layout = sampling.for_inference(whole, precision="bfloat16")
    assert layout == "folded-channels-last-bfloat16"
    images = torch.rand(40, 3, 8, 8)
    made, exact = model(images), whole(images)
    assert made.dtype == torch.float32
    # bfloat16 has 8 bits: each product is off by at most 2^-8 of it.
    assert 0 < (made - exact).abs().max() < 0.03
    with pytest.raises(CertbenchError, match="precision: unknown value 'float16'"):
        sampling.for_inference(whole, precision="float16")


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        (lambda logits: (logits,), "returns a tuple"),
        (lambda logits: {"logits": logits}, "returns a dict"),
        (lambda logits: logits[:1], "one row for each image"),
        (lambda logits: logits[0], "one row for each image"),
        (lambda logits: logits[:, :3], "number of classes"),
    ],
)
def test_models_that_return_no_row_of_logits_for_each_image_are_refused(certifying, outputs, match):
    class Other(certifying.network_class):
        def forward(self, x):
            return outputs(super().forward(x))

    work = certifying.work(PARAMS, (0, N), network=Other().eval())
    with pytest.raises(CertbenchError) as caught:
        plugin.collect(work)
    assert match in str(caught.value)


def test_a_seed_that_is_no_integer_is_refused():
    with pytest.raises(CertbenchError, match=r"seed: must be one integer >= 0, is 1\.5"):
        sampling.Noise(1.5)


# --- legality of a merge --------------------------------------------------------------------------


def altered(shard, name, change):
    """The shard under another name, one column changed."""
    column = shard.rows.column(name).to_numpy().copy()
    rows = shard.rows.set_column(
        shard.rows.column_names.index(name), name, pa.array(change(column))
    )
    return Shard(Path("changed.parquet"), rows, shard.identity)


@pytest.fixture
def halves(certifying):
    first = certifying.shard(plugin, certifying.work(PARAMS, (0, 150)), "first.parquet")
    second = certifying.shard(plugin, certifying.work(LATER, (150, N)), "second.parquet")
    return first, second, certifying.work(PARAMS, (0, N)).item_index


def refused(match, file, shards, index, collect=COLLECT):
    with pytest.raises(CertbenchError, match=match) as caught:
        plugin.merge(shards, collect, index)
    assert caught.value.where is not None
    assert file in caught.value.where


def test_a_shard_given_twice_is_refused(halves):
    first, second, index = halves
    again = dataclasses.replace(second, path=Path("copy.parquet"))
    refused("there twice, also in copy.parquet", "second.parquet", [first, second, again], index)


def test_overlapping_samples_are_refused(certifying, halves):
    first, _, index = halves
    overlap = certifying.shard(plugin, certifying.work(LATER, (100, N)), "overlap.parquet")
    refused("overlapping, also in first.parquet", "overlap.parquet", [first, overlap], index)


def test_missing_samples_are_refused(certifying, halves):
    first, second, index = halves
    refused(r"\[150, 300\) of item 10 .* missing", "", [first], index)
    refused(r"\[0, 300\) of item 10 .*missing|stream 0", "", [second], index)
    gap = certifying.shard(plugin, certifying.work(LATER, (200, N)), "gap.parquet")
    refused(r"\[150, 300\)", "", [first, gap], index)


def test_more_samples_than_planned_are_refused(halves):
    first, second, index = halves
    planned = CollectParams(sigma=0.5, n=150, n0=N0)
    refused("reach to 300, planned are 150", "", [first, second], index, planned)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"model_sha256": "other"}, "model_sha256 is 'abc'|model_sha256 is 'other'"),
        ({"params": {"sigma": 0.25, "n0": 0}}, "sigma is 0.25, but 0.5 in"),
        ({"seed64": 8}, "seed64 is '8'"),
        ({"numerics": "fast"}, "numerics is 'fast', but 'exact' in first.parquet"),
        ({"variant": "fog"}, "variant is 'fog'"),
        ({"params": {**LATER, "noise": "lattice"}}, "backend is 'integer', but 'eager' in"),
    ],
)
def test_unlike_shards_are_refused(certifying, halves, change, match):
    first, _, index = halves
    change = dict(change)
    other = certifying.work(change.pop("params", LATER), (150, N), **change)
    shard = certifying.shard(plugin, other, "other.parquet")
    refused(match, "other.parquet", [first, shard], index)


def test_shards_of_another_sigma_than_configured_are_refused(halves):
    first, second, index = halves
    refused("sigma is 0.5, but 0.25 in the configuration", "first.parquet", [first, second],
            index, CollectParams(sigma=0.25, n=N, n0=N0))  # fmt: skip


def test_counts_that_do_not_sum_to_their_range_are_refused(halves):
    first, second, index = halves
    more = altered(second, "count", lambda c: np.where(np.arange(len(c)) == 3, c + 1, c))
    refused("sum to 151, not to the 150 samples", "changed.parquet", [first, more], index)
    less = altered(second, "count", lambda c: np.where(c == c.max(), 0, c))
    refused("not to the 150 samples", "changed.parquet", [first, less], index)
    negative = altered(second, "count", lambda c: -c)
    refused("negative counts", "changed.parquet", [first, negative], index)


def test_classes_and_items_that_there_are_not_are_refused(halves):
    first, second, index = halves
    for change in (lambda c: c + 6, lambda c: c - 6):
        refused("classes beyond 5", "changed.parquet", [first, altered(second, "class", change)],
                index)  # fmt: skip
    moved = altered(second, "item_index", lambda i: (i + 100).astype(np.uint32))
    refused("item 110 was not planned", "changed.parquet", [first, moved], index)
    refused("no shards", "merge", [], index)


def test_a_shard_without_a_column_or_a_number_of_classes_is_refused(halves):
    first, second, index = halves
    less = Shard(Path("less.parquet"), first.rows.drop_columns(["count"]), first.identity)
    refused("lacks the column 'count'", "less.parquet", [less, second], index)
    silent = {k: v for k, v in first.identity.items() if k != "num_classes"}
    shards = [Shard(Path(f"{i}.parquet"), s.rows, silent) for i, s in enumerate((first, second))]
    refused("how many classes", "0.parquet", shards, index)


def test_stored_rows_and_merging_functions_know_no_radius_to_average():
    for module in (votes, sampling):
        functions = [
            value
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        assert functions
        for function in functions:
            words = {function.__name__, *inspect.signature(function).parameters}
            assert not [w for w in words if "radi" in w or "p_lower" in w or "p_value" in w]
    for method in (plugin, sequential_smoothing):
        assert not [name for name in method.stats_columns if "radi" in name or "p_" in name]
        assert {"shards", "item_index"} < set(inspect.signature(method.merge).parameters)


def test_merged_counts_are_bounded_once():
    # Ten shards of 10000 samples with 9999 votes each: one bound on 99990 of 100000.
    shards = [
        Shard(
            Path(f"{k}.parquet"),
            pa.table({
                "item_index": np.zeros(2, np.uint32),
                "stream": np.ones(2, np.int8),
                "sample_start": np.full(2, 10_000 * k),
                "sample_stop": np.full(2, 10_000 * (k + 1)),
                "class": np.array([0, 1], np.int32),
                "count": np.array([9999, 1]),
            }),
            {"num_classes": 2, "sigma": 0.5, "kind": "gaussian", "shape": [1, 2, 2], "seed64": "1",
             "scheme": "s", "backend": "b", "dtype": "float32"},
        )
        for k in range(10)
    ]  # fmt: skip
    collect = CollectParams(sigma=0.5, n=100_000, n0=0)
    merged = plugin.merge(shards, collect, np.zeros(1, np.uint32))
    decide = plugin.DecideParams(selection="label")
    made = plugin.decide(merged, collect, decide, np.zeros(1, int))
    assert made["radius"][0] == pytest.approx(1.7451038401, abs=1e-9)
    single = float(radius_one(cp_lower(9999, 10_000, 0.001), 0.5))
    # The mean of the shards' radii would be that of one of them.
    assert single == pytest.approx(1.5569817961, abs=1e-9)
    assert made["n"][0] == 100_000


def test_the_judge_answers_by_predict_with_noise_of_its_own(certifying):
    from certbench.certify.protocol import SurfaceWork

    work = certifying.work(PARAMS, (0, N))
    surface = plugin.attack_surface(
        SurfaceWork(
            network=work.network,
            params=plugin.attack_params(COLLECT, plugin.DecideParams(predict_n=200)),
            num_classes=5,
            seed64=work.seed64,
            device="cpu",
            batch_size=64,
            numerics="exact",
            noise_backend="eager",
        )
    )
    items = work.item_index.astype(np.int64)
    counts = sampling.count_votes(
        work.network, work.images, items, noises.PREDICTION, 0, 200, sigma=0.5, num_classes=5,
        noise=sampling.Noise(work.seed64, "eager"), batch_size=64, numerics="exact", device="cpu",
    )  # fmt: skip
    expected, _ = smoothing.predict_counts(counts, 0.001)
    assert surface.judge(work.images, items).tolist() == expected.tolist()
    assert surface.judge.passes == surface.confirm.passes == 200
    assert surface.confirm.stream == noises.AUDIT
    assert surface.logits(work.images, items).shape == (4, 5)


def test_the_judge_answers_as_if_it_had_drawn_all_samples_and_says_what_it_drew(certifying):
    work = certifying.work(PARAMS, (0, N), count=12)
    n, alpha = 120, 0.01
    noise = sampling.Noise(work.seed64, "eager")
    items = work.item_index.astype(np.int64)
    for sigma in (0.05, 0.5):
        judge = votes.Judge(work, sigma, noise, n, alpha)
        answers = judge(work.images, items)
        counts = sampling.count_votes(
            judge.network, work.images, items, noises.PREDICTION, 0, n, sigma=sigma,
            num_classes=work.num_classes, noise=noise, batch_size=64, numerics="exact",
            device="cpu",
        )  # fmt: skip
        np.testing.assert_array_equal(answers, smoothing.predict_counts(counts, alpha)[0])
        assert set(judge.spent) <= {72, 84, 96, 108, 120}
    assert len(set(judge.spent)) > 1


def test_fast_numerics_run_the_rest_of_a_batch_without_padding_and_resume_after_it(certifying):
    work = certifying.work(PARAMS, (0, N), count=3)
    seen = []

    class Watched(torch.nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return work.network(x)

    def counted(numerics, progress=None):
        seen.clear()
        return sampling.count_votes(
            Watched().eval(), work.images, work.item_index.astype(np.int64), noises.ESTIMATION,
            0, 90, sigma=0.5, num_classes=work.num_classes,
            noise=sampling.Noise(work.seed64, "eager"), batch_size=64, numerics=numerics,
            device="cpu", progress=progress,
        )  # fmt: skip

    class Kept:
        due = False
        state = None

        def load(self):
            return self.state

        def save(self, state, force=False):
            self.state = dict(state)

    exact = counted("exact")
    assert seen == [sampling.exact_batch("cpu")] * 5
    kept = Kept()
    fast = counted("fast", kept)
    assert seen == [64, 64, 64, 64, 14]
    assert np.abs(fast - exact).sum() <= 2  # one vote in 270 may differ
    np.testing.assert_array_equal(counted("fast", kept), fast)
    assert not seen


def test_rows_do_not_call_tf32_float32():
    assert votes.arithmetic(torch.device("cuda:1"), "fast") == "float32 (TF32 allowed)"
    assert votes.arithmetic("cuda", "exact") == "float32"
    assert votes.arithmetic(torch.device("cpu"), "fast") == "float32"
