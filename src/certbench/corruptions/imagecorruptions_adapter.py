"""A private, repaired instance of the package imagecorruptions 1.1.2.

The package (Michaelis et al. 2019, arXiv 1907.07484; github.com/bethgelab/imagecorruptions) is the
reference engine for ImageNet-size images. Its last release is from 2020: it imports
``pkg_resources`` (gone from setuptools 81 on) and ``scipy.ndimage.interpolation`` (to go with
SciPy 2), calls scikit-image with a keyword and NumPy with a type that no longer exist, prints on
stdout, and takes random numbers from NumPy's global state only.

Instead of patching modules that other code shares, :func:`package` runs the package's source file
once more, under builtins of its own: its imports resolve to the stand-ins below and its
``np.random`` is the generator handed in by the caller. The module ``imagecorruptions`` itself,
``sys.modules``, NumPy, and NumPy's global random state stay as they are; a second call finds the
instance made.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.metadata
import os
import threading
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from certbench.errors import CertbenchError

DISTRIBUTION = "imagecorruptions"
VERSION = "1.1.2"
FORK = "imagecorruptions-imaug"

_REMEDY = f"pip install --no-deps {DISTRIBUTION}=={VERSION}"
_IN_USE = threading.local()


def package(rng: np.random.RandomState | None = None) -> ModuleType:
    """The repaired package, its functions drawing from ``rng`` in this thread from now on.

    Args:
        rng: Generator that stands in for NumPy's global one; None for functions that draw nothing.

    Returns:
        A module with the package's functions and helpers (not in ``sys.modules``).

    Raises:
        CertbenchError: The package is missing, has another version, or is its fork.
    """
    _IN_USE.rng = rng
    return _load()


@cache
def source_file() -> Path:
    """The package's ``corruptions.py``, found through its metadata, without importing it.

    Raises:
        CertbenchError: The package is missing, has another version, or is its fork.
    """
    if _version(FORK) is not None:
        raise CertbenchError(
            f"'{FORK}' is installed, which overwrites '{DISTRIBUTION}' and draws frost from six "
            "photographs instead of five",
            where="environment",
            remedy=f"pip uninstall {FORK}, then {_REMEDY} --force-reinstall",
        )
    version = _version(DISTRIBUTION)
    if version != VERSION:
        found = f"version {version} is installed" if version else "it is not installed"
        raise CertbenchError(
            f"corruptions need '{DISTRIBUTION}' {VERSION}, but {found}",
            where="environment",
            remedy=_REMEDY,
        )
    located = importlib.metadata.distribution(DISTRIBUTION).locate_file("")
    path = Path(str(located)) / DISTRIBUTION / "corruptions.py"
    if not path.is_file():
        raise CertbenchError("the package's source is missing", where=str(path), remedy=_REMEDY)
    return path


def frost_photographs() -> tuple[Path, ...]:
    """The five photographs that the package draws frost from (a sixth is shipped, never drawn)."""
    folder = source_file().parent / "frost"
    names = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
    return tuple(folder / name for name in names)


def gaussian(
    image: np.ndarray,
    sigma: Any = 1,
    mode: str = "nearest",
    truncate: float = 4.0,
    multichannel: bool = False,
) -> np.ndarray:
    """Gaussian filter with scikit-image's defaults, for float images.

    Args:
        image: Float array [H, W] or [H, W, 3].
        sigma: Standard deviation in pixels, or one for each of the two axes.
        mode: Edge rule, in SciPy's words.
        truncate: Radius of the filter in standard deviations.
        multichannel: Whether the last axis holds channels, which are filtered one by one.
    """
    from scipy import ndimage

    spatial = image.ndim - 1 if multichannel else image.ndim
    sigmas = list(np.broadcast_to(np.asarray(sigma, dtype=float), (spatial,)))
    if multichannel:
        sigmas.append(0.0)
    output = np.empty_like(image)
    ndimage.gaussian_filter(image, sigmas, output=output, mode=mode, truncate=truncate)
    return output


@cache
def _load() -> ModuleType:
    path = source_file()
    module = ModuleType("certbench.corruptions.imagecorruptions_1_1_2")
    module.__file__ = str(path)
    own = dict(vars(builtins))
    own["__import__"] = _import
    own["print"] = _silent
    vars(module)["__builtins__"] = own
    exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    return module


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _silent(*_values: object, **_options: object) -> None:
    """Stands in for ``print`` (the package reports its fallbacks for small images on stdout)."""


class _Lazy:
    """A module that is imported when something in it is first asked for."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, value)
        return value


class _Numpy(_Lazy):
    """NumPy as of 2020: with ``float_``, and with the caller's generator as ``random``."""

    float_ = np.float64

    def __init__(self):
        super().__init__("numpy")

    @property
    def random(self) -> np.random.RandomState:
        rng = getattr(_IN_USE, "rng", None)
        if rng is None:
            raise RuntimeError("a function that draws random numbers was given no generator")
        return rng


def _deferred(module: str, name: str) -> Any:
    """A function of ``module``, imported at its first call."""
    lazy = _Lazy(module)

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(lazy, name)(*args, **kwargs)

    return call


def _resource_filename(_package: str, name: str) -> str:
    return os.path.normpath(source_file().parent / name)


_STANDINS: dict[str, Any] = {
    "numpy": _Numpy(),
    "skimage": _Lazy("skimage"),
    "skimage.filters": SimpleNamespace(gaussian=gaussian),
    "cv2": _Lazy("cv2"),
    "scipy.ndimage": SimpleNamespace(zoom=_deferred("scipy.ndimage", "zoom")),
    "scipy.ndimage.interpolation": SimpleNamespace(
        map_coordinates=_deferred("scipy.ndimage", "map_coordinates")
    ),
    "pkg_resources": SimpleNamespace(resource_filename=_resource_filename),
}


def _import(
    name: str,
    globals: dict | None = None,
    locals: dict | None = None,
    fromlist: tuple | None = (),
    level: int = 0,
) -> Any:
    """Import for the package's source file: the stand-ins first, then the real thing."""
    if level == 0 and name in _STANDINS:
        return _STANDINS[name]
    return builtins.__import__(name, globals, locals, fromlist or (), level)
