"""Metrics: plug-ins that make numbers of rows, and the functions that they share.

``certified_accuracy`` and ``average_certified_radius`` are here for notebooks.
"""

from __future__ import annotations

from typing import Any

__all__ = ["average_certified_radius", "certified_accuracy"]


def __getattr__(name: str) -> Any:
    """Import the named function on first use: planning reads this package without numpy."""
    if name in __all__:
        from certbench.metrics import certification

        return getattr(certification, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
