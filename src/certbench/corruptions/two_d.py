"""2D common corruptions of 8-bit images: one image, or a batch with reproducible seeds.

A corrupted image is a function of its pixels, the type, the severity, the severity table and one
32-bit seed, which :func:`image_seed` derives from the run's seed and the image's identity. Results
are therefore the same for any order, batch, shard or number of workers.

Sources: Hendrycks and Dietterich, ICLR 2019; Michaelis et al. 2019, arXiv 1907.07484.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from certbench.corruptions import severity as tables
from certbench.corruptions.imagecorruptions_adapter import VERSION, package
from certbench.errors import CertbenchError

MODULES = {
    "gaussian_noise": "two_d_noise",
    "shot_noise": "two_d_noise",
    "impulse_noise": "two_d_noise",
    "speckle_noise": "two_d_noise",
    "gaussian_blur": "two_d_blur",
    "glass_blur": "two_d_blur",
    "defocus_blur": "two_d_blur",
    "motion_blur": "two_d_blur",
    "zoom_blur": "two_d_blur",
    "snow": "two_d_weather",
    "frost": "two_d_weather",
    "fog": "two_d_weather",
    "spatter": "two_d_weather",
    "brightness": "two_d_digital",
    "contrast": "two_d_digital",
    "elastic_transform": "two_d_digital",
    "elastic_transform_imagenet_c": "two_d_digital",
    "pixelate": "two_d_digital",
    "jpeg_compression": "two_d_digital",
    "saturate": "two_d_digital",
}

# Own code also under the table ``imagenet``: where the package cannot be seeded (impulse), is
# several times slower (glass, motion, zoom, frost, brightness, saturate, elastic_transform),
# divides by zero (spatter), wants another kind of image (pixelate, jpeg_compression), or has no
# such recipe (elastic_transform_imagenet_c). All but impulse are bit-equal to the package.
_OWN = frozenset(
    {
        "impulse_noise",
        "glass_blur",
        "motion_blur",
        "zoom_blur",
        "brightness",
        "saturate",
        "frost",
        "spatter",
        "elastic_transform",
        "elastic_transform_imagenet_c",
        "pixelate",
        "jpeg_compression",
    }
)

MIN_SIZE = 32


def image_seed(
    seed: int, dataset: str, item_id: str, corruption: str, severity: int, severity_table: str
) -> int:
    """The 32-bit seed of one corrupted image.

    Args:
        seed: Seed of the run.
        dataset: Name of the dataset.
        item_id: Identity of the image within the dataset.
        corruption: Type, one of :data:`~certbench.corruptions.severity.NAMES`.
        severity: 1 to 5.
        severity_table: Name of the table.

    Returns:
        The first four bytes of the SHA-256 of the arguments (as a JSON list), big-endian.
    """
    return int.from_bytes(
        identity_digest(seed, dataset, item_id, corruption, severity, severity_table)[:4], "big"
    )


def identity_digest(
    seed: int, dataset: str, item_id: str, corruption: str, severity: int, severity_table: str
) -> bytes:
    """SHA-256 of the identity of one corrupted image, the arguments of :func:`image_seed`."""
    key = json.dumps(
        [int(seed), dataset, item_id, corruption, int(severity), severity_table],
        separators=(",", ":"),
    )
    return hashlib.sha256(key.encode()).digest()


def engine(corruption: str, severity_table: str) -> str:
    """Whose code makes a type: ``certbench``, or the package with its version."""
    tables.check(corruption, 1, severity_table)
    if severity_table == "imagenet" and corruption not in _OWN:
        return f"imagecorruptions {VERSION}"
    return "certbench"


def corrupt(
    image: np.ndarray, corruption: str, severity: int, severity_table: str, seed: int
) -> np.ndarray:
    """Corrupt one image.

    Args:
        image: uint8 [H, W, 3], or grey [H, W] or [H, W, 1] (stacked to three channels); both sides
            at least 32 pixels.
        corruption: Type, one of :data:`~certbench.corruptions.severity.NAMES`.
        severity: 1 (mild) to 5 (severe).
        severity_table: Whose parameters: ``imagenet`` (224 pixels), ``imagenet299``, ``tiny64``,
            ``cifar32``. Never guessed from the size.
        seed: 0 to 2**32 - 1; deterministic types ignore it.

    Returns:
        uint8 [H, W, 3], a new array.

    Raises:
        CertbenchError: Unknown type, table or severity, or not such an image.
    """
    tables.check(corruption, severity, severity_table)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise CertbenchError(
            f"seed is {seed}",
            where=f"corruption {corruption}",
            remedy="expected an integer from 0 to 2**32 - 1 (image_seed makes one)",
        )
    image = _rgb(image, f"corruption {corruption}")
    return _apply(image, corruption, int(severity), severity_table, int(seed))


def corrupt_batch(
    images: np.ndarray,
    item_ids: Sequence[str],
    corruption: str,
    severity: int,
    severity_table: str,
    seed: int,
    dataset: str,
) -> np.ndarray:
    """Corrupt a batch; each image's randomness depends on its identity, not on the batch.

    Args:
        images: uint8 [N, H, W, 3] or [N, H, W, 1].
        item_ids: N identities.
        corruption: Type, one of :data:`~certbench.corruptions.severity.NAMES`.
        severity: 1 (mild) to 5 (severe).
        severity_table: Whose parameters; see :func:`corrupt`.
        seed: Seed of the run.
        dataset: Name of the dataset.

    Returns:
        uint8 [N, H, W, 3].

    One core suffices: run shards in parallel processes, each after ``cv2.setNumThreads(1)``, which
    changes the speed and not the result.

    Raises:
        CertbenchError: Unknown type, table or severity, not such images, or not N identities.
    """
    tables.check(corruption, severity, severity_table)
    where = f"corruption {corruption}"
    if not isinstance(images, np.ndarray) or images.ndim != 4:
        raise CertbenchError(
            f"images are {_describe(images)}",
            where=where,
            remedy="pass a NumPy array of uint8 values [N, H, W, 3]",
        )
    if len(item_ids) != len(images):
        raise CertbenchError(
            f"{len(item_ids)} item ids for {len(images)} images",
            where=where,
            remedy="pass one id per image",
        )
    for item_id in item_ids:
        if not isinstance(item_id, str):
            raise CertbenchError(
                f"item id {item_id!r} is not text",
                where=where,
                remedy="pass ids as str, so that 7 and '7' cannot give two results",
            )
    if not len(images):
        return np.empty((0, *images.shape[1:3], 3), dtype=np.uint8)
    _rgb(images[0], where)
    out = np.empty((*images.shape[:3], 3), dtype=np.uint8)
    for i, item_id in enumerate(item_ids):
        own_seed = image_seed(seed, dataset, item_id, corruption, severity, severity_table)
        out[i] = _apply(_rgb(images[i], where), corruption, int(severity), severity_table, own_seed)
    return out


@cache
def _function(corruption: str) -> Callable[..., np.ndarray]:
    """Own code of a type; what it needs is imported when it is first used."""
    module = importlib.import_module(f"certbench.corruptions.{MODULES[corruption]}")
    return getattr(module, corruption)


def _apply(
    image: np.ndarray, corruption: str, severity: int, severity_table: str, seed: int
) -> np.ndarray:
    rng = None if corruption in tables.DETERMINISTIC else np.random.RandomState(seed)
    if severity_table == "imagenet" and corruption not in _OWN:
        return getattr(package(rng), corruption)(image, severity).astype(np.uint8)
    entry = tables.TABLES[severity_table][corruption][severity - 1]
    if corruption == "elastic_transform" and severity_table != "imagenet":
        # The package has no recipe for other sizes; that of the published files is the only one.
        corruption = "elastic_transform_imagenet_c"
    return _function(corruption)(image, entry, rng)


def _rgb(image: Any, where: str) -> np.ndarray:
    """The image with three channels, or a message that says what it should have been."""
    if not isinstance(image, np.ndarray):
        raise CertbenchError(
            f"the image is {_describe(image)}",
            where=where,
            remedy="pass a NumPy array of uint8 values [H, W, 3]",
        )
    if image.dtype != np.uint8:
        raise CertbenchError(
            f"the image has dtype {image.dtype}",
            where=where,
            remedy="pass uint8 values; quantise a float image first, on purpose",
        )
    shape = image.shape
    if len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3):
        raise CertbenchError(
            f"the image has shape {shape}, channels first",
            where=where,
            remedy="pass [H, W, 3]: image.transpose(1, 2, 0)",
        )
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)):
        raise CertbenchError(
            f"the image has shape {shape}",
            where=where,
            remedy="pass [H, W, 3], [H, W, 1] or [H, W]",
        )
    if min(shape[:2]) < MIN_SIZE:
        raise CertbenchError(
            f"the image has {shape[0]} x {shape[1]} pixels",
            where=where,
            remedy=f"both sides must have at least {MIN_SIZE} pixels; resize it first",
        )
    if len(shape) == 2:
        return np.stack((image,) * 3, axis=-1)
    if shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image)


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")
