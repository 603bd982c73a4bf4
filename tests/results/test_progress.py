"""Progress of long jobs: bound to its work, locked, and honest about time."""

import subprocess
import sys
import time

import numpy as np
import pytest

from certbench.errors import CertbenchError
from certbench.results.progress import Progress


def test_a_later_attempt_takes_up_what_was_saved(tmp_path):
    path = tmp_path / "p.npz"
    with Progress(path, "work") as progress:
        assert progress.load() is None
        progress.save({"done": 3, "votes": np.arange(4)}, force=True)
    with Progress(path, "work") as progress:
        state = progress.load()
    assert state["done"] == 3 and (state["votes"] == np.arange(4)).all()


def test_other_work_never_continues_it(tmp_path):
    path = tmp_path / "p.npz"
    with Progress(path, "work") as progress:
        progress.save({"done": 3}, force=True)
    with Progress(path, "other work") as progress:
        assert progress.load() is None


def test_seconds_add_up_over_attempts(tmp_path):
    path = tmp_path / "p.npz"
    for _ in range(3):
        with Progress(path, "work") as progress:
            progress.load()
            time.sleep(0.05)
            progress.save({"done": 1}, force=True)
    with Progress(path, "work") as progress:
        progress.load()
        assert 0.15 <= progress.seconds < 5


def test_a_torn_file_is_no_progress(tmp_path):
    path = tmp_path / "p.npz"
    with Progress(path, "work") as progress:
        progress.save({"votes": np.arange(1000)}, force=True)
    path.write_bytes(path.read_bytes()[:100])
    with Progress(path, "work") as progress:
        assert progress.load() is None


def test_two_writers_are_refused_and_a_killed_one_frees_the_lock(tmp_path):
    path = tmp_path / "p.npz"
    code = (
        "import sys, time\n"
        "from certbench.results.progress import Progress\n"
        "with Progress(sys.argv[1], 'work'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(CertbenchError, match="another process"), Progress(path, "work"):
        pass
    holder.kill()
    holder.wait(timeout=30)
    with Progress(path, "work") as progress:
        progress.save({"done": 1}, force=True)


def test_an_exception_flushes_what_was_held_back(tmp_path):
    path = tmp_path / "p.npz"
    with pytest.raises(KeyboardInterrupt), Progress(path, "work", every_s=1000) as progress:
        progress.save({"done": 1}, force=True)
        progress.save({"done": 2})
        raise KeyboardInterrupt
    with Progress(path, "work") as progress:
        assert progress.load()["done"] == 2


def test_a_finished_job_leaves_nothing(tmp_path):
    path = tmp_path / "p.npz"
    with Progress(path, "work") as progress:
        progress.save({"done": 1}, force=True)
        progress.clear()
    assert not list(tmp_path.iterdir())
