"""CIFAR-10 from its original Python batches.

The batches are pickles. They are read by an unpickler that builds nothing but lists, dictionaries,
text, numbers and uint8 arrays: a pickle that names anything else is refused before it can run.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbench.datasets import images, sampling
from certbench.datasets.card import Card
from certbench.errors import CertbenchError
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from PIL import Image

version = 1

FOLDER = "cifar-10-batches-py"
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
ITEMS_IN_BATCH = 10_000
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


@dataclass(frozen=True)
class Params:
    """Where the batches are, and how many training images are held out."""

    root: str = param(help=f"folder {FOLDER}, or the folder it is in")
    val: int = param(0, help="items of split val, carved from train", minimum=0, maximum=49_999)
    calibration: int = param(
        0, help="items of split calibration, carved from train", minimum=0, maximum=49_999
    )

    def __post_init__(self) -> None:
        if self.val + self.calibration >= 50_000:
            raise CertbenchError(
                f"val {self.val} and calibration {self.calibration} leave nothing of 50000 for "
                "train",
                where="val",
                remedy="make them smaller",
            )


def splits(params: Params) -> dict[str, int | None]:
    """Number of items of each split."""
    held = {"val": params.val, "calibration": params.calibration}
    return {
        "train": 50_000 - sum(held.values()),
        **{name: size for name, size in held.items() if size},
        "test": 10_000,
    }


def prepare(
    params: Params, splits: Sequence[str], seed: int, tick: Callable[[int, int], None]
) -> tuple[pa.Table, Card]:
    """List the images of some splits, once the batches they are in are as they should be.

    An item's id is ``train/<place>`` or ``test/<place>``, and its index that place, counted over
    the batches in order; holding out items changes neither.
    """
    import pyarrow as pa

    from certbench.datasets import index

    folder = _folder(params)
    sources = [s for s in BATCHES if s in splits or (s == "train" and set(splits) - set(BATCHES))]
    total, done = sum(len(BATCHES[source]) for source in sources), 0
    tables = []
    for source in sources:
        labels: list[int] = []
        names: list[str] = []
        for name in BATCHES[source]:
            _, found = _batch(folder / name, *_stamp(folder / name))
            if len(found) != ITEMS_IN_BATCH:
                raise CertbenchError(
                    f"has {len(found)} images, not {ITEMS_IN_BATCH}",
                    where=str(folder / name),
                    remedy="unpack the original archive again",
                )
            labels += found
            names += [name] * len(found)
            done += 1
            tick(done, total)
        n = len(labels)
        ids = [f"{source}/{i:06d}" for i in range(n)]
        held = {"val": params.val, "calibration": params.calibration} if source == "train" else {}
        belongs = sampling.carve(ids, labels, held, source, seed, "val")
        rows = [i % ITEMS_IN_BATCH for i in range(n)]
        table = index.table(ids, range(n), belongs, labels, path=names, row=rows)
        tables.append(table.filter(pa.array([split in splits for split in belongs], pa.bool_())))
    return pa.concat_tables(tables), CARD


def read(params: Params, rows: pa.Table) -> list[Image.Image]:
    """The 32x32 RGB images of index rows, in order."""
    from PIL import Image

    folder = _folder(params)
    decoded = []
    for name, row in zip(
        rows.column("path").to_pylist(), rows.column("row").to_pylist(), strict=True
    ):
        pixels, _ = _batch(folder / name, *_stamp(folder / name))
        # A batch stores an image as three planes.
        decoded.append(Image.fromarray(pixels[row].reshape(3, 32, 32).transpose(1, 2, 0).copy()))
    return decoded


def _folder(params: Params) -> Path:
    root = images.existing(params.root, "root")
    return root / FOLDER if (root / FOLDER).is_dir() else root


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise CertbenchError(
            f"there is no file {path}",
            where="root",
            remedy=f"unpack cifar-10-python.tar.gz there: it makes the folder {FOLDER}",
        ) from error
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=6)
def _batch(path: Path, changed: int, size: int) -> tuple[np.ndarray, list[int]]:
    """Pixels (uint8 [n, 3072]) and labels of a batch; the stamp tells a changed file."""
    import numpy as np

    with open(path, "rb") as handle:
        content = load_pickle(handle, str(path))
    content = content if isinstance(content, dict) else {}
    pixels, labels = content.get(b"data"), content.get(b"labels")
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.shape[1:] != (3072,)
        or not isinstance(labels, list)
        or len(labels) != len(pixels)
    ):
        raise CertbenchError(
            "is no CIFAR-10 batch",
            where=str(path),
            remedy="needs data (uint8 [n, 3072]) and labels (n integers); CIFAR-100 and the binary "
            "version are other formats",
        )
    wrong = [label for label in labels if not isinstance(label, int) or not 0 <= label <= 9]
    if wrong:
        raise CertbenchError(f"has labels outside 0..9: {wrong[:10]}", where=str(path))
    return pixels, labels


class _Array:
    """Stands for ``numpy.ndarray`` in a pickle: keeps its state, which is read afterwards."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Type:
    """Stands for ``numpy.dtype`` in a pickle."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment: nothing to a single byte."""


def _make_array(*_: Any) -> _Array:
    return _Array()


def _latin1(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("text in an unexpected encoding")
    return text.encode("latin-1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _make_array,
    ("numpy._core.multiarray", "_reconstruct"): _make_array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to outside objects, which no batch does")


def load_pickle(handle: Any, name: str) -> Any:
    """Read a pickle of lists, dictionaries, text, numbers and uint8 arrays; nothing in it runs.

    Args:
        handle: An open binary file.
        name: What messages call it.

    Returns:
        The content; Python 2 text becomes bytes.

    Raises:
        CertbenchError: The pickle is torn, or holds or calls anything else.
    """
    try:
        return _finish(_Unpickler(handle, encoding="bytes").load())
    # A hostile pickle can make the machine raise nearly anything; all of it means the same.
    except Exception as error:
        raise CertbenchError(
            f"is refused: {str(error) or type(error).__name__}",
            where=name,
            remedy="use the batches of the original archive, cifar-10-python.tar.gz",
        ) from error


def _finish(value: Any) -> Any:
    """Replace the stand-ins by arrays."""
    import numpy as np

    if isinstance(value, dict):
        return {_finish(key): _finish(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finish(entry) for entry in value]
    if isinstance(value, _Array):
        _, shape, type_, by_column, raw = value.state
        if not isinstance(type_, _Type) or type_.code not in ("u1", b"u1"):
            raise pickle.UnpicklingError("an array is not of type uint8")
        raw = raw if isinstance(raw, bytes) else bytes(raw, "latin-1")
        shape = tuple(int(side) for side in shape)
        if min(shape, default=0) < 0 or math.prod(shape) != len(raw):
            raise pickle.UnpicklingError("an array's shape does not fit its data")
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if by_column else "C")
    if isinstance(value, (bytes, str, int, float, bool, type(None))):
        return value
    raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")


CARD = Card(
    title="CIFAR-10",
    source=(
        "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, "
        "University of Toronto, 2009, https://www.cs.toronto.edu/~kriz/cifar.html"
    ),
    licence=(
        "No licence is stated; the authors ask to cite the report. A subset of the withdrawn "
        "80 Million Tiny Images, collected from web searches: the images belong to their owners"
    ),
    redistributable=False,
    synthetic=False,
    class_names=CLASSES,
    note="32x32 colour photographs, 50,000 for training and 10,000 for test, classes balanced.",
)
