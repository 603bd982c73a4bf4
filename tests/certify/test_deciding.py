"""The job ``decide``: shards of one run become certificates, shards of another are refused."""

import copy

import numpy as np
import pytest

from certbench.certify import deciding, votes
from certbench.errors import CertbenchError
from certbench.job import Job
from certbench.results import rows

DATASET = {"id": "digits", "plugin": "digits", "version": 1, "split": "test", "view": "squash32"}
DEFENSE = {"id": "smoothing", "name": "randomized_smoothing", "version": 3}
RUN = {"task": "classification", "dataset": DATASET, "model": "plain", "seed": 0, "plugins": []}
IDENTITY = {
    "model_sha256": "a", "variant": "clean", "sigma": 0.25, "kind": "gaussian",
    "scheme": "philox-v1", "backend": "eager", "seed64": "7", "numerics": "exact",
    "dtype": "float32", "layout": "as-given", "device": "cpu", "num_classes": 2,
    "shape": [3, 2, 2],
}  # fmt: skip


def write(path, start, stop, device="cpu", **changed):
    """A shard of two items that all votes agree on; the selection votes ride with the first."""
    streams = [(1, start, stop)] + [(0, 0, 10)] * (start == 0)
    parts = [
        {
            "item_index": np.array([3, 8], np.uint32), "item_id": ["three", "eight"],
            "stream": np.full(2, stream, np.int8), "class": np.array([0, 1], np.int32),
            "sample_start": np.full(2, first), "sample_stop": np.full(2, last),
            "count": np.full(2, last - first),
        }
        for stream, first, last in streams
    ]  # fmt: skip
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    keys = {"task": "classification", "dataset": "digits", "model": "plain", "seed": 0}
    made = rows.table("stats", columns, keys, votes.STATS_COLUMNS)
    work = copy.deepcopy({**RUN, "defense": {**DEFENSE, "collect": {"sigma": 0.25}}})
    for name, value in changed.items():
        outer, _, inner = name.partition("__")
        if inner:
            work[outer][inner] = value
        else:
            work[outer] = value
    items = {"item_index": [3, 8], "item_id": ["three", "eight"], "label": [0, 0]}
    footer = {
        "identity": IDENTITY,
        "items": items,
        "work": work,
        "wall_time_s": 1.0,
        "torch": "2.14",
        "device": device,
    }
    rows.write(path, made, "stats", footer)
    return path


def decide(shards, folder):
    work = {
        **RUN,
        "variants": ["clean"],
        "items": 2,
        "defense": {
            **DEFENSE,
            "collect": {"sigma": 0.25, "n": 200, "n0": 10, "noise": "gaussian", "compile": False},
            "decide": {"alpha": 0.01},
        },
    }
    out = folder / "certificates.parquet"
    deciding.run(Job("decide", work, {"stats": shards}, {"rows": out}))
    return rows.read([out], "certificates").to_pandas()


def test_shards_of_the_run_become_one_certificate_for_each_item(tmp_path):
    shards = [write(tmp_path / "a.parquet", 0, 120), write(tmp_path / "b.parquet", 120, 200)]
    made = decide(shards, tmp_path)
    assert made["item_id"].tolist() == ["three", "eight"]
    assert made["predict"].tolist() == [0, 1]
    assert made["correct"].tolist() == [True, False]
    assert made["n"].tolist() == made["n_top"].tolist() == [200, 200]


def test_certificates_tell_where_and_how_their_votes_were_collected(tmp_path):
    # The job that decides saw no accelerator and no model: the shards' footers did.
    first, second = (tmp_path / f"{name}.parquet" for name in "ab")
    decide([write(first, 0, 120, "NVIDIA A100"), write(second, 120, 200)], tmp_path)
    collected = rows.provenance(tmp_path / "certificates.parquet")["collected"]
    assert collected["devices"] == ["NVIDIA A100", "cpu"]
    assert collected["torch"] == ["2.14"]
    assert collected["identity"] == IDENTITY


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"seed": 1}, "its seed is 1, not 0"),
        ({"model": "noisy"}, "its model is 'noisy', not 'plain'"),
        ({"task": "segmentation"}, "its task is 'segmentation'"),
        ({"dataset__view": "native32"}, "its dataset view is 'native32', not 'squash32'"),
        ({"dataset__split": "train"}, "its dataset split is 'train', not 'test'"),
        ({"defense__name": "splitting"}, "its defense name is 'splitting'"),
        ({"defense__version": 2}, "its defense version is 2, not 3"),
    ],
    ids=str,
)
def test_shards_that_agree_with_each_other_but_are_of_another_run_are_refused(
    tmp_path, changed, message
):
    shards = [
        write(tmp_path / "a.parquet", 0, 120, **changed),
        write(tmp_path / "b.parquet", 120, 200, **changed),
    ]
    with pytest.raises(CertbenchError, match=message) as caught:
        decide(shards, tmp_path)
    assert str(shards[0]) in str(caught.value)
