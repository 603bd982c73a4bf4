"""The job ``audit``: hold certificates against attacks, item by item.

An attack that succeeds inside a certified region is a *violation*: one of radius, norm, units or
prediction rule is wrong, or the failure probability of the certificate struck. Everything else is
*proven* (certified at the attack's budget, and the attack failed), *refuted* (not certified there,
and the attack succeeded) or *unknown*. An abstention inside the region breaks no promise. Where
certificate and attack speak of different things (a patch and a ball) nothing is compared: such an
item is *outside* the certificate's threat model, whatever the attack found.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.results import rows
from certbench.results.atomic import write_text
from certbench.threat import Threat, comparable, contains, inner_size

if TYPE_CHECKING:
    import pandas as pd

    from certbench.job import Job

VERDICTS = ("violation", "proven", "refuted", "unknown", "outside", "clean_error")

# A probabilistic certificate fails with probability alpha. More violations than a binomial with
# that rate explains at this level are a bug, not bad luck.
SIGNIFICANCE = 1e-3

_JOIN = ["dataset", "split", "view", "variant_id", "model", "defense", "item_index"]


def run(job: Job) -> None:
    """Audit one experiment; writes ``audit`` rows and a verdict. Violations do not fail the job."""
    certificates = rows.read(job.inputs.get("certificates", []), "certificates").to_pandas()
    attacks = rows.read(job.inputs.get("attacks", []), "attacks").to_pandas()
    shapes = {
        _group(footer): footer.get("shape")
        for footer in map(rows.provenance, job.inputs.get("certificates", []))
    }
    audited = audit(certificates, attacks, shapes)
    names = [*rows.KEYS, *rows.KINDS["audit"]]
    columns = {
        name: audited[name].to_numpy() if name in audited else [None] * len(audited)
        for name in names
    }
    made = rows.table("audit", columns, {})
    rows.write(job.output("rows"), made, "audit", job.provenance())
    write_text(job.output("verdict"), json.dumps(verdict(audited), indent=2) + "\n")


def _group(footer: dict[str, Any]) -> tuple[str, str, str]:
    work = footer["work"]
    return work["dataset"]["id"], work["dataset"]["view"], work["model"]


def audit(
    certificates: pd.DataFrame,
    attacks: pd.DataFrame,
    shapes: dict[tuple[str, str, str], list[int] | None],
) -> pd.DataFrame:
    """One row per attacked item that has a certificate of the same defended model.

    Args:
        certificates: Rows of kind ``certificates``.
        attacks: Rows of kind ``attacks``.
        shapes: Shape [C, H, W] of an item by (dataset, view, model), for conversions of norms.

    Returns:
        Rows with ``verdict``, ``certified_size`` (the radius, in the certificate's norm),
        ``attack_size`` (the size of the perturbation found, or the attack's budget where it
        failed, in the attack's norm), ``certified_in_attack_norm`` (radius of the largest ball of
        the attack's norm inside the certified region).
    """
    if certificates.empty or attacks.empty:
        return attacks.iloc[:0].assign(verdict=[])
    kept = certificates[
        [*_JOIN, "predict", "radius", *[c for c in certificates if c.startswith("threat_")]]
    ]
    joined = attacks.merge(kept, on=_JOIN, how="inner", suffixes=("", "_certificate"))
    found = [_judge(record, shapes) for record in joined.to_dict("records")]
    names = ["verdict", "certified_size", "attack_size", "certified_in_attack_norm"]
    values = np.array(found, object).reshape(len(joined), len(names))
    for position, name in enumerate(names):
        joined[name] = values[:, position]
    return joined


def _judge(record: dict[str, Any], shapes: dict) -> tuple[str, float, float, float]:
    shape = shapes.get((record["dataset"], record["view"], record["model"]))
    dimension = math.prod(shape) if shape else None
    certificate = Threat(
        record["threat_kind_certificate"],
        record["threat_norm_certificate"] or "",
        float(record["radius"]),
        record["threat_space_certificate"],
        record["threat_unit_certificate"],
        record["threat_guarantee_certificate"],
        _optional(record["threat_alpha_certificate"]),
    )
    attack = Threat(
        record["threat_kind"],
        record["threat_norm"] or "",
        float(record["threat_size"]),
        record["threat_space"],
        record["threat_unit"],
    )
    certified_class = int(record["predict"])
    correct = certified_class == int(record["label"])
    inside = _largest_inside(certificate, attack, dimension) if certified_class >= 0 else 0.0
    broken = record["status"] == "broken"
    # A wrong but certified class is a promise too: leaving it breaks the certificate. The attack
    # looks for errors, so what it finds concerns items whose certified class is the label.
    if record["status"] == "clean_error":
        return "clean_error", certificate.size or 0.0, attack.size or 0.0, inside
    if not comparable(certificate, attack):
        return "outside", certificate.size or 0.0, attack.size or 0.0, 0.0
    if broken:
        size = (
            float(record[f"pert_{attack.norm}"]) if attack.norm in ("l2", "linf") else attack.size
        )
        abstained = int(record["adv_pred"]) == -1
        strike = attack.sized(float(size or 0.0))
        if correct and not abstained and contains(certificate, strike, dimension):
            return "violation", certificate.size or 0.0, strike.size or 0.0, inside
        return "refuted", certificate.size or 0.0, strike.size or 0.0, inside
    covered = correct and certified_class >= 0 and contains(certificate, attack, dimension)
    return "proven" if covered else "unknown", certificate.size or 0.0, attack.size or 0.0, inside


def _optional(value: Any) -> float | None:
    return (
        None if value is None or (isinstance(value, float) and math.isnan(value)) else float(value)
    )


def _largest_inside(certificate: Threat, attack: Threat, dimension: int | None) -> float:
    """Radius of the largest ball of the attack's norm inside the certified ball."""
    if not comparable(certificate, attack) or certificate.size is None:
        return 0.0
    if certificate.kind != "lp" or certificate.norm == attack.norm:
        return float(certificate.size)
    if dimension is None:
        return 0.0
    return inner_size(certificate.size, certificate.norm, attack.norm, dimension)


def verdict(audited: pd.DataFrame) -> dict[str, Any]:
    """Counts per defended model and attack, violations first, with the binomial allowance.

    Returns:
        ``violations`` (a list of what is needed to reproduce each), ``groups`` with counts per
        verdict, the number certified, the violations that alpha explains, and whether they do.
    """
    groups: list[dict[str, Any]] = []
    listed: list[dict[str, Any]] = []
    if not audited.empty:
        by = ["dataset", "split", "view", "variant_id", "model", "defense", "attack", "threat_id"]
        for key, part in audited.groupby(by, observed=True):
            counts = {name: int((part["verdict"] == name).sum()) for name in VERDICTS}
            alpha = _optional(part["threat_alpha_certificate"].iloc[0])
            # Certificates that an attack of another kind cannot test are not put to the test.
            tested = part["verdict"] != "outside"
            held = (part["radius"] > 0) & (part["predict"] == part["label"])
            certified = int((held & tested).sum())
            groups.append(
                {
                    **dict(zip(by, map(str, key), strict=True)),
                    **counts,
                    "items": len(part),
                    "certified": certified,
                    "alpha": alpha,
                    "explained": _explained(counts["violation"], certified, alpha),
                }
            )
        for record in audited[audited["verdict"] == "violation"].to_dict("records"):
            keys = [*by, "item_id", "item_index", "label", "adv_pred", "seed"]
            listed.append(
                {
                    **{k: _plain(record[k]) for k in keys},
                    "certified_size": float(record["certified_size"]),
                    "attack_size": float(record["attack_size"]),
                }
            )
    unexplained = [group for group in groups if group["violation"] and not group["explained"]]
    return {"violations": listed, "groups": groups, "sound": not unexplained}


def _explained(violations: int, certified: int, alpha: float | None) -> bool:
    """Whether so many violations are bad luck: one-sided binomial test at :data:`SIGNIFICANCE`."""
    if not violations:
        return True
    if not alpha:
        return False
    from scipy.stats import binom

    return bool(binom.sf(violations - 1, certified, alpha) > SIGNIFICANCE)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
