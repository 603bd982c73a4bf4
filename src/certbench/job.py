"""The one entry of every job: log, signals, threads, progress, provenance, clear errors.

A workflow script hands over its ``snakemake`` object (any object with these attributes will do)::

    from certbench.job import run_rule
    run_rule("collect", snakemake)

The rule's name selects the module in :data:`RUNNERS`; its ``run(job)`` does the work. This module
imports no torch, numpy or pyarrow: a job pays only for what it uses, and thread limits are set
before any of them is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import certbench
from certbench.errors import CertbenchError
from certbench.params import canonical

if TYPE_CHECKING:
    import torch

    from certbench.results.progress import Progress

RUNNERS = {
    "prepare": "certbench.datasets.preparing",
    "materialise": "certbench.variants.materialising",
    "train": "certbench.recipes.training",
    "fetch": "certbench.models.fetching",
    "predict": "certbench.models.predicting",
    "collect": "certbench.certify.collecting",
    "decide": "certbench.certify.deciding",
    "fit": "certbench.attacks.fitting",
    "attack": "certbench.attacks.running",
    "audit": "certbench.certify.auditing",
    "table": "certbench.metrics.tabulating",
    "figure": "certbench.figures.drawing",
    "report": "certbench.report.building",
}

PROGRESS_FOLDER = Path("results/.progress")
EXIT_REFUSED = 2
EXIT_TERMINATED = 143
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
)

logger = logging.getLogger("certbench")


class Terminated(BaseException):
    """SIGTERM arrived: flush progress and leave (a time limit, a preemption, a scancel)."""


@dataclass
class Job:
    """What a runner gets: its work, its files, and the services of the entry.

    Attributes:
        rule: Name of the rule.
        work: Everything this phase depends on, as planned (JSON values).
        inputs: Input files by name.
        outputs: Output files by name.
        threads: Number of CPU threads granted.
        batch_size: Images per forward pass; no part of the work, because rows do not depend on it.
        terminal: The real standard error, for progress bars.
    """

    rule: str
    work: dict[str, Any]
    inputs: dict[str, list[Path]]
    outputs: dict[str, Path]
    threads: int = 1
    batch_size: int = 400
    terminal: IO[str] | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def work_hash(self) -> str:
        """Hash of the rule and its complete work description."""
        text = canonical({"rule": self.rule, "work": self.work})
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def input(self, name: str) -> Path:
        """The only input file of that name."""
        (path,) = self.inputs[name]
        return path

    def output(self, name: str) -> Path:
        """The output file of that name."""
        return self.outputs[name]

    def progress(self, every_s: float = 5.0) -> Progress:
        """The resumable progress of this job (use as a context manager)."""
        from certbench.results.progress import Progress

        path = PROGRESS_FOLDER / f"{self.rule}-{self.work_hash}.npz"
        return Progress(path, self.work_hash, every_s)

    def plugin(self, kind: str, name: str) -> Any:
        """A plug-in module, those named in the configuration included."""
        from certbench.plugins import load

        return load(kind, name, tuple(self.work.get("plugins", ())), where=f"{self.rule} job")

    @cached_property
    def device(self) -> torch.device:
        """The torch device of this job, with threads and numerics set up.

        ``numerics: exact`` means float32 without TF32, deterministic kernels, no autotuning.

        Raises:
            CertbenchError: ``device: cuda`` where there is none.
        """
        import torch

        wanted = self.work.get("device", "auto")
        if wanted == "cuda" and not torch.cuda.is_available():
            raise CertbenchError(
                "device is cuda, but this machine has no usable CUDA device",
                where="config: device",
                remedy="run on a GPU node, or set device: auto or cpu",
            )
        use_cuda = wanted in ("auto", "cuda") and torch.cuda.is_available()
        torch.set_num_threads(self.threads)
        exact = self.work.get("numerics", "exact") == "exact"
        torch.backends.cuda.matmul.allow_tf32 = not exact
        torch.backends.cudnn.allow_tf32 = not exact
        torch.backends.cudnn.benchmark = not exact
        if exact:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        return torch.device("cuda" if use_cuda else "cpu")

    def provenance(self, **extra: Any) -> dict[str, Any]:
        """What goes into the footer of a result file."""
        torch_module = sys.modules.get("torch")
        made: dict[str, Any] = {
            "certbench": certbench.__version__,
            "commit": _git_commit(),
            "rule": self.rule,
            "work": self.work,
            "work_hash": self.work_hash,
            "threads": self.threads,
            "wall_time_s": round(time.monotonic() - self.started, 3),
        }
        if torch_module is not None:
            made["torch"] = torch_module.__version__
            made["device"] = self._device_name()
        return {**made, **extra}

    def _device_name(self) -> str:
        device = self.__dict__.get("device")
        if device is not None and device.type == "cuda":
            import torch

            return torch.cuda.get_device_name(device)
        return "cpu"

    @contextlib.contextmanager
    def bar(self, total: int, label: str, unit: str = "it", done: int = 0) -> Iterator[Bar]:
        """A progress bar on a terminal, sparse lines in the log."""
        status = PROGRESS_FOLDER / f"{self.rule}-{self.work_hash}.json"
        told = {"rule": self.rule, "output": str(next(iter(self.outputs.values()), ""))}
        made = Bar(total, label, unit, done, self.terminal, status, told)
        try:
            yield made
        finally:
            made.close()


class Bar:
    """Progress with rate and time left: a bar on a terminal, a line every 30 s in the log.

    ``status`` is a small file for onlookers (``certbench watch``), rewritten every 5 s and removed
    at the end; one that is left and no longer changes belongs to a process that was killed.
    """

    def __init__(
        self,
        total: int,
        label: str,
        unit: str,
        done: int,
        terminal: IO[str] | None,
        status: Path | None = None,
        told: Mapping[str, Any] | None = None,
    ):
        self.total, self.label, self.unit, self.done = total, label, unit, done
        self._status, self._told, self._kept = status, dict(told or {}), float("-inf")
        self._began, self._first, self._said = time.monotonic(), done, time.monotonic()
        self._tqdm: Any = None
        if terminal is not None and terminal.isatty():
            from tqdm import tqdm

            self._tqdm = tqdm(
                total=total,
                desc=label,
                unit=unit,
                initial=done,
                file=terminal,
                leave=False,
                delay=2,
            )
        self._keep()

    def update(self, count: int) -> None:
        """Say that ``count`` more are done."""
        self.done += count
        if self._tqdm is not None:
            self._tqdm.update(count)
        now = time.monotonic()
        if now - self._said >= 30:
            self._said = now
            logger.info(self.line())
        if now - self._kept >= 5:
            self._keep()

    def _keep(self) -> None:
        """Write the status file; a full disk is no reason to end the job."""
        if self._status is None:
            return
        self._kept = time.monotonic()
        status = {
            **self._told,
            "label": self.label,
            "unit": self.unit,
            "done": self.done,
            "total": self.total,
            "rate": (self.done - self._first) / max(self._kept - self._began, 1e-9),
            "updated": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slurm_job": slurm_job(),
        }
        with contextlib.suppress(OSError):
            self._status.parent.mkdir(parents=True, exist_ok=True)
            partial = self._status.with_suffix(f".{os.getpid()}.part")
            partial.write_text(json.dumps(status), encoding="utf-8")
            os.replace(partial, self._status)

    def line(self) -> str:
        """One line: done, total, rate, time left."""
        elapsed = max(time.monotonic() - self._began, 1e-9)
        rate = (self.done - self._first) / elapsed
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        text = f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.3g} {self.unit}/s"
        return text + (f", {left:.0f} s left" if left != float("inf") else "")

    def close(self) -> None:
        """End the bar and leave a closing line in the log."""
        if self._tqdm is not None:
            self._tqdm.close()
        if self._status is not None:
            with contextlib.suppress(OSError):
                self._status.unlink(missing_ok=True)
        logger.info(self.line())


def run_rule(rule: str, snakemake: Any) -> None:
    """Run one job for a workflow script; exits the process with a code on failure.

    Args:
        rule: A key of :data:`RUNNERS`.
        snakemake: Object with ``input``, ``output``, ``params.work`` (JSON text), ``log``,
            ``threads``, ``resources``. Nothing else of it is read.
    """
    inputs = {
        name: [Path(p) for p in ([value] if isinstance(value, str) else value)]
        for name, value in snakemake.input.items()
    }
    outputs = {name: Path(value) for name, value in snakemake.output.items()}
    log = Path(str(snakemake.log[0])) if len(snakemake.log) else None
    code = execute(
        rule,
        json.loads(snakemake.params.work),
        inputs,
        outputs,
        log,
        threads=int(snakemake.threads),
        batch_size=int(snakemake.resources.get("batch_size", 400)),
    )
    if code:
        _leave(code)


def execute(
    rule: str,
    work: Mapping[str, Any],
    inputs: Mapping[str, list[Path]],
    outputs: Mapping[str, Path],
    log: Path | None = None,
    threads: int = 1,
    batch_size: int = 400,
) -> int:
    """Run one job in this process.

    Returns:
        Exit code: 0, 2 (refused: the message says why), 143 (terminated), 1 (a bug; the log has the
        traceback).
    """
    threads = granted(threads)
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    with _logged(log) as terminal:
        job = Job(rule, dict(work), dict(inputs), dict(outputs), threads, batch_size, terminal)
        logger.info("%s: %s", rule, ", ".join(map(str, outputs.values())))
        try:
            with _sigterm_raises():
                importlib.import_module(RUNNERS[rule]).run(job)
        except CertbenchError as error:
            _say(terminal, f"certbench {rule}: {error}")
            return EXIT_REFUSED
        except Terminated:
            _say(terminal, f"certbench {rule}: terminated; progress is kept, run again to go on")
            return EXIT_TERMINATED
        except MemoryError:
            _say(
                terminal, f"certbench {rule}: out of memory\n  -> lower batch_size, or ask for more"
            )
            return EXIT_REFUSED
        except Exception:
            text = traceback.format_exc()
            logger.error("%s", text)
            where = f"; traceback in {log}" if log else f"\n{text}"
            _say(terminal, f"certbench {rule}: {text.strip().splitlines()[-1]}{where}")
            return 1
        logger.info("%s: done in %.1f s", rule, time.monotonic() - job.started)
    return 0


def slurm_job() -> str | None:
    """Id of the SLURM job this process is in, ``<job>_<task>`` in an array; None outside."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def granted(threads: int) -> int:
    """CPU threads a job uses: those it asked for, at most ``CERTBENCH_MAX_THREADS``.

    The variable serves machines that declare more cores to a scheduler than they have.
    """
    cap = os.environ.get("CERTBENCH_MAX_THREADS", "")
    return max(1, min(threads, int(cap))) if cap.isdigit() else threads


@contextlib.contextmanager
def _logged(log: Path | None) -> Iterator[IO[str]]:
    """Send logging, warnings, stdout and stderr to the job's log; yield the real stderr."""
    if log is None:
        yield sys.stderr
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept_out, kept_err = os.dup(1), os.dup(2)
    terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", buffering=1)
    # Appending: the descriptors and the Python streams below write to one file in turn.
    log.unlink(missing_ok=True)
    file = open(log, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            yield terminal
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        logging.captureWarnings(False)
        os.dup2(kept_out, 1)
        os.dup2(kept_err, 2)
        os.close(kept_out)
        os.close(kept_err)
        file.close()
        terminal.close()


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    def on_sigterm(number: int, frame: object) -> None:
        # A scheduler sends it to every process of a job, and the job's parents pass it on: a second
        # one must not interrupt the writing of progress that the first one brought about.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, on_sigterm)
    except ValueError:  # not the main thread: a notebook or a test runner owns the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(terminal: IO[str], text: str) -> None:
    logger.error("%s", text)
    with contextlib.suppress(OSError):
        print(text, file=terminal, flush=True)


def _leave(code: int) -> NoReturn:
    """End the process quietly: the message is out, a traceback would bury it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _git_commit() -> str | None:
    """Commit of the working folder, read without starting a process."""
    git = Path(".git")
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        ref = git / head[5:]
        if ref.is_file():
            return ref.read_text().strip()
        for line in (git / "packed-refs").read_text().splitlines():
            if line.endswith(head[5:]):
                return line.split()[0]
    except OSError:
        pass
    return None
