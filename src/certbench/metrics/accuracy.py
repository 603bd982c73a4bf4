"""Clean accuracy of the bare model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.params import param

if TYPE_CHECKING:
    import pandas as pd

version = 1

rows = "predictions"


@dataclass(frozen=True)
class Params:
    """How intervals are made."""

    confidence: float = param(0.95, help="level of the interval", above=0, below=1)


def compute(group: pd.DataFrame, params: Params, context: Any) -> list[dict[str, Any]]:
    """Accuracy with an exact binomial interval."""
    from certbench.metrics.tabulating import share

    return [share("accuracy", group["correct"], params.confidence)]
