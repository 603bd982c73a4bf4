import io
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from certbench.datasets import digits
from certbench.errors import CertbenchError
from certbench.job import Job, execute
from certbench.params import as_dict
from certbench.recipes import reading
from certbench.recipes.reading import read_split

SIZES = as_dict(digits.Params(train=600, calibration=0, val=40, test=100))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    work = {
        "dataset": "digits",
        "plugin": "digits",
        "version": digits.version,
        "params": SIZES,
        "splits": ["train", "val"],
        "sizes": {"train": None, "val": None},
        "seed": 0,
        "plugins": [],
    }
    files = {"index": folder / "index.parquet", "card": folder / "card.json"}
    assert execute("prepare", work, {}, files) == 0
    return files["index"]


@pytest.fixture
def job(index):
    def make(threads=1, view="native"):
        dataset = {"id": "digits", "plugin": "digits", "params": SIZES, "view": view}
        return Job("train", {"dataset": dataset}, {"index": [index]}, {}, threads)

    return make


def test_images_are_the_pictures_of_the_files_in_rank_order(job, index):
    split = read_split(job(), "index", "train")
    assert split.images.shape == (600, 3, 8, 8) and split.images.dtype == torch.uint8
    assert split.labels.dtype == torch.int64 and len(split.class_names) == 10
    rows = [r for r in pq.read_table(index).to_pylist() if r["split"] == "train"]
    for rank in (0, 255, 256, 599):
        wanted = Image.open(io.BytesIO(rows[rank]["image"]["bytes"])).convert("RGB")
        assert np.array_equal(split.images[rank].permute(1, 2, 0).numpy(), np.asarray(wanted))
        assert int(split.labels[rank]) == rows[rank]["label"]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_on_the_disk_and_many_threads_give_the_same(job, monkeypatch, tmp_path, threads):
    wanted = read_split(job(), "index", "train")
    monkeypatch.setattr(reading, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(reading.tempfile, "tempdir", str(tmp_path))
    made = read_split(job(threads), "index", "train")
    assert torch.equal(made.images, wanted.images) and torch.equal(made.labels, wanted.labels)
    assert not os.listdir(tmp_path)  # the file has no name: no kill can leave it behind
    assert torch.equal(made.images[torch.tensor([5, 599, 0])], wanted.images[[5, 599, 0]])


def test_the_limit_takes_a_prefix(job):
    whole, part = read_split(job(), "index", "train"), read_split(job(), "index", "train", 300)
    assert torch.equal(part.images, whole.images[:300])
    assert len(read_split(job(), "index", "val", 300).labels) == 40


def test_a_full_disk_says_what_to_do(job, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reading, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(reading.os, "posix_fallocate", full)
    with pytest.raises(CertbenchError, match="TMPDIR"):
        read_split(job(), "index", "train")


def test_an_empty_split_is_refused(job):
    with pytest.raises(CertbenchError, match="no items"):
        read_split(job(), "index", "train", 0)
