"""The gap between what is certified and what attacks could not break, on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.params import param

if TYPE_CHECKING:
    import pandas as pd

version = 2

rows = "audit"


@dataclass(frozen=True)
class Params:
    """How the interval of the gap is made."""

    resamples: int = param(10_000, help="bootstrap resamples of images", minimum=100)
    confidence: float = param(0.95, help="level of the intervals", above=0, below=1)
    seed: int = param(0, help="seed of the resampling", minimum=0)


def compute(group: pd.DataFrame, params: Params, context: Any) -> list[dict[str, Any]]:
    """Proven, refuted, unknown and violations at the attack's budget, and the gap.

    Certified accuracy C = proven / n, empirical accuracy E = (proven + unknown) / n; the truth lies
    between. The interval of E - C resamples images in pairs (percentile bootstrap).

    An attack outside the certificate's threat model is compared with nothing: the only row is then
    ``outside_threat_model``, the share of images that the certificate does not speak of.
    """
    from certbench.metrics.tabulating import share, value

    verdict = group["verdict"].to_numpy()
    if (verdict == "outside").any():
        return [share("outside_threat_model", verdict == "outside", params.confidence)]
    made = [
        share(name, verdict == name, params.confidence)
        for name in ("proven", "refuted", "unknown", "violation")
    ]
    n = len(verdict)
    if not n:
        return made
    unknown = (verdict == "unknown").astype(np.float64)
    generator = np.random.default_rng(params.seed)
    # Resampling n images with replacement: the number of unknown ones is binomial.
    draws = generator.binomial(n, unknown.mean(), params.resamples) / n
    tail = (1 - params.confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    row = value("gap", float(unknown.mean()), n)
    made.append({**row, "low": float(low), "high": float(high)})
    open_ = (verdict == "unknown") | (verdict == "refuted")
    if open_.any():
        made.append(value("unsettled_share", float((verdict[open_] == "unknown").mean()), n))
    return made
