"""Corruptions of images: weather, noise, blur and digital artefacts.

The names below are imported when first used, so that ``import certbench.corruptions`` costs
nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "NAMES": "severity",
    "BENCHMARK_15": "severity",
    "EXTRA_4": "severity",
    "GROUPS": "severity",
    "DETERMINISTIC": "severity",
    "SEVERITIES": "severity",
    "SEVERITY_TABLES": "severity",
    "corrupt": "two_d",
    "corrupt_batch": "two_d",
    "image_seed": "two_d",
    "engine": "two_d",
    "corrupt_torch": "torch_two_d",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
