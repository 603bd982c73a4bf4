"""What corruptions leave: means over types and severities, the worst type, mCE and relative mCE.

The numbers of each single variant are those of the metrics ``accuracy``, ``certified`` and
``segmentation``; their rows name the corruption and its severity. This metric looks at all variants
of a dataset at once:

* ``mean_accuracy``, ``mean_miou``, ``mean_certified_accuracy`` (at each radius), ``mean_acr`` and
  ``mean_abstain_rate``: over the severities of one type, over the types of one severity, and over
  both (for accuracy and mIoU that is mPC; Michaelis et al. 2019, arXiv 1907.07484). A row leaves
  out the keys it is a mean over.
* ``rpc``, ``miou_rpc``, ``certified_rpc``: the mean over both as a fraction of the clean images'
  value.
* ``worst_accuracy``, ``worst_miou``, ``worst_certified_accuracy``: the type that leaves least, of
  those measured.
* ``ce:<reference>``, ``mce:<reference>``, ``relative_mce:<reference>`` in percent, and the same
  with ``certified_`` of certified error, 1 minus certified accuracy (Hendrycks and Dietterich, ICLR
  2019, section 4). The reference's errors are always those of its bare model, so that one scale
  serves bare and defended models. For segmentation the error is 1 - mIoU, and CE is the corruption
  degradation of Kamann and Rother (CVPR 2020, equation 1): ``cd:``, ``mean_cd:``,
  ``relative_mean_cd:``.

A mean is formed of a complete set only: else the row has no value and its note says what is
missing. Severities need not be monotone, and nothing here assumes it. Intervals of means are means
of the variants' exact intervals.

Certified information gain is a measure of pixel labels in a hierarchy. For whole images with flat
labels it equals certified accuracy (every leaf has gain 1): the metric ``certified`` states it for
each variant, and means over variants are those of certified accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from certbench.errors import CertbenchError
from certbench.params import param

if TYPE_CHECKING:
    import pandas as pd

    from certbench.metrics.corruption_errors import Reference, TypeSet

version = 2

rows = ("predictions", "segmentation", "certificates")

across = ("variant_id", "model", "defense", "attack", "threat_id")

CLEAN = "clean"
BARE = "none"

Measured: TypeAlias = dict[str, dict[int, dict[str, Any]]]
"""Rows of one measure by corruption and severity."""


@dataclass(frozen=True)
class Params:
    """Over what means are formed, and against what errors are held."""

    radii: tuple[float, ...] = param(
        (0.0, 0.5), help="radii of certified accuracy", unit="the certificate's norm", minimum=0
    )
    references: tuple[str, ...] = param(
        (),
        help="what mCE is relative to: models of the experiment, or published constants "
        "(alexnet_imagenet_c, alexnet_robustbench, alexnet_3dcc)",
    )
    types: tuple[str, ...] = param(
        (),
        help="corruptions of a set of one's own ([]: the fifteen of ImageNet-C, the twelve of "
        "ImageNet-3DCC)",
    )
    severities: tuple[int, ...] = param(
        (1, 2, 3, 4, 5), help="severities of the set", minimum=1, maximum=5
    )
    confidence: float = param(0.95, help="level of the intervals", above=0, below=1)

    def __post_init__(self) -> None:
        for name in ("types", "severities"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise CertbenchError("holds a value twice", where=name)
        if not self.severities:
            raise CertbenchError("is empty", where="severities", remedy="name at least one")
        if tuple(sorted(self.severities)) != self.severities:
            raise CertbenchError("is not ascending", where="severities")


@dataclass(frozen=True)
class _Series:
    """One model, bare or defended: the rows of each variant."""

    kind: str
    keys: dict[str, Any]
    by_variant: Mapping[str, pd.DataFrame]

    @property
    def bare(self) -> bool:
        return self.keys["defense"] in (None, BARE)

    @property
    def score(self) -> str:
        """What a bare model is measured by."""
        return "miou" if self.kind == "segmentation" else "accuracy"


def compute(group: pd.DataFrame, params: Params, context: Any) -> list[dict[str, Any]]:
    """Rows for every model of one dataset, bare and defended, and every table of severities."""
    tables = sorted(
        {
            context.corruptions[variant].severity_table
            for variant in group["variant_id"].unique()
            if variant in context.corruptions
        }
    )
    series = _series(group)
    made = []
    for table in tables:
        ids = {
            variant: one
            for variant, one in context.corruptions.items()
            if one.severity_table == table
        }
        over = _set({one.corruption for one in ids.values()}, params)
        for one in series:
            rows = _of_table(one, ids, over, table, series, params)
            made += [{**one.keys, "severity_table": table, **row} for row in rows]
    return made


def _series(group: pd.DataFrame) -> list[_Series]:
    found = []
    names = ["kind", "model", "defense", "threat_id"]
    for key, own in group.groupby(names, observed=True, dropna=False, sort=True):
        keys = {
            name: None if part is None or part != part else str(part)
            for name, part in zip(names[1:], key[1:], strict=True)
        }
        by_variant = dict(list(own.groupby("variant_id", observed=True)))
        found.append(_Series(str(key[0]), keys, by_variant))
    return found


def _set(types: set[str], params: Params) -> TypeSet | None:
    """The set that the types of one table of severities may fill; None for types of no set."""
    from certbench.metrics import corruption_errors as ce

    if types & set(params.types):
        return ce.TypeSet("own", params.types, params.severities)
    for known in (ce.IMAGENET_C, ce.IMAGENET_3DCC):
        if types & {*known.types, *(ce.ELASTIC if known is ce.IMAGENET_C else ())}:
            return ce.TypeSet(known.name, known.types, params.severities)
    return None


def _of_table(
    one: _Series,
    ids: Mapping[str, Any],
    over: TypeSet | None,
    table: str,
    series: list[_Series],
    params: Params,
) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for name, radius in _measures(one, params):
        measured = _measured(one, name, radius, ids, params)
        if not measured:
            continue
        clean = _measure(one.by_variant.get(CLEAN), name, radius, params)
        made += _means(name, radius, measured, over, params)
        if name in ("acr", "abstain_rate"):
            continue
        made += _relative(name, radius, measured, clean, over)
        made += _worst(name, radius, measured)
        for reference in params.references:
            made += _errors(
                name, radius, measured, clean, over, table, reference, series, ids, params
            )
    return made


def _measures(one: _Series, params: Params) -> list[tuple[str, float | None]]:
    if one.bare:
        return [(one.score, None)]
    return [
        *(("certified_accuracy", radius) for radius in params.radii),
        ("acr", None),
        ("abstain_rate", None),
    ]


def _measure(
    rows: pd.DataFrame | None, name: str, radius: float | None, params: Params
) -> dict[str, Any] | None:
    """One measure of one variant; None where there is nothing to measure."""
    from certbench.metrics import certification
    from certbench.metrics.tabulating import share, value

    if rows is None or rows.empty:
        return None
    if name == "miou":
        from certbench.metrics import segmentation

        counts, _ = segmentation.per_image(rows)
        return value(name, float(segmentation.ratios(counts.sum(0))["miou"]), len(counts))
    if name == "acr":
        return value(name, certification.average_certified_radius(rows), len(rows))
    if name == "abstain_rate":
        return share(name, rows["predict"] == certification.ABSTAIN, params.confidence)
    right = (rows["predict"] == rows["label"]) & (rows["predict"] != certification.ABSTAIN)
    if name == "certified_accuracy":
        right &= rows["radius"] >= radius
    return share(name, right, params.confidence)


def _measured(
    one: _Series, name: str, radius: float | None, ids: Mapping[str, Any], params: Params
) -> Measured:
    found: Measured = {}
    for variant, what in ids.items():
        row = _measure(one.by_variant.get(variant), name, radius, params)
        if row is not None and row["value"] is not None:
            found.setdefault(what.corruption, {})[what.severity] = row
    return found


def _means(
    name: str, radius: float | None, measured: Measured, over: TypeSet | None, params: Params
) -> list[dict[str, Any]]:
    """Means over the severities of each type, over the types of each severity, over both."""
    from certbench.metrics.tabulating import missing

    mean = f"mean_{name}"
    made = []
    for kind, by_severity in measured.items():
        absent = [s for s in params.severities if s not in by_severity]
        if not absent:
            row = _mean(mean, radius, [by_severity[s] for s in params.severities])
            made.append({**row, "corruption": kind})
        elif len(by_severity) > 1:
            reason = f"not measured at severity {', '.join(map(str, absent))}"
            made.append({**missing(mean, reason, radius), "corruption": kind})
    reason = _lacks(measured, over)
    if reason or over is None:
        return [*made, missing(mean, reason, radius)]
    types = _names(measured, over)
    for severity in over.severities:
        row = _mean(mean, radius, [measured[kind][severity] for kind in types])
        made.append({**row, "severity": severity, "note": f"{len(types)} types"})
    every = [measured[kind][severity] for kind in types for severity in over.severities]
    return [*made, {**_mean(mean, radius, every), "note": str(over)}]


def _relative(
    name: str,
    radius: float | None,
    measured: Measured,
    clean: dict[str, Any] | None,
    over: TypeSet | None,
) -> list[dict[str, Any]]:
    from certbench.metrics import corruption_errors as ce
    from certbench.metrics.tabulating import missing, value

    metric = f"{_prefix(name)}rpc"
    reason = _lacks(measured, over)
    if clean is None:
        reason = reason or "no clean images in the experiment"
    if reason or over is None or clean is None:
        return [missing(metric, reason, radius)]
    scores = {kind: {s: row["value"] for s, row in by.items()} for kind, by in measured.items()}
    mean = ce.mean_performance_under_corruption(scores, _elastic(measured), over=over)
    try:
        number = ce.relative_performance_under_corruption(mean, clean["value"])
    except CertbenchError as error:
        return [missing(metric, error.problem, radius)]
    return [{**value(metric, number, clean["n"], radius), "note": str(over)}]


def _worst(name: str, radius: float | None, measured: Measured) -> list[dict[str, Any]]:
    """The type that leaves least, over the severities that all types have in common."""
    shared = set.intersection(*(set(by) for by in measured.values()))
    if not shared or len(measured) < 2:
        return []
    metric = f"worst_{name}"
    found = {
        kind: _mean(metric, radius, [by[s] for s in sorted(shared)])
        for kind, by in measured.items()
    }
    worst = min(found, key=lambda kind: (found[kind]["value"], kind))
    word = "severity" if len(shared) == 1 else "severities"
    note = f"of {len(found)} types, {word} {', '.join(map(str, sorted(shared)))}"
    return [{**found[worst], "corruption": worst, "note": note}]


def _errors(
    name: str,
    radius: float | None,
    measured: Measured,
    clean: dict[str, Any] | None,
    over: TypeSet | None,
    table: str,
    against: str,
    series: list[_Series],
    ids: Mapping[str, Any],
    params: Params,
) -> list[dict[str, Any]]:
    """CE of every type, mCE and relative mCE against one reference, or why there is none."""
    from certbench.metrics import corruption_errors as ce
    from certbench.metrics.tabulating import missing, value

    elastic = _elastic(measured)
    ce_, mce, relative = (
        f"{'' if name == 'miou' else _prefix(name)}{error}:{against}"
        for error in (
            ("cd", "mean_cd", "relative_mean_cd")
            if name == "miou"
            else ("ce", "mce", "relative_mce")
        )
    )
    reason = _lacks(measured, over)
    if reason or over is None:
        return [missing(mce, reason, radius), missing(relative, reason, radius)]
    errors = {kind: {s: 1 - row["value"] for s, row in by.items()} for kind, by in measured.items()}
    items = min(row["n"] for by in measured.values() for row in by.values())
    made = []
    try:
        reference = _reference(against, over, table, series, ids, params)
        for kind, ratio in ce.corruption_errors(errors, reference, elastic).items():
            row = value(ce_, ratio, items, radius)
            made.append({**row, "corruption": kind})
        ratio = ce.mean_corruption_error(errors, reference, elastic)
        note = str(over)
        if table in reference.severity_tables[1:]:
            note += "; computed anew, not the published files"
        made.append({**value(mce, ratio, items, radius), "note": note})
    except CertbenchError as error:
        return [missing(mce, error.problem, radius), missing(relative, error.problem, radius)]
    try:
        if clean is None:
            raise CertbenchError("no clean images in the experiment")
        ratio = ce.relative_mean_corruption_error(errors, 1 - clean["value"], reference, elastic)
        made.append({**value(relative, ratio, items, radius), "note": note})
    except CertbenchError as error:
        made.append(missing(relative, error.problem, radius))
    return made


def _reference(
    name: str,
    over: TypeSet,
    table: str,
    series: list[_Series],
    ids: Mapping[str, Any],
    params: Params,
) -> Reference:
    """A published reference, or the bare model of that name.

    Raises:
        CertbenchError: Neither, or it was measured on another set.
    """
    from certbench.metrics import corruption_errors as ce

    own = next((one for one in series if one.bare and one.keys["model"] == name), None)
    if own is not None:
        measured = _measured(own, own.score, None, ids, params)
        clean = _measure(own.by_variant.get(CLEAN), own.score, None, params)
        reason = _lacks(measured, over)
        if reason or clean is None:
            raise CertbenchError(f"'{name}' {reason or 'has no clean images'}")
        errors = {kind: {s: 1 - r["value"] for s, r in by.items()} for kind, by in measured.items()}
        return ce.reference_from(name, errors, 1 - clean["value"], _elastic(measured), over)
    if name not in ce.REFERENCES:
        raise CertbenchError(
            f"'{name}' is neither a published reference nor a bare model with predictions here"
        )
    published = ce.reference(name)
    if any(one.kind == "segmentation" for one in series):
        raise CertbenchError(f"'{name}' is about whole images, not about pixels")
    if published.over != over:
        raise CertbenchError(f"'{name}' is about {published.over} of {published.over.name}")
    if table not in published.severity_tables:
        tables = " or ".join(published.severity_tables)
        raise CertbenchError(f"'{name}' was measured with severity table {tables}, not {table}")
    return published


def _lacks(measured: Measured, over: TypeSet | None) -> str:
    from certbench.metrics import corruption_errors as ce

    if over is None:
        return "no set has these types: name them under types"
    absent = ce.missing_from(measured, over, _elastic(measured))
    return f"lacks {absent}" if absent else ""


def _elastic(measured: Measured) -> str:
    """The recipe in the elastic slot: the first unless only the other was measured."""
    from certbench.metrics.corruption_errors import ELASTIC

    return ELASTIC[1] if ELASTIC[1] in measured and ELASTIC[0] not in measured else ELASTIC[0]


def _names(measured: Measured, over: TypeSet) -> list[str]:
    elastic = _elastic(measured)
    return [elastic if kind == "elastic_transform" else kind for kind in over.types]


def _prefix(name: str) -> str:
    return {"accuracy": "", "miou": "miou_"}.get(name, "certified_")


def _mean(name: str, radius: float | None, measured: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of measures, and of their intervals where they have any."""
    from certbench.metrics.tabulating import value

    def mean(key: str) -> float | None:
        numbers = [row[key] for row in measured]
        return None if any(n is None for n in numbers) else sum(numbers) / len(numbers)

    made = value(name, mean("value"), min(row["n"] for row in measured), radius)
    return {**made, "low": mean("low"), "high": mean("high")}
