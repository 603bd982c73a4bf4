"""Counts of pixels per image and class, the rows they become, and a study from end to end."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import jaccard_score

from certbench import job, plan
from certbench.datasets import masks, streets
from certbench.datasets.access import Items
from certbench.errors import CertbenchError
from certbench.models import segmenting, small_unet
from certbench.models.network import Network, folded, guard_logits
from certbench.params import build
from certbench.results import rows

NAMES = ("road", "sky", "car", "person")


def maps(seed, n=5):
    rng = np.random.default_rng(seed)
    wanted = rng.integers(0, 4, (n, 7, 9)).astype(np.uint8)
    wanted[rng.random(wanted.shape) < 0.3] = 255
    wanted[1] = 255
    return rng.integers(0, 4, wanted.shape), wanted


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_a_loop_over_pixels(seed):
    predicted, wanted = maps(seed)
    found = segmenting.class_counts(torch.from_numpy(predicted), torch.from_numpy(wanted), 4)
    expected = np.zeros((5, 3, 4), int)
    for i, y, x in np.ndindex(wanted.shape):
        label, said = wanted[i, y, x], predicted[i, y, x]
        if label != 255:
            expected[i, 0, label] += label == said
            expected[i, 1, said] += 1
            expected[i, 2, label] += 1
    np.testing.assert_array_equal(found.numpy(), expected)


def test_rows_keep_all_counts_and_each_item_has_its_cost_once():
    predicted, wanted = maps(0)
    wanted[wanted == 3] = 255
    predicted[predicted == 3] = 0
    counts = segmenting.class_counts(torch.from_numpy(predicted), torch.from_numpy(wanted), 4)
    columns = {
        "item_id": np.array([f"a/{i}" for i in range(5)], object),
        "item_index": np.arange(5, dtype=np.uint32),
        "n_forward": np.ones(5, np.int64),
        "predicted_map": np.array([b"png", None, None, None, None], object),
    }
    keys = {"task": "segmentation", "dataset": "d", "variant_id": "clean", "model": "m", "seed": 0}
    frame = segmenting.table(counts.numpy(), NAMES, columns, keys).to_pandas()
    assert set(frame["class_id"]) == {0, 1, 2}
    assert frame["item_id"].nunique() == 5 and len(frame) == 4 * 3 + 1
    for i, column in enumerate(("intersection", "predicted_pixels", "label_pixels")):
        sums = frame.groupby("class_id")[column].sum().to_numpy()
        np.testing.assert_array_equal(sums, counts[:, i, :3].sum(0).numpy())
    assert frame["n_forward"].sum() == 5
    assert (frame["n_forward"].notna() == (frame["class_id"] == 0)).all()
    assert frame["predicted_map"].notna().sum() == 1


def test_the_network_gives_logits_as_large_as_the_image_and_stays_small():
    net = small_unet.build(small_unet.Params(), 10)
    assert sum(p.numel() for p in net.parameters()) <= 1_000_000
    network = Network(net, (0.4, 0.4, 0.4), (0.3, 0.3, 0.3), 10).eval()
    with torch.inference_mode():
        for size in ((64, 128), (33, 57), (16, 16)):
            logits = network(torch.rand(2, 3, *size))
            assert logits.shape == (2, 10, *size) and logits.dtype == torch.float32
            assert guard_logits(logits, "m", 10, size) is logits


def test_folding_keeps_the_logits_of_every_pixel():
    torch.manual_seed(0)
    network = Network(small_unet.build(small_unet.Params(width=4), 3), (0.4,) * 3, (0.2,) * 3, 3)
    network.train()
    images = torch.rand(4, 3, 24, 40)
    network(images)  # batch normalisation gets statistics of its own
    network.eval()
    with torch.inference_mode():
        difference = (folded(network)(images) - network(images)).abs().max()
    assert difference < 1e-4


def test_logits_that_are_no_map_of_the_image_are_refused():
    with pytest.raises(CertbenchError, match=r"shape \(2, 3\), expected \[N, 3, 4, 5\]"):
        guard_logits(torch.zeros(2, 3), "m", 3, (4, 5))
    with pytest.raises(CertbenchError, match=r"expected \[N, 3, 4, 5\]"):
        guard_logits(torch.zeros(2, 3, 5, 4), "m", 3, (4, 5))
    with pytest.raises(CertbenchError, match=r"expected \[N, 3\]"):
        guard_logits(torch.zeros(2, 3, 4, 5), "m", 3)
    bad = torch.zeros(3, 3, 4, 5)
    bad[1, 0, 2, 2] = bad[1, 1, 0, 0] = float("nan")
    with pytest.raises(CertbenchError, match="for 1 of 3 inputs"):
        guard_logits(bad, "m", 3, (4, 5))


STUDY = {
    "device": "cpu",
    "shards": {"items": 7, "samples": 100},
    "datasets": {
        "streets": {"type": "streets", "height": 32, "width": 64, "train": 20, "test": 12}
    },
    "models": {
        "segmenter": {
            "task": "segmentation",
            "builder": {"type": "small_unet", "width": 8},
            "recipe": {
                "type": "standard",
                "epochs": 10,
                "batch_size": 4,
                "optimiser": "adamw",
                "learning_rate": 0.01,
                "schedule": "one_cycle",
            },
            "train_on": {"dataset": "streets", "view": "native"},
        }
    },
    "metrics": [{"type": "segmentation", "resamples": 100}],
    "experiments": [
        {
            "name": "pixels",
            "task": "segmentation",
            "datasets": [{"name": "streets", "view": "native", "limit": 12}],
            "models": ["segmenter"],
        }
    ],
}


def run(planned, batch_size=400):
    """Run a planned job as the workflow would."""
    code = job.execute(
        planned.rule,
        json.loads(planned.work_text),
        {name: [Path(p) for p in paths] for name, paths in planned.inputs.items()},
        {name: Path(p) for name, p in planned.outputs.items()},
        batch_size=batch_size,
    )
    assert code == 0


def test_a_study_from_scenes_to_miou(tmp_path, monkeypatch):
    """The table's mIoU is that of the predicted maps, whatever the batches."""
    monkeypatch.chdir(tmp_path)
    made = plan.make(STUDY)
    by_rule = {}
    for (rule, _), planned in made.jobs.items():
        by_rule.setdefault(rule, []).append(planned)
    for rule in ("prepare", "train", "predict", "audit", "table"):
        for planned in by_rule[rule]:
            run(planned)
    shards = [planned.outputs["rows"] for planned in by_rule["predict"]]
    assert len(shards) == 2
    found = rows.read(shards, "segmentation").to_pandas()
    assert found["item_id"].nunique() == 12 and found["n_forward"].sum() == 12

    said = found[found["predicted_map"].notna()].set_index("item_id")["predicted_map"]
    block = by_rule["predict"][0].work["dataset"]
    params = build(streets.Params, block["params"], "")
    index = by_rule["predict"][0].inputs["index"][0]
    batch = Items(index, "test", "native", streets, params).load(0, 12, masks=True)
    predicted = np.stack([masks.decode(said[item], item) for item in batch.item_ids])
    there = np.union1d(batch.masks, predicted)
    each = jaccard_score(batch.masks.ravel(), predicted.ravel(), average=None, labels=there)
    table = pd.read_parquet(by_rule["table"][0].outputs["rows"])
    miou = table[table["metric"].eq("miou")]["value"].item()
    assert miou == pytest.approx(each.mean(), abs=1e-12)
    accuracy = table[table["metric"].eq("pixel_accuracy")]["value"].item()
    assert accuracy == pytest.approx((batch.masks == predicted).mean(), abs=1e-12)
    assert accuracy > 0.5  # the model has learned: the commonest class has three pixels in ten

    run(by_rule["predict"][0], batch_size=3)
    again = rows.read(shards, "segmentation").to_pandas()
    counts = ["item_id", "class_id", "intersection", "predicted_pixels", "label_pixels"]
    pd.testing.assert_frame_equal(found[counts], again[counts])
