from __future__ import annotations

import importlib.util
import itertools
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from certbench.cluster import partitions
from certbench.cluster.partitions import Partition, Request
from certbench.errors import CertbenchError

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "profiles" / "slurm" / "partitions.yaml"
DEV = ROOT / "profiles" / "slurm-dev" / "partitions.yaml"
GPU = Request("collect", 16, 127500, 240, 1)


def test_the_shipped_file_sends_gpu_jobs_to_the_a100s_and_cpu_jobs_to_single():
    listed = partitions.load(FILE)
    assert partitions.choose(listed, GPU) == "gpu_4_a100"
    assert partitions.choose(listed, Request("decide", 1, 4000, 60)) == "single"


def test_no_short_job_lands_on_a_development_partition_by_itself():
    short = Request("collect", 16, 127500, 5, 1)
    assert partitions.choose(partitions.load(FILE), short) == "gpu_4_a100"


def test_the_development_profile_sends_short_gpu_jobs_to_the_development_partition():
    short = Request("collect", 16, 127500, 20, 1)
    assert partitions.choose(partitions.load(DEV), short) == "dev_gpu_4_a100"


@pytest.mark.skipif(
    importlib.util.find_spec("snakemake_executor_plugin_slurm") is None,
    reason="needs the executor plugin (make install-slurm)",
)
def test_the_choice_is_that_of_the_executor_plugin():
    from snakemake_executor_plugin_slurm import partitions as theirs

    class Resources(dict):
        __getattr__ = dict.__getitem__

    for file in (FILE, DEV):
        plugin, ours = theirs.read_partition_file(file), partitions.load(file)
        for threads, mem, runtime, gpu, model in itertools.product(
            (1, 16, 65),
            (1000, 127500, 300000, 600000),
            (5, 31, 2000, 4000, 9000),
            (0, 1, 5),
            (None, "a100", "h100"),
        ):
            asked = Resources(mem_mb=mem, runtime=runtime)
            if gpu:
                asked["gpu"] = gpu
                if model:
                    asked["gpu_model"] = model
            job = SimpleNamespace(resources=asked, threads=threads, name="job")
            expected = theirs.get_best_partition(plugin, job, logging.getLogger())
            request = Request("job", threads, mem, runtime, gpu, model if gpu else None)
            try:
                found = partitions.choose(ours, request)
            except CertbenchError:
                found = None
            if found is None and expected is not None:
                # The one difference: a CPU job is never put on GPU nodes.
                assert gpu == 0 and next(p for p in ours if p.name == expected).max_gpu
            else:
                assert found == expected, request


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("collect", 16, 127500, 240, 1, "v100"), ["GPU model 'v100'", "a100"]),
        (Request("collect", 16, 127500, 4000, 1), ["4,000 minutes", "2,880", "shards.items"]),
        (Request("collect", 16, 900000, 240, 1), ["900,000 MB", "510,000", "lower mem_mb"]),
        (Request("collect", 16, 127500, 240, 8), ["asks for 8 GPUs", "more than 4"]),
        (Request("decide", 1, 4000, 60, partition="singel"), ["'singel'", "'single'?"]),
        (Request("decide", 1, 300000, 60), ["no CPU partition fits", "gpu_4_a100"]),
    ],
)
def test_what_fits_nowhere_is_refused_with_the_limit_and_the_remedy(request_, words):
    with pytest.raises(CertbenchError) as error:
        partitions.choose(partitions.load(FILE), request_, str(FILE))
    for word in ("rule " + request_.rule, "->", *words):
        assert word in str(error.value)


def test_gpus_instead_of_gpu_is_refused():
    with pytest.raises(CertbenchError, match="write gpu: 1"):
        Request.of("collect", 1, {"gpus": 1})


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        (30, 30),
        ("48h", 2880),
        ("2d", 2880),
        ("90m", 90),
        ("2-00:00:00", 2880),
        ("48:00:00", 2880),
        ("1-12", 2160),
        ("soon", None),
    ],
)
def test_time_limits_are_read_in_the_usual_forms(text, minutes):
    assert partitions.minutes(text) == minutes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partitions: {}", "lists no partitions"),
        ("single: {}", "lists no partitions"),
        ("partitions: {single: {max_memory: 5}}", "max_mem_mb"),
        ("partitions: {single: {max_runtime: soon}}", "'soon'"),
    ],
)
def test_a_broken_partition_file_is_refused(tmp_path, text, words):
    path = tmp_path / "partitions.yaml"
    path.write_text(text)
    with pytest.raises(CertbenchError, match=words) as error:
        partitions.load(path)
    assert str(path) in str(error.value)


def test_a_job_without_limits_fits_a_partition_without_limits():
    assert partitions.choose([Partition("any")], Request("decide")) == "any"
