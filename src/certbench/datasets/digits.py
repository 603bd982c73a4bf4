"""Handwritten digits: the 1,797 real 8x8 images that scikit-learn ships. Nothing to download.

The images are kept in the index itself, so later jobs do not import scikit-learn.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.datasets import images, sampling
from certbench.datasets.card import Card
from certbench.errors import CertbenchError
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from PIL import Image

version = 1

ITEMS = 1797
LEVELS = 16


@dataclass(frozen=True)
class Params:
    """How many digits each split gets; together at most 1,797."""

    train: int = param(1097, help="items of split train", minimum=0, maximum=ITEMS)
    calibration: int = param(100, help="items of split calibration", minimum=0, maximum=ITEMS)
    val: int = param(100, help="items of split val", minimum=0, maximum=ITEMS)
    test: int = param(500, help="items of split test", minimum=0, maximum=ITEMS)

    def __post_init__(self) -> None:
        total = self.train + self.calibration + self.val + self.test
        if total > ITEMS:
            raise CertbenchError(
                f"train {self.train}, calibration {self.calibration}, val {self.val} and test "
                f"{self.test} are {total} items, and there are {ITEMS}",
                where="digits",
                remedy="make the splits smaller",
            )


def splits(params: Params) -> dict[str, int | None]:
    """Number of items of each split."""
    sizes = {
        "train": params.train,
        "calibration": params.calibration,
        "val": params.val,
        "test": params.test,
    }
    return {name: size for name, size in sizes.items() if size > 0}


def prepare(
    params: Params, splits: Sequence[str], seed: int, tick: Callable[[int, int], None]
) -> tuple[pa.Table, Card]:
    """The digits of some splits, each an 8x8 grey PNG of round(255 v / 16) in the index.

    The splits are disjoint and stratified; the test split does not depend on the other sizes.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    from certbench.datasets import index

    source = load_digits()
    grey = np.rint(source.images * (255 / LEVELS)).astype(np.uint8)
    labels = source.target.tolist()
    ids = [f"digits/{i:06d}" for i in range(len(labels))]
    sizes = {"test": params.test, "val": params.val, "calibration": params.calibration}
    rest = "train"
    if params.train + sum(sizes.values()) < ITEMS:
        sizes["train"] = params.train
        rest = "unused"
    belongs = sampling.carve(ids, labels, sizes, rest, seed, where="digits")
    keep = [i for i, split in enumerate(belongs) if split in splits]
    encoded = []
    for done, i in enumerate(keep, start=1):
        encoded.append(_png(grey[i]))
        tick(done, len(keep))
    items = index.table(
        item_id=[ids[i] for i in keep],
        item_index=keep,
        split=[belongs[i] for i in keep],
        label=[labels[i] for i in keep],
        image=encoded,
    )
    return items, CARD


def read(params: Params, rows: pa.Table) -> list[Image.Image]:
    """Decode the digits of index rows, in order, as 8x8 RGB images."""
    return images.decode_rows(rows)


def _png(grey: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, format="PNG")
    return stream.getvalue()


CARD = Card(
    title="Handwritten digits (scikit-learn)",
    source=(
        "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine "
        "Learning Repository, 1998, https://doi.org/10.24432/C50P49; test part, as shipped with "
        "scikit-learn (sklearn.datasets.load_digits)"
    ),
    licence="CC BY 4.0 (as stated by the UCI Machine Learning Repository)",
    redistributable=True,
    synthetic=False,
    class_names=tuple("0123456789"),
    note=(
        "Real handwriting by 13 people, scanned with preprocessing programs of NIST and reduced to "
        "8x8 pixels with 17 grey levels. The splits are drawn at random, so the same writers are "
        "in all of them."
    ),
)
