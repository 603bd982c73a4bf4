"""Depth predicted from one image by a network on the disk, for the 3D corruptions.

Two forms are read: a file (float32 [1, 3, h, w] in, inverse depth [1, h, w] or [1, 1, h, w] out,
as MiDaS and DPT are exported), TorchScript or, with suffix ``.pt2``, of ``torch.export``; and a
Hugging Face folder of a depth-estimation model whose output is inverse (DPT, Depth Anything), where
``transformers`` is installed.

Predictions of inverse depth are known up to scale and shift. MiDaS and DPT write them as 16-bit
maps stretched to the full range within each image, and the published 3D corruptions read such maps
(Kar et al., CVPR 2022); so predictions are stretched likewise, and then converted by
:func:`certbench.corruptions.three_d_depth.from_inverse`.

Every image is predicted alone, in float32, on one thread of the CPU: its depth depends on nothing
but the image and the checkpoint.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.corruptions.three_d_depth import from_inverse
from certbench.errors import CertbenchError

if TYPE_CHECKING:
    import torch

FULL_RANGE = 65535.0
"""Largest value of a stretched map."""

_MULTIPLE = 32
_WEIGHTS = "model.safetensors"

# Families of transformers whose models predict inverse depth, unless their configuration says that
# they were tuned to metres.
_INVERSE = ("dpt", "depth_anything")


@dataclass(frozen=True)
class Checkpoint:
    """A network that predicts inverse depth.

    Attributes:
        path: A TorchScript or exported file, or a Hugging Face folder.
        sha256: Of the file, or of ``model.safetensors`` in the folder.
        size: Side that a network from a file works at, see :func:`network_size`; None for the
            image's own.
        mean: Per channel, subtracted from pixels in [0, 1] (a folder has its own).
        std: Per channel, that the rest is divided by.
        stretch: Whether predictions are stretched to 0..65535 within each image.
    """

    path: str
    sha256: str
    size: int | None = 384
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    stretch: bool = True


def check(checkpoint: Checkpoint) -> Path:
    """Refuse a checkpoint that is missing or another than stated.

    Returns:
        The file with the weights.

    Raises:
        CertbenchError: No such file or folder, another SHA-256, or a folder without transformers.
    """
    from certbench.models.download import sha256_file

    place = Path(checkpoint.path).expanduser()
    weights = place / _WEIGHTS if place.is_dir() else place
    if not weights.is_file():
        raise CertbenchError(
            f"there is no file {weights}",
            where="depth_model",
            remedy=f"name a TorchScript or exported file, or a Hugging Face folder with {_WEIGHTS}",
        )
    if place.is_dir():
        _transformers()
    status = weights.stat()
    found = _sha256_once(str(weights), status.st_mtime_ns, status.st_size, sha256_file)
    if found != checkpoint.sha256.lower():
        raise CertbenchError(
            f"{weights} has SHA-256 {found}, not {checkpoint.sha256}",
            where="depth_sha256",
            remedy="get the checkpoint that is meant, or state this one's digest",
        )
    return weights


def predict(checkpoint: Checkpoint, image: np.ndarray) -> np.ndarray:
    """Relative depth of one image.

    Args:
        checkpoint: The network.
        image: uint8 [H, W, 3].

    Returns:
        float32 [H, W], at most 0.5; NaN where the network predicted NaN or, without ``stretch``, a
        negative value.

    Raises:
        CertbenchError: The checkpoint is refused, cannot be loaded, or its output is no depth map.
    """
    weights = check(checkpoint)
    status = weights.stat()
    network = _network(checkpoint, status.st_mtime_ns, status.st_size)
    with _one_thread():
        inverse = network(image)
    if inverse.shape != image.shape[:2]:
        inverse = _resized(inverse, image.shape[0], image.shape[1])
    return from_inverse(stretched(inverse) if checkpoint.stretch else inverse)


def stretched(inverse: np.ndarray) -> np.ndarray:
    """A prediction stretched to 0..65535; a constant one becomes 0, the farthest.

    Args:
        inverse: float32 [H, W]; NaN stays.
    """
    finite = inverse[np.isfinite(inverse)]
    if not finite.size or finite.max() - finite.min() <= np.finfo(np.float32).eps:
        return np.where(np.isfinite(inverse), np.float32(0), np.float32(np.nan))
    low, high = finite.min(), finite.max()
    return ((inverse - low) / (high - low) * np.float32(FULL_RANGE)).astype(np.float32)


def network_size(height: int, width: int, size: int | None) -> tuple[int, int]:
    """Height and width that a network sees an image at, as in MiDaS's method "minimal".

    The image is scaled by whichever of ``size / height`` and ``size / width`` changes it less, and
    both sides are rounded to multiples of 32.

    Args:
        height: Of the image.
        width: Of the image.
        size: The side; None keeps the image's size, rounded.
    """
    scale = 1.0
    if size is not None:
        scale = min(size / height, size / width, key=lambda one: abs(1 - one))
    rounded = [max(1, round(side * scale / _MULTIPLE)) * _MULTIPLE for side in (height, width)]
    return rounded[0], rounded[1]


@lru_cache(maxsize=2)
def _network(checkpoint: Checkpoint, changed: int, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """From an image to inverse depth, float32 [h, w]; the stamp tells a changed file."""
    if Path(checkpoint.path).expanduser().is_dir():
        return _from_folder(checkpoint)
    return _from_file(checkpoint)


def _from_file(checkpoint: Checkpoint) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    path = Path(checkpoint.path).expanduser()
    try:
        with warnings.catch_warnings():
            # TorchScript is deprecated, and what depth networks are published as.
            warnings.simplefilter("ignore", FutureWarning)
            if path.suffix == ".pt2":
                network: Any = torch.export.load(str(path)).module()
            else:
                network = torch.jit.load(str(path), map_location="cpu").eval().float()
    except Exception as error:  # the loaders raise whatever their parsers raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CertbenchError(
            f"cannot be loaded as a network ({lines[0]})",
            where=str(path),
            remedy="save it with torch.jit.script (or trace) and .save(FILE), or with "
            "torch.export.save as .pt2",
        ) from error
    mean = torch.tensor(checkpoint.mean).view(1, 3, 1, 1)
    std = torch.tensor(checkpoint.std).view(1, 3, 1, 1)

    def inverse(image: np.ndarray) -> np.ndarray:
        height, width = network_size(image.shape[0], image.shape[1], checkpoint.size)
        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        x = torch.nn.functional.interpolate(x, (height, width), mode="bicubic", align_corners=False)
        with torch.inference_mode():
            return _map(network((x - mean) / std), str(path))

    return inverse


def _from_folder(checkpoint: Checkpoint) -> Callable[[np.ndarray], np.ndarray]:
    import torch
    from PIL import Image

    transformers = _transformers()
    path = str(Path(checkpoint.path).expanduser())
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(path, local_files_only=True)
        network = transformers.AutoModelForDepthEstimation.from_pretrained(
            path, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
    except (OSError, ValueError, KeyError) as error:
        raise CertbenchError(
            f"is no folder of a depth-estimation model ({str(error).strip().splitlines()[0]})",
            where=path,
            remedy="it needs config.json, preprocessor_config.json and model.safetensors",
        ) from error
    family = network.config.model_type
    metric = getattr(network.config, "depth_estimation_type", "relative") == "metric"
    if family not in _INVERSE or metric:
        raise CertbenchError(
            f"is a model of type {family}{' tuned to metres' if metric else ''}, whose output is "
            "not inverse depth",
            where=path,
            remedy=f"use a relative model of type {' or '.join(_INVERSE)}",
        )

    def inverse(image: np.ndarray) -> np.ndarray:
        given = processor(images=Image.fromarray(image), return_tensors="pt")
        with torch.inference_mode():
            return _map(network(**given).predicted_depth, path)

    return inverse


def _map(output: Any, where: str) -> np.ndarray:
    """A network's output as float32 [h, w]."""
    import torch

    while isinstance(output, (tuple, list)) and len(output) == 1:
        (output,) = output
    shape = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if isinstance(shape, str) or len(shape) not in (3, 4) or any(n != 1 for n in shape[:-2]):
        raise CertbenchError(
            f"gave {shape} for one image, not a depth map",
            where=where,
            remedy="the network must return inverse depth, [1, h, w] or [1, 1, h, w]",
        )
    return output.detach().float().reshape(shape[-2:]).numpy()


def _resized(inverse: np.ndarray, height: int, width: int) -> np.ndarray:
    import torch

    whole: torch.Tensor = torch.from_numpy(inverse)[None, None]
    made = torch.nn.functional.interpolate(
        whole, (height, width), mode="bilinear", align_corners=False
    )
    return made[0, 0].numpy()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise CertbenchError(
            "is a Hugging Face folder, and transformers is not installed",
            where="depth_model",
            remedy="pip install transformers, or name a file",
        ) from error
    return transformers


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are split over threads: their number may change the last bits of a prediction."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=8)
def _sha256_once(path: str, changed: int, size: int, digest: Callable[[str], str]) -> str:
    return digest(path)
