"""A stored variant gives the very rows of one made on the fly, through the whole workflow."""

import copy

import pandas as pd
import pyarrow.parquet as pq
import pytest

from study import TINY, Project

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

# What two runs never share: the clock.
TIMES = {"device_time_s", "wall_time_s"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    config = copy.deepcopy(TINY)
    config["shards"]["samples"] = 1000
    config["experiments"] = [{**config["experiments"][0], "name": "shifted", "variants": ["dark"]}]
    config["experiments"][0]["exclude"] = [{"defense": "smoothing", "attack": "pgd"}]
    return Project(tmp_path_factory.mktemp("materialised") / "study", config), config


def frames(project):
    """Rows of every result file but times, by path."""
    found = {}
    for kind in ("predictions", "stats", "certificates", "attacks", "audit", "tables"):
        for path in sorted(project.folder.glob(f"results/{kind}/**/*.parquet")):
            if not path.name.endswith(".cost.parquet"):
                frame = pq.read_table(path).to_pandas()
                name = str(path.relative_to(project.folder))
                found[name] = frame.drop(columns=TIMES & set(frame.columns))
    return found


def test_rows_and_paths_equal_those_of_the_fly(study):
    project, config = study
    target = "results/tables/shifted.parquet"
    project.run(target)
    expected = frames(project)
    before = project.stamps("results/predictions/**/*.parquet")
    assert not list(project.folder.glob("results/variants"))
    config["variants"]["dark"]["materialise"] = True
    project.configure(config)
    project.run(target)
    found = frames(project)
    after = project.stamps("results/predictions/**/*.parquet")
    assert before.keys() == after.keys() and before != after, "the jobs ran again, from the file"
    assert list(found) == list(expected)
    assert {name.split("/")[1] for name in found} >= {"predictions", "stats", "attacks", "tables"}
    for name, frame in expected.items():
        other = found[name]
        if name.startswith("results/tables"):
            frame, other = (
                one[~one["metric"].str.contains("time|seconds", regex=True)]
                for one in (frame, other)
            )
        pd.testing.assert_frame_equal(other, frame, check_exact=True, obj=name)
    (images,) = project.folder.glob("results/variants/*/*/*.parquet")
    assert pq.read_metadata(images).num_rows == 20
    assert "Nothing to be done" in project.run(target).stdout
