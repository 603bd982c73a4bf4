"""The compiled backend of ``philox-v1``: a C++ kernel, built once per machine and kept.

The kernel (``_noise_native.cpp`` beside this module) is built for the processor at hand with the
C++ compiler of the system and kept in ``$XDG_CACHE_HOME/certbench`` (by default
``~/.cache/certbench``), or in a temporary folder where that cannot be written. Its name there
carries a hash of source, compiler, flags and processor, so that machines with one home directory
do not load each other's.

Imported by :mod:`certbench.certify._noise_torch` when the backend is used.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

from certbench.results.atomic import atomic_path

SOURCE = Path(__file__).with_suffix(".cpp")
COMPILERS = ("c++", "g++", "clang++")

# Products and sums are not contracted, so that the bits are those of single operations.
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno")
# The first set that the compiler takes.
_TARGETS = (
    ("-march=native", "-mprefer-vector-width=512"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
# Fewer values than this are not worth a second thread.
_PER_THREAD = 1 << 15


def compiler() -> str | None:
    """Path of the C++ compiler, ``$CXX`` first, or None where there is none."""
    names = [*filter(None, [os.environ.get("CXX")]), *COMPILERS]
    return next((found for found in map(shutil.which, names) if found), None)


def fill(
    kind: str,
    keys: list[tuple[int, int]],
    stream: int,
    images: torch.Tensor,
    samples: torch.Tensor,
    scale: float,
    out: torch.Tensor,
) -> None:
    """Write the noise of each (image, sample) pair into the rows of ``out``.

    Args:
        kind: ``normal`` or ``uniform``.
        keys: The ten round keys.
        stream: The stream word.
        images: int64 [B].
        samples: int64 [B].
        scale: Standard deviation or half-width.
        out: float32 [B, elements], contiguous.
    """
    images, samples = images.contiguous(), samples.contiguous()
    words = _words(keys)
    head = (int(kind == "normal"), words, stream, images.data_ptr(), samples.data_ptr(), scale)
    rows, elements = out.shape

    def run(begin: int, end: int) -> None:
        _library().certbench_fill(*head, elements, begin, end, out.data_ptr())

    _in_threads(run, rows, elements)


def add(
    kind: str,
    keys: list[tuple[int, int]],
    stream: int,
    images: torch.Tensor,
    samples: torch.Tensor,
    scale: float,
    pictures: torch.Tensor,
    slots: torch.Tensor,
    out: torch.Tensor,
    shift: torch.Tensor | None = None,
    factor: torch.Tensor | None = None,
) -> None:
    """Write ((pictures[slots] + noise) - shift) * factor into ``out``.

    The values are those of :func:`fill` followed by the same operations on whole tensors.

    Args:
        kind: ``normal`` or ``uniform``.
        keys: The ten round keys.
        stream: The stream word.
        images: int64 [B].
        samples: int64 [B].
        scale: Standard deviation or half-width.
        pictures: float32 [M, C, H, W], contiguous.
        slots: int64 [B], the picture of each row.
        out: float32 [B, C, H, W], contiguous or channels-last.
        shift: float32 with C elements, or None for 0.
        factor: float32 with C elements, or None for 1.
    """
    rows, channels, height, width = out.shape
    last = not out.is_contiguous()
    if last and not out.is_contiguous(memory_format=torch.channels_last):
        raise ValueError("out is neither contiguous nor channels-last")
    images, samples, slots = (t.contiguous() for t in (images, samples, slots))
    shift = torch.zeros(channels) if shift is None else shift.flatten().contiguous()
    factor = torch.ones(channels) if factor is None else factor.flatten().contiguous()
    words = _words(keys)
    head = (int(kind == "normal"), words, stream, images.data_ptr(), samples.data_ptr(), scale)
    elements = channels * height * width

    def run(begin: int, end: int) -> None:
        buffer = torch.empty(elements)
        _library().certbench_add(
            *head,
            channels,
            height * width,
            pictures.data_ptr(),
            slots.data_ptr(),
            shift.data_ptr(),
            factor.data_ptr(),
            int(last),
            begin,
            end,
            buffer.data_ptr(),
            out.data_ptr(),
        )

    _in_threads(run, rows, elements)


def _words(keys: list[tuple[int, int]]) -> Any:
    flat = [word for pair in keys for word in pair]
    return (ctypes.c_uint32 * len(flat))(*flat)


def _in_threads(run: Callable[[int, int], None], rows: int, elements: int) -> None:
    """Run pieces of the rows on as many threads as torch uses (ctypes releases the GIL)."""
    threads = min(torch.get_num_threads(), rows, max(rows * elements // _PER_THREAD, 1))
    if threads == 1:
        run(0, rows)
        return
    edges = [rows * i // threads for i in range(threads + 1)]
    pool = _pool(os.getpid(), threads - 1)
    others = [pool.submit(run, edges[i], edges[i + 1]) for i in range(1, threads)]
    run(edges[0], edges[1])
    for other in others:
        other.result()


@cache
def _pool(process: int, workers: int) -> ThreadPoolExecutor:
    """Threads of this process (a fork has none of its parent's)."""
    return ThreadPoolExecutor(workers, thread_name_prefix="noise")


@cache
def _library() -> ctypes.CDLL:
    """The kernel, built where it is not there yet."""
    library = ctypes.CDLL(str(_built()))
    word, whole, address, real = ctypes.c_uint32, ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
    head: list[Any] = [ctypes.c_int, ctypes.POINTER(word), word, address, address, real]
    library.certbench_fill.argtypes = [*head, whole, whole, whole, address]
    library.certbench_add.argtypes = [
        *head, whole, whole, address, address, address, address, ctypes.c_int, whole, whole,
        address, address,
    ]  # fmt: skip
    for function in (library.certbench_fill, library.certbench_add):
        function.restype = None
    return library


def _built() -> Path:
    """Path of the built kernel.

    Raises:
        RuntimeError: No compiler, or it fails; says how.
    """
    found = compiler()
    if found is None:
        raise RuntimeError("there is no C++ compiler")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    about = [SOURCE.read_text(), found, version.stdout, *_FLAGS, str(_TARGETS), _processor()]
    name = f"noise-{hashlib.sha256(chr(0).join(about).encode()).hexdigest()[:16]}.so"
    for folder in _folders():
        path = folder / name
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            about_folder = folder.stat()
            # Nobody else may put code there.
            if about_folder.st_uid != os.getuid() or about_folder.st_mode & 0o022:
                continue
            if path.is_file():
                return path
            with atomic_path(path) as part:
                _compile(found, part)
        except OSError:
            continue
        return path
    raise RuntimeError(
        f"none of {', '.join(map(str, _folders()))} can be written by this user alone"
    )


def _compile(found: str, target: Path) -> None:
    for flags in _TARGETS:
        command = [found, *_FLAGS, *flags, "-o", str(target), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
    raise RuntimeError(f"{found} cannot build {SOURCE.name}: {done.stderr.strip()}")


def _folders() -> list[Path]:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    temporary = Path(tempfile.gettempdir()) / f"certbench-{os.getuid()}"
    return [Path(home) / "certbench", temporary]


def _processor() -> str:
    """What a kernel built for this processor depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    described = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(described)])
