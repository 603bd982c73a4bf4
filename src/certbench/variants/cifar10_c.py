"""The published CIFAR-10-C arrays as a variant step (Hendrycks and Dietterich, ICLR 2019).

One array for each type holds the test split five times, once for each severity. CIFAR-100-C has the
same layout. Items are matched by their place in the test split, and labels are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from certbench.corruptions.severity import BENCHMARK_15, EXTRA_4
from certbench.errors import CertbenchError
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np

    from certbench.variants.protocol import Source

version = 1

needs = ("source",)

replaces = True

_SEVERITIES = 5


@dataclass(frozen=True)
class Params:
    """Where the arrays are, and which."""

    root: str = param(help="folder with <type>.npy and labels.npy")
    corruption: str = param(help="type of corruption", choices=(*BENCHMARK_15, *EXTRA_4))
    severity: int = param(help="strength", minimum=1, maximum=5)
    items: int = param(10_000, help="images of the test split: rows of a severity", minimum=1)


def slug(params: Params) -> str:
    """A readable name."""
    return f"{params.corruption}-{params.severity}-cifar10_c"


def check(params: Params, source: Source) -> None:
    """Refuse missing or other arrays, items and labels before any model is loaded.

    Raises:
        CertbenchError: As :func:`apply`.
    """
    path, array = _array(params)
    _rows(params, source)
    if source.view.size:
        _check_size(path, array.shape[1:], (*source.view.size, 3))


def apply(
    params: Params,
    images: np.ndarray,
    item_ids: list[str],
    seed: int,
    dataset: str,
    *,
    source: Source,
) -> np.ndarray:
    """The published image of every item: uint8 [N, H, W, 3], of the view's size.

    Raises:
        CertbenchError: An array is missing, no array of five severities, or of another image size;
            an item is not of the test split; or a label differs.
    """
    import numpy as np

    path, array = _array(params)
    _check_size(path, array.shape[1:], images.shape[1:])
    return np.ascontiguousarray(array[_rows(params, source)])


def _array(params: Params) -> tuple[Path, np.ndarray]:
    """The array of the type, uint8 [5 items, H, W, 3], left on the disk."""
    path = Path(params.root).expanduser() / f"{params.corruption}.npy"
    array = _load(path)
    rows = _SEVERITIES * params.items
    if array.dtype.name != "uint8" or array.ndim != 4 or array.shape[3] != 3 or len(array) != rows:
        raise CertbenchError(
            f"is {array.dtype} {list(array.shape)}, not uint8 [{rows}, height, width, 3]",
            where=str(path),
            remedy="unpack the published archive again; a set of another size states its items",
        )
    return path, array


def _load(path: Path) -> np.ndarray:
    import numpy as np

    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        there = sorted(one.stem for one in path.parent.glob("*.npy"))
        raise CertbenchError(
            f"there is no file {path}",
            where="root",
            remedy=f"unpack it there, or leave it out; the folder has {', '.join(there) or 'none'}",
        ) from error
    except (OSError, ValueError, EOFError) as error:
        raise CertbenchError(
            f"is no NumPy array, or torn ({error})",
            where=str(path),
            remedy="unpack the published archive again",
        ) from error


def _check_size(path: Path, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if tuple(found) != tuple(wanted):
        raise CertbenchError(
            f"holds images of {found[0]}x{found[1]}, and the view gives {wanted[0]}x{wanted[1]} "
            "(height x width)",
            where=str(path),
            remedy=f"use view native{found[0]}" if found[0] == found[1] else "use view native",
        )


def _rows(params: Params, source: Source) -> np.ndarray:
    """Row of every item in the array of its severity, once items and labels fit."""
    import numpy as np

    ids = source.rows.column("item_id").to_pylist()
    splits = source.rows.column("split").to_pylist()
    places = np.array(source.rows.column("item_index").to_pylist(), np.int64)
    for item_id, split, place in zip(ids, splits, places.tolist(), strict=True):
        if "test" not in (item_id.split("/")[0], split) or place >= params.items:
            raise CertbenchError(
                f"item '{item_id}' of split '{split}' is none of the {params.items} test images "
                "that the published arrays show",
                where="variant step cifar10_c",
                remedy="use split test of the original order",
            )
    rows = places + (params.severity - 1) * params.items
    path = Path(params.root).expanduser() / "labels.npy"
    labels = _load(path)
    if labels.shape != (_SEVERITIES * params.items,) or labels.dtype.kind not in "iu":
        raise CertbenchError(
            f"is {labels.dtype} {list(labels.shape)}, not [{_SEVERITIES * params.items}] integers",
            where=str(path),
            remedy="unpack the published archive again",
        )
    own = source.rows.column("label").to_pylist()
    wrong = [
        f"{item_id} is {label}, there {int(labels[row])}"
        for item_id, label, row in zip(ids, own, rows.tolist(), strict=True)
        if label is not None and int(labels[row]) != label
    ]
    if wrong:
        raise CertbenchError(
            f"{len(wrong)} of {len(ids)} labels differ from the dataset's: {', '.join(wrong[:5])}",
            where=str(path),
            remedy="the dataset's test split must have the order of the original one",
        )
    return rows
