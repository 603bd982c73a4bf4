"""Jobs on a few real digits, prepared once."""

from __future__ import annotations

import pytest

from certbench.job import Job, execute

DIGITS = {
    "id": "digits",
    "plugin": "digits",
    "version": 1,
    "params": {},
    "split": "test",
    "view": "squash32",
}


@pytest.fixture(scope="session")
def digits_index(tmp_path_factory):
    """The index of the digits' test split."""
    folder = tmp_path_factory.mktemp("digits")
    outputs = {"index": folder / "index.parquet", "card": folder / "card.json"}
    work = {
        "dataset": "digits",
        "plugin": "digits",
        "version": 1,
        "params": {},
        "splits": ["test"],
        "sizes": {},
        "seed": 0,
        "plugins": [],
    }
    assert execute("prepare", work, {}, outputs) == 0
    return outputs["index"]


@pytest.fixture
def make_job(digits_index, tmp_path, monkeypatch):
    """Makes a job on a variant of the digits, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def make(variant, items=(0, 45), stored=None, rule="materialise", **more):
        work = {
            "dataset": more.pop("dataset", DIGITS),
            "variant": variant,
            "items": list(items),
            "seed": 0,
            "plugins": [],
        }
        inputs = {"index": [more.pop("index", digits_index)], **more}
        if stored is not None:
            inputs["stored"] = [stored]
        return Job(rule, work, inputs, {"images": tmp_path / "made" / "test.parquet"})

    return make
