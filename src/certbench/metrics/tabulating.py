"""The job ``table``: every metric of one experiment as long rows, and what it cost.

A table is a pure function of rows. One row is one number: which experiment, dataset, variant,
model, defence, attack, which metric at which parameter, its value, its interval, and how many
items it is about. Where the variant is a corruption, the row names it, with its severity and the
table of severities. A number that could not be formed has no value, and its note says why.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from certbench.params import build, canonical
from certbench.results import rows as row_files
from certbench.results.atomic import atomic_path
from certbench.threat import Threat

if TYPE_CHECKING:
    import pandas as pd

    from certbench.job import Job

GROUP = [
    "task",
    "dataset",
    "split",
    "view",
    "variant_id",
    "model",
    "defense",
    "attack",
    "threat_id",
]
SHIFT = ["corruption", "severity", "severity_table"]
"""What a corruption variant is; rows about several of them leave out what differs."""

TOLD = ["attacked", "judged_by", "knowledge"]
"""What an attack row says of itself: which objective, which rule, how much was known."""

COLUMNS = [
    "experiment",
    *GROUP,
    *SHIFT,
    *TOLD,
    "metric",
    "parameter",
    "value",
    "low",
    "high",
    "n",
    "note",
]


@dataclass(frozen=True)
class Corruption:
    """A variant that is one corruption of the images.

    Attributes:
        corruption: Type.
        severity: Strength.
        severity_table: Which parameters the severities mean; equal within one mean.
    """

    corruption: str
    severity: int
    severity_table: str


@dataclass(frozen=True)
class Context:
    """What a metric may need beside its rows.

    Attributes:
        threats: Threat models named by the experiment.
        dimension: Values per item (C x H x W), or None where unknown.
        corruptions: The variants that are corruptions, by id.
    """

    threats: tuple[Threat, ...]
    dimension: int | None
    corruptions: Mapping[str, Corruption] = field(default_factory=dict)


def corruptions(variants: Sequence[Mapping[str, Any]]) -> dict[str, Corruption]:
    """The variants that are one corruption, told by their steps.

    A variant of several steps (an attack, then fog) is none: it is another shift. Steps of one
    plug-in with one table of severities belong together; where they make the same type and severity
    in two ways (two sources of depth), the rest of their parameters tells them apart.

    Args:
        variants: Blocks with ``variant_id`` and ``steps``.
    """
    found: dict[str, tuple[Corruption, str]] = {}
    for block in variants:
        if len(block["steps"]) != 1:
            continue
        (step,) = block["steps"]
        rest = dict(step["params"])
        name, severity = rest.pop("corruption", None), rest.pop("severity", None)
        if name is None or severity is None:
            continue
        table = str(rest.pop("severity_table", None) or step["name"])
        made = Corruption(str(name), int(severity), table)
        how = [step["name"], rest, block.get("encoding")]
        found[block["variant_id"]] = (made, canonical(how))
    ways: dict[Corruption, set[str]] = {}
    for made, way in found.values():
        ways.setdefault(made, set()).add(way)
    several = {made.severity_table for made, how in ways.items() if len(how) > 1}
    return {
        variant: replace(made, severity_table=f"{made.severity_table}-{_digest(way)}")
        if made.severity_table in several
        else made
        for variant, (made, way) in found.items()
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def share(name: str, holds: Any, confidence: float, parameter: float | None = None) -> dict:
    """A metric row for a share of items, with its exact binomial interval.

    Args:
        name: The metric.
        holds: bool [n].
        confidence: Level of the two-sided Clopper-Pearson interval.
        parameter: Radius, quantile, ... where the metric has one.
    """
    from certbench.certify.intervals import binomial_interval

    n, k = len(holds), int(holds.sum())
    if not n:
        return value(name, None, 0, parameter)
    low, high = binomial_interval(k, n, confidence)
    return {**value(name, k / n, n, parameter), "low": float(low), "high": float(high)}


def value(name: str, number: float | None, n: int, parameter: float | None = None) -> dict:
    """A metric row without an interval."""
    known = number is not None and not math.isnan(number)
    return {
        "metric": name,
        "parameter": parameter,
        "value": float(number) if known and number is not None else None,
        "low": None,
        "high": None,
        "n": n,
        "note": None,
    }


def missing(name: str, reason: str, parameter: float | None = None) -> dict:
    """A metric row for a number that cannot be formed, and why."""
    return {**value(name, None, 0, parameter), "note": reason}


def run(job: Job) -> None:
    """Compute all metrics of one experiment; writes Parquet, CSV and the cost rows."""
    import pandas as pd

    work = job.work
    threats = tuple(Threat(t["kind"], t["norm"], t["size"], t["space"]) for t in work["threats"])
    frames: dict[str, pd.DataFrame] = {}
    known = corruptions(work["variants"])
    metrics = work["metrics"]
    made: list[dict[str, Any]] = []
    with job.bar(len(metrics), f"table {work['experiment']}", "metrics") as bar:
        for block in metrics:
            module = job.plugin("metric", block["name"])
            params = build(module.Params, block["params"], f"metrics.{block['name']}")
            kinds = (module.rows,) if isinstance(module.rows, str) else tuple(module.rows)
            for kind in kinds:
                if kind not in frames:
                    frames[kind] = row_files.read(job.inputs.get(kind, []), kind).to_pandas()
            paths = [path for kind in kinds for path in job.inputs.get(kind, [])]
            frame = _stacked({kind: frames[kind] for kind in kinds})
            made += tabulate(frame, module, params, Context(threats, _dimension(paths), known))
            bar.update(1)
    made += check_rows(job.inputs.get("attacks", []))
    table = pd.DataFrame([_shifted(row, known) for row in made], columns=COLUMNS[1:])
    table.insert(0, "experiment", work["experiment"])
    write_table(job, table)
    costs = cost_rows(work["experiment"], job.inputs)
    made_costs = row_files.table("cost", *_split_costs(costs))
    row_files.write(job.output("cost"), made_costs, "cost", job.provenance())


def tabulate(
    frame: pd.DataFrame, module: Any, params: Any, context: Context
) -> list[dict[str, Any]]:
    """One metric plug-in over all groups of its rows.

    A group is one dataset, variant, model, defence and attack. A metric that names some of these
    keys in ``across`` gets all of their values in one group, and says in its rows which it means.
    """
    if frame.empty:
        return []
    across = getattr(module, "across", ())
    keys = [name for name in GROUP if name not in across]
    made = []
    for key, group in frame.groupby(keys, observed=True, dropna=False, sort=True):
        labels = dict.fromkeys(GROUP) | {
            name: None if part is None or part != part else str(part)
            for name, part in zip(keys, key, strict=True)
        }
        labels |= _told(group)
        made += [{**labels, **row} for row in module.compute(group, params, context)]
    return made


def _told(group: pd.DataFrame) -> dict[str, str | None]:
    """What the attack rows of a group say of themselves, each statement once."""
    made: dict[str, str | None] = {}
    for name in TOLD:
        said = group[name].dropna().unique() if name in group else ()
        made[name] = "; ".join(map(str, said)) or None
    return made


def _stacked(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Rows of several kinds below each other, told apart by the column ``kind``."""
    import pandas as pd

    if len(frames) == 1:
        return next(iter(frames.values()))
    # A kind without rows still has columns: a metric finds them all.
    columns = list(dict.fromkeys(name for frame in frames.values() for name in frame.columns))
    filled = [frame.assign(kind=kind) for kind, frame in frames.items() if len(frame)]
    stacked = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()
    return stacked.reindex(columns=[*columns, "kind"])


def _shifted(row: dict[str, Any], known: Mapping[str, Corruption]) -> dict[str, Any]:
    """A row about one variant, with what that variant is."""
    found = known.get(row["variant_id"])
    if found is None:
        return row
    return {**row, **{name: getattr(found, name) for name in SHIFT}}


def check_rows(paths: Sequence[Any]) -> list[dict[str, Any]]:
    """Checks of the evaluation (C1 to C12), as rows ``check:<id>`` beside what was attacked.

    ``value`` is the measurement of the worst shard, ``parameter`` its limit, and ``n`` the number
    of shards in which the alarm went off.
    """
    found: dict[tuple, dict[str, Any]] = {}
    for path in paths:
        footer = row_files.provenance(path)
        work = footer["work"]
        for check in footer.get("checks", []):
            labels = {
                "task": work["task"],
                "dataset": work["dataset"]["id"],
                "split": work["dataset"]["split"],
                "view": work["dataset"]["view"],
                "variant_id": work["variant"]["variant_id"],
                "model": work["model"],
                "defense": work["defense"]["id"],
                "attack": work["attack"]["id"],
                "threat_id": None,
            }
            name = f"check:{check['check']} {check['test']}"
            row = value(name, check["value"], int(check["alarm"]), check["limit"])
            key = (*labels.values(), name)
            known = found.setdefault(key, {**labels, **row, "n": 0})
            known["n"] += int(check["alarm"])
            if row["value"] is not None and row["value"] > (known["value"] or float("-inf")):
                known["value"] = row["value"]
    return list(found.values())


def _dimension(paths: Sequence[Any]) -> int | None:
    for path in paths:
        shape = row_files.provenance(path).get("shape")
        if shape:
            return math.prod(shape)
    return None


def write_table(job: Job, table: pd.DataFrame) -> None:
    """Write a table as Parquet (with provenance) and CSV."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    footer = json.dumps({"kind": "table", **job.provenance()}, default=str)
    texts = ("experiment", *GROUP, "corruption", "severity_table", *TOLD, "metric", "note")
    typed = table.astype({**dict.fromkeys(texts, "string"), "severity": "Int64", "n": "int64"})
    for name in ("parameter", "value", "low", "high"):
        typed[name] = typed[name].astype("float64")
    made = pa.Table.from_pandas(typed, preserve_index=False)
    made = made.replace_schema_metadata({row_files.FOOTER: footer.encode()})
    with atomic_path(job.output("rows")) as path:
        pq.write_table(made, path)
    with atomic_path(job.output("csv")) as path:
        typed.to_csv(path, index=False)


def cost_rows(experiment: str, inputs: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Seconds, passes and jobs per stage and model, from the footers of the result files."""
    stages = {
        "training": "train",
        "predictions": "predict",
        "segmentation": "predict",
        "certificates": "decide",
        "attacks": "attack",
    }
    found: dict[tuple[str, str, str, str], dict[str, Any]] = {}

    def add(stage: str, work: Mapping[str, Any], footer: Mapping[str, Any], jobs: int = 1) -> None:
        defense = work.get("defense", {})
        key = (
            stage,
            str(work.get("model", "")),
            str(defense.get("id", "none")) if isinstance(defense, dict) else "none",
            str(work.get("attack", {}).get("id", "")),
        )
        row = found.setdefault(key, {"jobs": 0, "wall_time_s": 0.0, "device_time_s": 0.0})
        row["jobs"] += jobs
        row["wall_time_s"] += float(footer.get("wall_time_s", 0.0))
        row["device_time_s"] += float(footer.get("device_time_s", 0.0))

    for name, stage in stages.items():
        for path in inputs.get(name, []):
            footer = row_files.provenance(path)
            add(stage, footer["work"], footer)
            if "collected" in footer:
                add("collect", footer["work"], footer["collected"], footer["collected"]["jobs"])
    return [
        {"stage": stage, "model": model, "defense": defense, "attack": attack or None, **row}
        for (stage, model, defense, attack), row in sorted(found.items())
    ]


def _split_costs(costs: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    names = ("stage", "model", "defense", "attack", "jobs", "wall_time_s", "device_time_s")
    return {name: [row[name] for row in costs] for name in names}, {}
