"""Whether the lock of a workflow is stale, and its removal.

Snakemake locks its working folder and leaves the lock behind when it is killed. Its own
``--unlock`` removes the lock of a running workflow just as gladly; two workflows then write the
same files. Here a lock goes only if no Snakemake process works in the folder any more.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from certbench.errors import CertbenchError

LOCKS = Path(".snakemake/locks")

# File systems that other machines may have mounted: their processes cannot be seen from here.
_SHARED = ("nfs", "lustre", "beegfs", "gpfs", "ceph", "cifs", "smb", "glusterfs", "fuse.sshfs")


def unlock(folder: str | Path = ".", anyway: bool = False) -> str:
    """Remove the stale lock of a working folder.

    Args:
        folder: The working folder of the workflow.
        anyway: Remove it on a network file system too, where a Snakemake on another machine would
            not be seen.

    Returns:
        What was done, in one sentence.

    Raises:
        CertbenchError: A Snakemake process is alive in the folder, or may be on another machine.
    """
    folder = Path(folder).resolve()
    files = sorted(folder.joinpath(LOCKS).glob("*.lock"))
    if not files:
        return "There is no lock."
    owners = alive(folder)
    if owners:
        listed = ", ".join(str(owner) for owner in owners)
        raise CertbenchError(
            f"the lock is in use: Snakemake or a job of it is running here (process {listed})",
            where=str(folder / LOCKS),
            remedy="wait for it, or end it; the lock goes with it",
        )
    kind = file_system(folder)
    if kind.startswith(_SHARED) and not anyway:
        raise CertbenchError(
            f"no Snakemake runs here on this machine, but the folder is on {kind}, and one on "
            "another machine would not be seen",
            where=str(folder / LOCKS),
            remedy="if no other machine runs one in this folder: certbench unlock --anyway",
        )
    for file in files:
        file.unlink(missing_ok=True)
    return (
        f"Removed the lock of a Snakemake that is no longer alive ({len(files)} files). Run the "
        "workflow again: finished jobs are kept."
    )


def alive(folder: Path, processes: str | Path = "/proc") -> list[int]:
    """Ids of the processes that run Snakemake in a folder; where unknown, of all that run it.

    Args:
        folder: The working folder, resolved.
        processes: Where the system shows its processes.
    """
    root = Path(processes)
    if not root.joinpath("self").exists():
        return _listed()
    found = []
    for process in root.iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            words = process.joinpath("cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if not is_snakemake(words):
            continue
        try:
            here = Path(os.readlink(process / "cwd"))
        except OSError:  # of another user: it may well work here
            here = folder
        if here == folder or _directory_option(words, here) == folder:
            found.append(int(process.name))
    return sorted(found)


def is_snakemake(words: Iterable[str]) -> bool:
    """Whether a command line runs Snakemake (program or module of Python), or one of its jobs.

    A job outlives a Snakemake that was killed, and still writes its files.
    """
    parts = [word for word in words if word]
    if not parts:
        return False
    if Path(parts[0]).name == "snakemake":
        return True
    if not Path(parts[0]).name.startswith("python"):
        return False
    rest = parts[1:]
    for place, word in enumerate(rest):
        if word == "-m":
            return rest[place + 1 : place + 2] == ["snakemake"]
        if not word.startswith("-"):
            return Path(word).name == "snakemake" or ".snakemake/scripts/" in word
    return False


def _directory_option(words: list[str], here: Path) -> Path | None:
    for place, word in enumerate(words):
        if word in ("-d", "--directory") and place + 1 < len(words):
            return (here / words[place + 1]).resolve()
        if word.startswith("--directory="):
            return (here / word.partition("=")[2]).resolve()
    return None


def _listed() -> list[int]:
    """Processes by ``ps``, which does not tell where they work."""
    output = subprocess.run(
        ["ps", "-axo", "pid=,command="], capture_output=True, text=True, check=False
    ).stdout
    found = []
    for line in output.splitlines():
        number, _, command = line.strip().partition(" ")
        if is_snakemake(command.split()) and int(number) != os.getpid():
            found.append(int(number))
    return found


def file_system(folder: Path, mounts: str | Path = "/proc/mounts") -> str:
    """Type of the file system a folder is on; empty where the system does not say.

    Args:
        folder: The folder, resolved.
        mounts: The system's table of mounts.
    """
    try:
        lines = Path(mounts).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        if (point == folder or point in folder.parents) and len(point.parts) > best:
            best, kind = len(point.parts), fields[2]
    return kind
