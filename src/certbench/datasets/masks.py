"""Label maps: the class of every pixel of an image, uint8 [H, W] with 255 where there is none.

A dataset plug-in serves them with ``read_masks(params, rows)``: one for each index row, as large
as the image that ``read`` gives. The names of the classes stand on the card
(``mask_class_names``). Imports no numpy while planning.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from certbench.errors import CertbenchError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from PIL import Image

IGNORE = 255
"""Pixels of this value have no class: they count neither in training nor in any metric."""

_SHOWN = 10


def served(plugin: ModuleType, params: Any) -> bool:
    """Whether a dataset plug-in has label maps under these parameters.

    Args:
        plugin: The module. ``read_masks`` must be there; ``serves_masks(params)`` may deny it.
        params: Its parameters.
    """
    if not hasattr(plugin, "read_masks"):
        return False
    asked = getattr(plugin, "serves_masks", None)
    return asked is None or bool(asked(params))


def png(pixels: np.ndarray) -> bytes:
    """A label map, uint8 [H, W], or an image, uint8 [H, W, 3], as a PNG file."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def decode(source: bytes | Path, name: str) -> np.ndarray:
    """Decode a label map from an image file with one channel of at most 8 bits.

    Of a palette image the indices count, not the colours.

    Args:
        source: The bytes of an image file, or its path.
        name: What messages call it.

    Returns:
        uint8 [H, W].

    Raises:
        CertbenchError: No image, or not one channel of at most 8 bits.
    """
    import numpy as np
    from PIL import Image

    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        with Image.open(io.BytesIO(data)) as opened:
            if opened.mode in ("1", "L", "P"):
                return np.asarray(opened).astype(np.uint8)
            mode = opened.mode
    # Pillow's decoders raise whatever their format's parser raises on damaged bytes.
    except Exception as error:
        raise CertbenchError(f"its label map cannot be decoded ({error})", where=name) from error
    raise CertbenchError(
        f"its label map has mode {mode}",
        where=name,
        remedy="a label map has one channel of 8 bits: the class of each pixel, 255 for none",
    )


def check(mask: np.ndarray, classes: int, where: str, size: tuple[int, int] | None = None) -> None:
    """Refuse a label map that does not fit its classes or its image.

    Args:
        mask: The label map.
        classes: Number of classes.
        where: What messages call it.
        size: Height and width of its image, where known.

    Raises:
        CertbenchError: The map is no uint8 [H, W], has another size than its image, or values that
            are neither a class nor 255.
    """
    import numpy as np

    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise CertbenchError(
            f"its label map is {mask.dtype} {list(mask.shape)}",
            where=where,
            remedy="a label map is uint8 [H, W]",
        )
    if size is not None and mask.shape != tuple(size):
        raise CertbenchError(
            f"its label map is {mask.shape[0]}x{mask.shape[1]}, its image {size[0]}x{size[1]} "
            "(height x width)",
            where=where,
            remedy="image and label map must show the same pixels",
        )
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    outside = present[(present >= classes) & (present != IGNORE)]
    if outside.size:
        more = ", ..." if outside.size > _SHOWN else ""
        raise CertbenchError(
            f"its label map has values {', '.join(map(str, outside[:_SHOWN]))}{more} outside "
            f"0..{classes - 1} ({classes} classes; {IGNORE} is none)",
            where=where,
            remedy="correct the label maps, or the number of classes",
        )


def read(
    plugin: ModuleType,
    params: Any,
    rows: pa.Table,
    classes: int,
    pictures: Sequence[Image.Image] | None = None,
) -> list[np.ndarray]:
    """The checked label maps of index rows, in order.

    Args:
        plugin: The dataset plug-in.
        params: Its parameters.
        rows: Index rows.
        classes: Number of classes of the maps.
        pictures: Their images, as ``plugin.read`` gave them, to compare sizes with.

    Raises:
        CertbenchError: As :func:`check`, or the plug-in returned another number of maps.
    """
    ids = rows.column("item_id").to_pylist()
    found = plugin.read_masks(params, rows)
    if len(found) != len(ids):
        raise CertbenchError(f"the plug-in returned {len(found)} label maps for {len(ids)} rows")
    for i, (mask, item_id) in enumerate(zip(found, ids, strict=True)):
        size = None if pictures is None else (pictures[i].height, pictures[i].width)
        check(mask, classes, item_id, size)
    return found


def read_embedded(rows: pa.Table) -> list[np.ndarray]:
    """Decode the label maps that the index itself holds (``index.table(mask=...)``)."""
    pairs = zip(rows.column("item_id").to_pylist(), rows.column("mask").to_pylist(), strict=True)
    return [decode(data, item_id) for item_id, data in pairs]
