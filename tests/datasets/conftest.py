import os
from pathlib import Path

import pytest

from certbench import job


@pytest.fixture(scope="session")
def real_images():
    """The folder of real images, or a visible skip."""
    folder = os.environ.get("CERTBENCH_DATA")
    if not folder:
        pytest.skip("CERTBENCH_DATA names no folder of real images")
    return Path(folder) / "data"


@pytest.fixture
def prepare(tmp_path, capfd):
    """Run the job ``prepare``; gives its exit code, what it said, and the path of the index."""

    def run(plugin, params, splits, sizes=None, seed=0, threads=1, name="mine", plugins=()):
        folder = tmp_path / "results" / name
        work = {
            "dataset": name,
            "plugin": plugin,
            "version": 1,
            "params": params,
            "splits": list(splits),
            "sizes": sizes or {},
            "seed": seed,
            "plugins": list(plugins),
        }
        outputs = {"index": folder / "index.parquet", "card": folder / "card.json"}
        code = job.execute("prepare", work, {}, outputs, threads=threads)
        return code, capfd.readouterr().err, outputs["index"]

    return run
