"""What attacks leave: accuracy of the bare or defended model under each attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.params import param

if TYPE_CHECKING:
    import pandas as pd

version = 1

rows = "attacks"


@dataclass(frozen=True)
class Params:
    """How intervals are made."""

    confidence: float = param(0.95, help="level of the interval", above=0, below=1)


def compute(group: pd.DataFrame, params: Params, context: Any) -> list[dict[str, Any]]:
    """Two readings of robust accuracy for one attack on one defended model.

    ``robust_accuracy`` counts an abstention as a failure of the defence (it matches certified
    accuracy); ``not_fooled`` counts it as safe: only a wrong answer is a failure. Clean errors
    count as broken in the first, and the denominator is always all items.
    """
    from certbench.metrics.tabulating import share

    survived = group["status"] == "survived"
    clean_ok = group["status"] != "clean_error"
    fooled = (group["adv_pred"] != group["label"]) & (group["adv_pred"] != -1)
    return [
        share("robust_accuracy", survived, params.confidence),
        share("not_fooled", ~fooled, params.confidence),
        share("attacked_clean_accuracy", clean_ok, params.confidence),
    ]
