"""The one entry of every job: logs, exit codes, signals, and what is left behind."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from certbench import job
from certbench.errors import CertbenchError


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def runner(monkeypatch, run):
    """Make ``run`` the runner of the rule ``table``."""
    module = SimpleNamespace(run=run)
    monkeypatch.setitem(sys.modules, "a_runner", module)
    monkeypatch.setitem(job.RUNNERS, "table", "a_runner")


def run(**fields):
    return job.execute("table", fields.pop("work", {}), {}, {"rows": Path("out/rows")}, **fields)


def test_a_refused_input_gives_one_message_a_code_and_no_traceback(monkeypatch, capfd):
    def refuse(made):
        raise CertbenchError("is empty", where="data/x", remedy="fill it")

    runner(monkeypatch, refuse)
    assert run(log=Path("log.txt")) == job.EXIT_REFUSED
    message = capfd.readouterr().err
    assert message == "certbench table: data/x: is empty\n  -> fill it\n"
    assert "Traceback" not in Path("log.txt").read_text()


def test_a_bug_leaves_its_traceback_in_the_log_and_one_line_on_the_terminal(monkeypatch, capfd):
    def fail(made):
        raise KeyError("surprise")

    runner(monkeypatch, fail)
    assert run(log=Path("log.txt")) == 1
    message = capfd.readouterr().err
    assert len(message.strip().splitlines()) == 1
    assert "surprise" in message and "log.txt" in message
    assert "Traceback" in Path("log.txt").read_text()


def test_prints_and_warnings_of_libraries_go_to_the_log(monkeypatch, capfd):
    def chatter(made):
        import warnings

        print("printed")
        os.write(2, b"written to the descriptor\n")
        warnings.warn("warned", stacklevel=1)

    runner(monkeypatch, chatter)
    assert run(log=Path("log.txt")) == 0
    out = capfd.readouterr()
    assert out.out == "" and out.err == ""
    text = Path("log.txt").read_text()
    assert all(word in text for word in ("printed", "written to the descriptor", "warned"))


def test_threads_are_limited_before_anything_heavy_is_loaded(monkeypatch):
    seen = {}
    runner(monkeypatch, lambda made: seen.update(os.environ))
    run(threads=3)
    assert seen["OMP_NUM_THREADS"] == "3" and seen["MKL_NUM_THREADS"] == "3"


def test_the_work_hash_depends_on_every_value_and_not_on_their_order():
    def made(work):
        return job.Job("collect", work, {}, {}).work_hash

    assert made({"a": 1, "b": [1, 2]}) == made({"b": [1, 2], "a": 1})
    assert made({"a": 1}) != made({"a": 2})


def test_the_script_side_reads_nothing_but_the_agreed_attributes(monkeypatch):
    class Named(dict):
        def __len__(self):
            return dict.__len__(self)

    seen = {}
    runner(monkeypatch, lambda made: seen.update(work=made.work, batch=made.batch_size))
    snakemake = SimpleNamespace(
        input=Named(rows=["a", "b"], card="c"),
        output=Named(rows="out/rows"),
        params=SimpleNamespace(work=json.dumps({"x": 1})),
        log=["log.txt"],
        threads=1,
        resources={"batch_size": 17},
    )
    job.run_rule("table", snakemake)
    assert seen == {"work": {"x": 1}, "batch": 17}


def test_sigterm_flushes_progress_and_leaves_with_143(tmp_path):
    script = textwrap.dedent(
        """
        import sys, time, types
        import numpy as np
        from pathlib import Path
        from certbench import job

        def run(made):
            with made.progress(every_s=1000) as progress:
                for i in range(10**6):
                    progress.save({"done": i, "votes": np.arange(3) * i})
                    if i == 5:
                        print("started", flush=True)
                        Path("started").touch()
                    time.sleep(0.01)

        sys.modules["slow"] = types.SimpleNamespace(run=run)
        job.RUNNERS["collect"] = "slow"
        sys.exit(job.execute("collect", {"w": 1}, {}, {"rows": Path("rows")}, Path("log")))
        """
    )
    (tmp_path / "slow_job.py").write_text(script)
    process = subprocess.Popen([sys.executable, "slow_job.py"], cwd=tmp_path, stderr=-1)
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=30)
    assert process.returncode == job.EXIT_TERMINATED
    assert b"run again to go on" in message
    assert not (tmp_path / "rows").exists()
    made = job.Job("collect", {"w": 1}, {}, {})
    with made.progress() as progress:
        state = progress.load()
    assert state is not None and state["done"] >= 5
    assert (state["votes"] == [0, state["done"], 2 * state["done"]]).all()


def test_a_job_that_needs_torch_loads_nothing_heavy_beside_it():
    code = (
        "import sys\n"
        "import certbench.job, certbench.certify.collecting, certbench.models.network\n"
        "import certbench.variants.applying, certbench.datasets.access\n"
        "import certbench.certify.randomized_smoothing, certbench.models.small_cnn\n"
        "heavy = ('torchvision', 'timm', 'pandas', 'matplotlib', 'sklearn', 'cv2', 'skimage',\n"
        "         'snakemake', 'seaborn', 'huggingface_hub', 'jinja2')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
