"""The tables behind the findings: audit, certificates, models, time, provenance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.figures import wording
from certbench.report import crosstable
from certbench.report.numbers import CHECK, Numbers, defended

if TYPE_CHECKING:
    from certbench.report.sources import Sources


@dataclass(frozen=True)
class Audit:
    """All audits together.

    Attributes:
        violations: Certificates that were broken inside their region, each once.
        groups: Counts for each defended model and attack.
        sound: Whether chance (alpha) explains all violations; None without an audit.
        proven: Number of images that are proven, over all groups.
        certified: Number of certificates that were put to the test.
    """

    violations: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    sound: bool | None
    proven: int
    certified: int


def audit(found: Sources) -> Audit:
    """Merge the verdicts of all experiments; what two of them report counts once."""
    names = ("dataset", "split", "view", "variant_id", "model", "defense", "attack", "threat_id")
    groups: dict[tuple, dict[str, Any]] = {}
    violations: dict[tuple, dict[str, Any]] = {}
    for verdict in found.verdicts.values():
        for group in verdict["groups"]:
            key = tuple(group[name] for name in names)
            if key not in groups or groups[key]["items"] < group["items"]:
                groups[key] = group
        for violation in verdict["violations"]:
            key = (*(violation[name] for name in names), violation["item_id"], violation["seed"])
            violations[key] = violation
    listed = list(groups.values())
    return Audit(
        violations=list(violations.values()),
        groups=listed,
        sound=all(verdict["sound"] for verdict in found.verdicts.values())
        if found.verdicts
        else None,
        proven=sum(group["proven"] for group in listed),
        certified=sum(group["certified"] for group in listed),
    )


def attacked(found: Sources) -> list[dict[str, Any]]:
    """What each attack was aimed at, who judged it, and what it knew of the target."""
    made: dict[tuple, dict[str, Any]] = {}
    for row in found.tables.itertuples():
        said = getattr(row, "attacked", None)
        if row.metric != "robust_accuracy" or not wording.known(said):
            continue
        key = (row.dataset, row.split, row.view, row.variant_id, row.model, row.defense, row.attack)
        made[key] = {
            "attack": row.attack,
            "threat_id": row.threat_id,
            "series": wording.series(row.model, row.defense),
            "place": wording.place(row.dataset, row.split, row.variant_id),
            "attacked": said,
            "judged_by": row.judged_by,
            "knowledge": row.knowledge,
            "right": wording.percent(row.value),
            "interval": wording.interval(row.low, row.high),
        }
    return list(made.values())


def checks(found: Sources) -> list[dict[str, Any]]:
    """Checks of the attack evaluations, those that raised an alarm first."""
    made = []
    for row in found.tables.itertuples():
        if not row.metric.startswith(CHECK):
            continue
        name, _, test = row.metric.removeprefix(CHECK).partition(" ")
        made.append(
            {
                "check": name,
                "test": test,
                "series": wording.series(row.model, row.defense),
                "place": wording.place(row.dataset, row.split, row.variant_id),
                "attack": row.attack,
                "value": row.value,
                "limit": row.parameter,
                "alarm": int(row.n) > 0,
            }
        )
    return sorted(made, key=lambda check: not check["alarm"])


@dataclass(frozen=True)
class CertificateRow:
    """Certificates of one defended model on one variant.

    Attributes:
        name: Model and defence.
        variant: Name of the variant.
        cells: What the columns of :data:`CERTIFICATE_COLUMNS` say.
    """

    name: str
    variant: str
    cells: list[str]


CERTIFICATE_COLUMNS = (
    "average certified radius",
    "l\N{INFINITY} ball inside",
    "abstains",
    "cap share",
    "pA bound, 10% quantile",
    "median",
    "90% quantile",
    "passes each",
    "time each",
)


def certificates(found: Sources, numbers: Numbers) -> list[tuple[str, list[CertificateRow]]]:
    """What the cross table has no room for, by dataset."""
    made = []
    for place in numbers.places:
        names, _ = wording.variants(numbers.variants[place])
        rows = []
        for pair in crosstable.ordered(numbers.pairs[place], found.config):
            if not defended(pair):
                continue
            for variant in numbers.variants_of(place, pair):
                acr = numbers.get("acr", place, pair, variant)
                if acr is None:
                    continue
                quantiles = numbers.over("p_a_quantile", place, pair, variant)
                cost = crosstable.per_certificate(found, place, pair, variant) or (None, None)
                shares = [
                    numbers.get(metric, place, pair, variant)
                    for metric in ("abstain_rate", "cap_share")
                ]
                cells = [
                    wording.number(acr.value),
                    _linf(numbers, place, pair, variant),
                    *(f"{s.percent} ({s.interval})" if s else wording.MISSING for s in shares),
                    *(
                        f"{quantiles[q].value:.4f}" if q in quantiles else wording.MISSING
                        for q in (0.1, 0.5, 0.9)
                    ),
                    wording.number(cost[0]),
                    wording.duration(cost[1]),
                ]
                rows.append(CertificateRow(wording.series(*pair), names[variant], cells))
        if rows:
            made.append((wording.place(place[0], place[1]), rows))
    return made


def _linf(numbers: Numbers, place: tuple, pair: tuple[str, str], variant: str) -> str:
    """What the middle radius of the table is worth against changes of every pixel."""
    known = numbers.over("linf_equivalent", place, pair, variant)
    radius = crosstable.middle([r for r in known if r is not None])
    if radius is None:
        return wording.MISSING
    return f"{255 * known[radius].value:.2f}/255 at radius {radius:g}"


def comparisons(found: Sources) -> list[tuple[str, list[dict[str, Any]]]]:
    """Exact paired tests on clean images, by dataset: who is better where two models disagree.

    Defended models are compared at every radius of the metric.
    """
    rows: dict[tuple, dict[tuple, dict[str, Any]]] = {}
    for row in found.tables.itertuples():
        name, _, against = str(row.metric).partition(":")
        if name not in ("paired_difference", "paired_p") or row.variant_id != "clean":
            continue
        place = (row.dataset, row.split, row.view)
        radius = float(row.parameter) if wording.known(row.parameter) else None
        key = (row.model, row.defense, against, radius)
        made = rows.setdefault(place, {}).setdefault(
            key,
            {
                "first": wording.series(row.model, row.defense),
                "second": wording.series(*against.split("/", 1)),
                "radius": radius,
                "images": int(row.n),
                "note": row.note,
            },
        )
        made[name.removeprefix("paired_")] = float(row.value)
    return [
        (wording.place(place[0], place[1]), list(found_rows.values()))
        for place, found_rows in rows.items()
    ]


def models(found: Sources, numbers: Numbers, pixels: Numbers) -> list[dict[str, Any]]:
    """Model cards with the accuracy, or the mIoU of pixels, that was measured."""
    made = []
    for card in found.models:
        accuracy = []
        for known, metric, name in ((numbers, "accuracy", ""), (pixels, "miou", "mIoU ")):
            for place in known.places:
                value = known.get(metric, place, (card["model"], "none"))
                if value is not None:
                    accuracy.append(
                        f"{name}{value.percent} ({value.interval}) on "
                        f"{wording.plural(value.n, 'image')} of {wording.place(place[0], place[1])}"
                    )
        made.append(
            {
                "name": card["model"],
                "architecture": card["builder"] + _arguments(card.get("builder_params")),
                "parameters": card.get("parameters"),
                "origin": _origin(card),
                "recipe": _recipe(card),
                "accuracy": accuracy,
                "seed": card.get("seed"),
                "sha256": card.get("sha256"),
            }
        )
    return made


def _arguments(params: dict[str, Any] | None) -> str:
    if not params:
        return ""
    return f" ({', '.join(f'{key} {value}' for key, value in params.items())})"


def _origin(card: dict[str, Any]) -> str:
    origin = card.get("origin")
    if isinstance(origin, dict) and origin.get("kind") == "trained":
        return (
            f"trained on {wording.plural(int(origin['images']), 'image')} of {origin['dataset']} "
            f"({origin['split']}, view {origin['view']})"
        )
    if isinstance(origin, dict):
        return ", ".join(f"{key} {value}" for key, value in origin.items())
    return f"fetched: {origin}" if origin else "origin unknown"


def _recipe(card: dict[str, Any]) -> str:
    recipe = card.get("recipe")
    if not recipe:
        return ""
    params = recipe.get("params", {})
    first = [key for key in ("sigma", "epochs", "batch_size", "learning_rate") if key in params]
    return recipe["name"] + _arguments({key: params[key] for key in first})


def costs(found: Sources) -> list[dict[str, Any]]:
    """Time by stage for each experiment, beside what was to be expected of it."""
    from certbench.cluster import cost

    made = []
    order = list(wording.STAGES)
    devices = _values(found.footers, "device")
    expected = cost.by_experiment(found.config, devices) if not found.costs.empty else {}
    for experiment, group in found.costs.groupby("experiment", sort=False):
        stages: list[dict[str, Any]] = [
            {
                "stage": wording.STAGES.get(str(stage), str(stage)),
                "jobs": int(rows["jobs"].sum()),
                "wall": float(rows["wall_time_s"].sum()),
                "device": float(rows["device_time_s"].sum()),
                "estimated": expected.get(str(experiment), {}).get(str(stage)),
                "place": order.index(stage) if stage in order else len(order),
            }
            for stage, rows in group.groupby("stage", sort=False)
        ]
        stages.sort(key=lambda stage: stage["place"])
        made.append(
            {
                "experiment": experiment,
                "stages": stages,
                "jobs": sum(stage["jobs"] for stage in stages),
                "wall": sum(stage["wall"] for stage in stages),
                "device": sum(stage["device"] for stage in stages),
            }
        )
    return made


def provenance(found: Sources) -> dict[str, Any]:
    """Versions, commits, seeds, devices and plug-ins, as the result files state them."""
    works = [footer["work"] for footer in found.footers]
    facts = {
        "certbench": _values(found.footers, "certbench"),
        "commit": [commit[:12] for commit in _values(found.footers, "commit")],
        "torch": _values(found.footers, "torch"),
        "device": _values(found.footers, "device"),
        "seed": _values(works, "seed"),
        "numerics": _values(works, "numerics"),
        "noise backend": _values(works, "noise_backend"),
        "threads per job": _values(found.footers, "threads"),
    }
    plugins: dict[tuple[str, str], int] = {}
    for work in works:
        for kind, name, version in _plugins(work):
            plugins[kind, name] = version
    for card in found.models:
        plugins["model", card["builder"]] = card["builder_version"]
        for kind, block in (("recipe", card.get("recipe")), ("source", card.get("source"))):
            if block:
                plugins[kind, block["name"]] = block["version"]
    for figure in found.figures:
        plugins.setdefault(("figure", figure["type"]), _figure_version(found, figure["type"]))
    return {
        "facts": {name: values for name, values in facts.items() if values},
        "plugins": [
            {"kind": kind, "name": name, "version": version}
            for (kind, name), version in sorted(plugins.items())
        ],
    }


def _values(entries: list[dict[str, Any]], name: str) -> list[str]:
    found = dict.fromkeys(
        str(entry[name]) for entry in entries if name in entry and entry[name] is not None
    )
    return list(found)


def _plugins(work: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Kind, name and version of every plug-in a job used."""
    found = []
    dataset = work.get("dataset")
    if isinstance(dataset, dict) and "plugin" in dataset:
        found.append(("dataset", dataset["plugin"], dataset["version"]))
    for kind, key in (
        ("certifier", "defense"),
        ("attack", "attack"),
        ("model", "builder"),
        ("recipe", "recipe"),
        ("source", "source"),
    ):
        block = work.get(key)
        if isinstance(block, dict) and "version" in block:
            found.append((kind, block["name"], block["version"]))
    for step in work.get("variant", {}).get("steps", ()):
        found.append(("variant", step["name"], step["version"]))
    for metric in work.get("metrics", ()):
        found.append(("metric", metric["name"], metric["version"]))
    return found


def _figure_version(found: Sources, name: str) -> int:
    from certbench import plugins

    return int(plugins.load("figure", name, tuple(found.config["plugins"])).version)


def config_text(found: Sources) -> str:
    """The whole configuration as YAML."""
    import yaml

    return yaml.safe_dump(found.config, sort_keys=False, allow_unicode=True, width=100)
