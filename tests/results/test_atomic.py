"""Files are whole or absent: exceptions, kills in mid-write, full disks."""

import os
import signal
import subprocess
import sys
import time

import pytest

from certbench.errors import CertbenchError
from certbench.results.atomic import atomic_path, write_text


def test_the_target_appears_only_when_the_block_ends_well(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    with atomic_path(target) as path:
        path.write_text("half")
        assert not target.exists()
        path.write_text("whole")
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as path:
        path.write_text("new")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_kill_in_mid_write_leaves_no_target(tmp_path):
    code = (
        "import sys, time\n"
        "from certbench.results.atomic import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path:\n"
        "    path.write_text('half of the truth')\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    target = tmp_path / "rows.parquet"
    process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert not target.exists()
    write_text(target, "whole")
    assert target.read_text() == "whole"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    for _ in range(20):
        if not subprocess.run(["umount", str(folder)], capture_output=True).returncode:
            break
        time.sleep(0.1)


def test_a_full_disk_is_told_and_leaves_the_old_file(small_disk):
    target = small_disk / "rows.bin"
    write_text(target, "old")
    with (
        pytest.raises(CertbenchError, match=r"no space left.*\n.*finished work is kept"),
        atomic_path(target) as path,
    ):
        path.write_bytes(b"x" * 1_000_000)
    assert target.read_text() == "old"
    assert list(small_disk.iterdir()) == [target]


def test_a_full_disk_under_a_parquet_writer_is_told_too(small_disk):
    import numpy as np

    from certbench.results import rows

    count = 200_000
    columns = {
        "item_id": [str(i) for i in range(count)],
        "confidence": np.random.default_rng(0).random(count),
    }
    made = rows.table("predictions", columns, {"model": "m"})
    with pytest.raises(CertbenchError, match="no space left"):
        rows.write(small_disk / "rows.parquet", made, "predictions", {})
    assert not list(small_disk.iterdir())
