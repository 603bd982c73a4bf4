"""A real SLURM cluster on this machine: munge, MariaDB, slurmdbd, slurmctld, three nodes.

    python tests/slurm/cluster.py start | status | stop

Two GPU nodes declare four A100s each, one CPU node none; partitions and sizes are those of
``profiles/slurm/partitions.yaml``, so that the profile's real requests are accepted, while a job
uses only what it really uses. Needs root and the packages of :data:`PACKAGES` (Debian, Ubuntu).

Clients of SLURM look for their configuration in ``/etc/slurm``, also inside jobs, so it is written
there and removed by ``stop``; a configuration that this module did not write is never touched.
Processes are stopped by their ids.
"""

from __future__ import annotations

import contextlib
import getpass
import grp
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PACKAGES = (
    "slurm-client",
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "slurm-wlm-basic-plugins",
    "munge",
    "mariadb-server",
)
CONFIG = Path("/etc/slurm")
FOLDER = Path("/var/lib/certbench-test-cluster")
MARK = "# written by certbench tests/slurm/cluster.py; removed by its stop command\n"
NODES = ("gpu1", "gpu2", "cpu1")
PORTS = {"mariadb": 33306, "slurmdbd": 36819, "slurmctld": 36817}
NODE_PORTS = {"gpu1": 17001, "gpu2": 17002, "cpu1": 17003}
COMMANDS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")


class ClusterError(RuntimeError):
    """The test cluster cannot be set up; the message says why."""


def install() -> None:
    """Install the packages that are missing.

    Raises:
        ClusterError: Not root, no apt, or the installation fails.
    """
    if all(shutil.which(command, path=_path()) for command in COMMANDS):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise ClusterError(f"needs root and apt-get, or these packages: {' '.join(PACKAGES)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    quiet = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
    for command in (
        [*quiet, "update"],
        [*quiet, "install", "-y", "--no-install-recommends", *PACKAGES],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise ClusterError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def start() -> None:
    """Write the configuration and start everything; returns when all nodes are idle."""
    if os.geteuid() != 0:
        raise ClusterError("needs root: daemons are started and /etc/slurm is written")
    if CONFIG.joinpath("slurm.conf").exists() and not _ours(CONFIG / "slurm.conf"):
        raise ClusterError(f"{CONFIG}/slurm.conf belongs to another cluster; it is left as it is")
    stop()
    install()
    FOLDER.mkdir(parents=True)
    FOLDER.chmod(0o755)
    try:
        _write_configuration()
        _start_munge()
        _start_database()
        _start_slurmdbd()
        start_controller()
        for node in NODES:
            start_node(node)
        _until(lambda: set(node_states().values()) == {"idle"}, 60, "idle nodes")
    except BaseException:
        with contextlib.suppress(Exception):
            print(_logs(), file=sys.stderr)
        stop()
        raise


def stop() -> None:
    """Stop what ``start`` started, by process id, and remove what it wrote."""
    for name in reversed(list(_processes())):
        stop_process(name)
    for name in ("slurm.conf", "slurmdbd.conf", "gres.conf", "cgroup.conf"):
        path = CONFIG / name
        if path.exists() and _ours(path):
            path.unlink()
    if FOLDER.exists():
        shutil.rmtree(FOLDER)


def status() -> dict[str, str]:
    """State of each node, empty where no controller answers."""
    try:
        return node_states()
    except (OSError, subprocess.SubprocessError):
        return {}


def start_controller() -> None:
    """Start slurmctld; it takes up its saved state."""
    _spawn("slurmctld", ["slurmctld", "-D"])
    _until(lambda: _answers(["scontrol", "ping"], "UP"), 60, "slurmctld")


def start_node(name: str) -> None:
    """Start the slurmd of one node."""
    FOLDER.joinpath("spool", name).mkdir(parents=True, exist_ok=True)
    _spawn(f"slurmd-{name}", ["slurmd", "-D", "-N", name])


def power_off(name: str) -> None:
    """Kill a node as a power cut does: its daemon, its jobs' managers, its jobs' processes."""
    stop_process(f"slurmd-{name}", signal.SIGKILL)
    log, mark = f"{FOLDER}/log/slurmd-{name}.log", f"SLURMD_NODENAME={name}".encode()
    managers, others = [], []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if entry.joinpath("comm").read_text().startswith("slurmstepd"):
                if log in {os.readlink(fd) for fd in entry.joinpath("fd").iterdir()}:
                    managers.append(int(entry.name))
            elif mark in entry.joinpath("environ").read_bytes().split(b"\0"):
                others.append(int(entry.name))
    for pid in (*managers, *others):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def stop_process(name: str, number: int = signal.SIGTERM, wait_s: float = 20) -> None:
    """Stop one daemon by its recorded process id, with SIGKILL where it does not follow."""
    processes = _processes()
    entry = processes.get(name)
    if entry is None:
        return
    for sent in (number, signal.SIGKILL):
        if not _alive(entry):
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry["pid"], sent)
        end = time.monotonic() + wait_s
        while _alive(entry) and time.monotonic() < end:
            time.sleep(0.05)
    del processes[name]
    _keep(processes)


def node_states() -> dict[str, str]:
    """State of each node as sinfo says it (idle, mixed, down, ...)."""
    text = run(["sinfo", "-h", "-N", "-o", "%N %T"])
    return dict(sorted({tuple(line.split()[:2]) for line in text.splitlines()}))


def running_jobs() -> list[str]:
    """Ids of all jobs in the queue; none where no controller answers."""
    try:
        return run(["squeue", "-h", "-o", "%A"]).split()
    except (OSError, subprocess.SubprocessError):
        return []


def run(command: list[str], timeout_s: float = 30) -> str:
    """Output of a command; CalledProcessError where it fails."""
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=timeout_s
    ).stdout


# -- parts ---------------------------------------------------------------------------------------


def _write_configuration() -> None:
    host = socket.gethostname().split(".")[0]
    user = getpass.getuser()
    password = secrets.token_hex(16)
    for name in ("state", "spool", "log", "run", "gpus"):
        FOLDER.joinpath(name).mkdir()
    for node in ("gpu1", "gpu2"):
        for i in range(4):
            # A character device like /dev/null: SLURM asks for a device file per GPU.
            os.mknod(FOLDER / "gpus" / f"{node}-{i}", 0o20666, os.makedev(1, 3))
    nodes = "\n".join(
        f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={NODE_PORTS[node]} "
        f"CPUs=64 RealMemory=510000{' Gres=gpu:a100:4' if node.startswith('gpu') else ''}"
        for node in NODES
    )
    _write(
        "slurm.conf",
        f"""
ClusterName=testcluster
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={PORTS["slurmctld"]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=cred_expire=10
StateSaveLocation={FOLDER}/state
SlurmdSpoolDir={FOLDER}/spool/%n
SlurmctldPidFile={FOLDER}/run/slurmctld.pid
SlurmdPidFile={FOLDER}/run/slurmd-%n.pid
SlurmctldLogFile={FOLDER}/log/slurmctld.log
SlurmdLogFile={FOLDER}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory,CR_LLN
ReturnToService=2
KillWait=20
MinJobAge=300
MaxArraySize=1001
SlurmdTimeout=60
SlurmctldTimeout=60
MessageTimeout=60
BatchStartTimeout=60
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=500000,bf_interval=5
JobRequeue=1
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=10
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={PORTS["slurmdbd"]}
AccountingStorageTRES=gres/gpu,gres/gpu:a100
AccountingStorageEnforce=associations
AccountingStoreFlags=job_comment
GresTypes=gpu
SlurmdParameters=config_overrides
{nodes}
PartitionName=DEFAULT DefaultTime=10 State=UP OverSubscribe=NO
PartitionName=gpu_4_a100 Nodes=gpu[1-2] MaxTime=48:00:00 MaxNodes=9
PartitionName=dev_gpu_4_a100 Nodes=gpu1 MaxTime=00:30:00 MaxNodes=1
PartitionName=single Nodes=cpu1 MaxTime=72:00:00 MaxNodes=1
""",
    )
    _write(
        "gres.conf",
        "AutoDetect=off\n"
        + "".join(
            f"NodeName={node} Name=gpu Type=a100 File={FOLDER}/gpus/{node}-[0-3]\n"
            for node in ("gpu1", "gpu2")
        ),
    )
    # Version 22.05 reads this file even where no plug-in uses control groups.
    _write("cgroup.conf", "CgroupPlugin=cgroup/v1\nConstrainCores=no\nConstrainRAMSpace=no\n")
    _write(
        "slurmdbd.conf",
        f"""
AuthType=auth/munge
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={PORTS["slurmdbd"]}
SlurmUser={user}
PidFile={FOLDER}/run/slurmdbd.pid
LogFile={FOLDER}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={PORTS["mariadb"]}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct_db
""",
        mode=0o600,
    )
    FOLDER.joinpath("password").write_text(password)
    FOLDER.joinpath("password").chmod(0o600)


def _start_munge() -> None:
    account = pwd.getpwnam("munge")
    home = FOLDER / "munge"
    home.mkdir(mode=0o700)
    key = home / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    for path in (home, key):
        os.chown(path, account.pw_uid, account.pw_gid)
    runtime = Path("/run/munge")
    runtime.mkdir(exist_ok=True)
    runtime.chmod(0o755)
    os.chown(runtime, account.pw_uid, account.pw_gid)
    if _succeeds(["munge", "-n"]):
        raise ClusterError("another munged is running on this machine")
    _spawn(
        "munged",
        [
            "munged",
            "--foreground",
            f"--key-file={key}",
            f"--pid-file={home}/munged.pid",
            f"--seed-file={home}/munged.seed",
        ],
        user="munge",
    )
    _until(lambda: _succeeds(["munge", "-n"]), 30, "munged")


def _start_database() -> None:
    home = FOLDER / "mariadb"
    home.mkdir()
    account = pwd.getpwnam("mysql")
    os.chown(home, account.pw_uid, account.pw_gid)
    run(
        [
            "mariadb-install-db",
            "--no-defaults",
            "--user=mysql",
            f"--datadir={home}/data",
            "--skip-test-db",
            "--auth-root-authentication-method=normal",
        ],
        timeout_s=120,
    )
    _spawn(
        "mariadbd",
        [
            "mariadbd",
            "--no-defaults",
            f"--datadir={home}/data",
            f"--socket={home}/socket",
            f"--pid-file={home}/pid",
            "--bind-address=127.0.0.1",
            f"--port={PORTS['mariadb']}",
            "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=0",
        ],
        user="mysql",
    )
    client = ["mariadb", "--no-defaults", f"--socket={home}/socket", "--user=root"]
    _until(lambda: _succeeds([*client, "-e", "select 1"]), 60, "MariaDB")
    password = FOLDER.joinpath("password").read_text()
    run(
        [
            *client,
            "-e",
            "create database slurm_acct_db;"
            f"create user slurm@'127.0.0.1' identified by '{password}';"
            f"create user slurm@localhost identified by '{password}';"
            "grant all on slurm_acct_db.* to slurm@'127.0.0.1';"
            "grant all on slurm_acct_db.* to slurm@localhost;",
        ]
    )


def _start_slurmdbd() -> None:
    _spawn("slurmdbd", ["slurmdbd", "-D"])
    _until(lambda: _succeeds(["sacctmgr", "-n", "list", "cluster"]), 60, "slurmdbd")
    for command in (
        ["add", "cluster", "testcluster"],
        ["add", "account", "study", "cluster=testcluster"],
        ["add", "user", getpass.getuser(), "account=study", "cluster=testcluster"],
    ):
        subprocess.run(["sacctmgr", "-i", *command], capture_output=True, timeout=30)


# -- processes and files -------------------------------------------------------------------------


def _write(name: str, text: str, mode: int = 0o644) -> None:
    CONFIG.mkdir(exist_ok=True)
    path = CONFIG / name
    if path.exists() and not _ours(path):
        raise ClusterError(f"{path} was not written by this test; it is left as it is")
    path.touch(mode=mode)
    path.chmod(mode)
    path.write_text(MARK + text.lstrip())


def _ours(path: Path) -> bool:
    return path.read_text(errors="replace").startswith(MARK)


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


def _spawn(name: str, command: list[str], user: str | None = None) -> None:
    program = shutil.which(command[0], path=_path())
    if program is None:
        raise ClusterError(f"{command[0]} is not installed; packages: {' '.join(PACKAGES)}")
    options: dict[str, Any] = {}
    if user is not None:
        account = pwd.getpwnam(user)
        groups = [g.gr_gid for g in grp.getgrall() if user in g.gr_mem]
        options = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}
    with open(FOLDER / "log" / f"{name}.out", "ab") as log:
        process = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            **options,
        )
    processes = _processes()
    processes[name] = {"pid": process.pid, "began": _began(process.pid)}
    _keep(processes)


def _processes() -> dict[str, dict[str, Any]]:
    try:
        return json.loads(FOLDER.joinpath("processes.json").read_text())
    except FileNotFoundError:
        return {}


def _keep(processes: dict[str, dict[str, Any]]) -> None:
    FOLDER.joinpath("processes.json").write_text(json.dumps(processes, indent=1))


def _began(pid: int) -> str | None:
    """Start time of a process: an id may be given to another process later."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _alive(entry: dict[str, Any]) -> bool:
    with contextlib.suppress(ChildProcessError, OSError):
        os.waitpid(entry["pid"], os.WNOHANG)
    return entry["began"] is not None and _began(entry["pid"]) == entry["began"]


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _answers(command: list[str], word: str) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return word in done.stdout


def _until(condition: Any, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise ClusterError(f"no {what} after {seconds:.0f} s\n{_logs()}")
        time.sleep(0.2)


def _logs() -> str:
    parts = []
    for path in sorted(FOLDER.glob("log/*")):
        lines = path.read_text(errors="replace").splitlines()[-8:]
        if lines:
            parts.append(f"-- {path.name}\n" + "\n".join(lines))
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """The command line."""
    commands = {"start": start, "stop": stop, "status": lambda: print(status() or "not running")}
    if len(arguments) != 1 or arguments[0] not in commands:
        print(__doc__)
        return 2
    began = time.monotonic()
    try:
        commands[arguments[0]]()
    except ClusterError as error:
        print(f"test cluster: {error}", file=sys.stderr)
        return 1
    if arguments[0] == "start":
        print(f"test cluster: {node_states()} after {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
