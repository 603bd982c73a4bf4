"""What a certificate is worth: certified accuracy over radius, ACR, abstentions, pA quantiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.params import param

if TYPE_CHECKING:
    import pandas as pd

    from certbench.threat import Threat

version = 4

rows = "certificates"


@dataclass(frozen=True)
class Params:
    """Where certified accuracy is reported."""

    radii: tuple[float, ...] = param(
        (0.0, 0.25, 0.5, 0.75, 1.0),
        help="radii of the table",
        unit="the certificate's norm",
        minimum=0,
    )
    quantiles: tuple[float, ...] = param(
        (0.1, 0.25, 0.5, 0.75, 0.9), help="quantiles of the pA bound", minimum=0, maximum=1
    )
    confidence: float = param(0.95, help="level of the intervals", above=0, below=1)
    rho: float = param(
        0.001, help="level of the statement over all images together", above=0, below=1
    )


def compute(group: pd.DataFrame, params: Params, context: Any) -> list[dict[str, Any]]:
    """Rows for one defended model on one variant.

    ``certified_accuracy`` at every radius counts all items, abstentions too; its interval is exact
    binomial. ``certified_accuracy_surely`` subtracts what failing certificates may contribute:
    with probability 1 - rho over all images the certified accuracy of these images is at least
    that. ``acr`` is the average certified radius, whose size depends on the sample budget and on
    easy images: read it beside ``p_a`` quantiles and ``cap_share``. ``linf_equivalent`` is the
    radius of the largest l-infinity ball inside the certified ball, r / sqrt(d) for l2 and r / d
    for l1. ``cig`` is the certified information gain (Anani et al., ICML 2024): with one flat set
    of classes it equals certified accuracy; ``cig_class_mean`` is its mean over the classes that
    occur. ``forward_per_certificate`` and ``seconds_per_certificate`` are means over items.
    """
    from certbench.certify.significance import high_probability_slack
    from certbench.metrics import certification
    from certbench.metrics.tabulating import share, value
    from certbench.threat import comparable, convert_size, inner_size

    made: list[dict[str, Any]] = []
    # An unknown label of -1 must not agree with an abstention.
    ok = (group["predict"] == group["label"]) & (group["predict"] >= 0)
    alpha = group["threat_alpha"].iloc[0] if len(group) else None
    norm = group["threat_norm"].iloc[0] if len(group) else "l2"
    lp = len(group) > 0 and group["threat_kind"].iloc[0] == "lp"
    for radius in params.radii:
        row = share(
            "certified_accuracy", ok & (group["radius"] >= radius), params.confidence, radius
        )
        made.append(row)
        # Every class of a flat label set is worth log K, so the gain is the share itself.
        made.append({**row, "metric": "cig"})
        made.append(value("cig_class_mean", _class_mean(group, ok, radius), len(group), radius))
        if radius > 0 and lp and context.dimension is not None:
            inner = inner_size(radius, norm, "linf", context.dimension)
            made.append(value("linf_equivalent", inner, len(group), radius))
        if alpha == alpha and alpha is not None and radius > 0:
            slack = high_probability_slack(len(group), float(alpha), params.rho)
            surely = max(0.0, row["value"] - slack)
            made.append(value("certified_accuracy_surely", surely, len(group), radius))
    promise = _promise(group) if len(group) else None
    for threat in context.threats:
        if promise is None or not comparable(promise, threat):
            continue
        needed = threat.size
        if threat.kind == "lp" and threat.norm != norm:
            if context.dimension is None:
                continue
            needed = convert_size(threat.size, threat.norm, norm, context.dimension)
        # A ball is certified inside its radius, a patch up to its size.
        inside = group["radius"] > needed if threat.kind == "lp" else group["radius"] >= needed
        held = ok & inside
        made.append(share(f"certified_at:{_id(threat)}", held, params.confidence, needed))
    made.append(value("acr", certification.average_certified_radius(group), len(group)))
    made.append(share("abstain_rate", group["abstain"], params.confidence))
    if "radius_capped" in group and group["radius_capped"].notna().any():
        made.append(share("cap_share", group["radius_capped"].fillna(False), params.confidence))
    if "p_lower" in group and group["p_lower"].notna().any():
        for q in params.quantiles:
            made.append(value("p_a_quantile", float(group["p_lower"].quantile(q)), len(group), q))
    for name, column in (("forward", "n_forward"), ("seconds", "device_time_s")):
        if column in group and group[column].notna().any():
            mean = float(group[column].mean())
            made.append(value(f"{name}_per_certificate", mean, len(group)))
    return made


def _promise(group: pd.DataFrame) -> Threat:
    """The threat model of the group's certificates, without a size."""
    from certbench.threat import Threat

    first = group.iloc[0]
    space, unit = (first.get(f"threat_{name}") for name in ("space", "unit"))
    return Threat(
        str(first["threat_kind"]),
        str(first["threat_norm"]),
        space=str(space) if isinstance(space, str) else "pixel01",
        unit=str(unit) if isinstance(unit, str) else "item",
    )


def _class_mean(group: pd.DataFrame, ok: Any, radius: float) -> float:
    """Mean over the labels that occur of the share certified and right: [n] -> one number."""
    held = (ok & (group["radius"] >= radius)).groupby(group["label"]).mean()
    return float(held.mean()) if len(held) else float("nan")


def _id(threat: Any) -> str:
    return str(threat.id)
