"""What the report is made of, read from the result files that are there.

In a finished run everything is there; after a failed one the page is built from what exists, and
says what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbench.errors import CertbenchError

if TYPE_CHECKING:
    import pandas as pd

_CERTIFICATE_COLUMNS = (
    "dataset",
    "split",
    "view",
    "variant_id",
    "model",
    "defense",
    "n_forward",
    "device_time_s",
    "threat_kind",
    "threat_norm",
    "threat_space",
    "threat_unit",
    "threat_guarantee",
    "threat_alpha",
    "n",
)


@dataclass
class Sources:
    """All that the page shows, as read.

    Attributes:
        title: Title of the page.
        experiments: Name and title of each experiment.
        tables: Numbers of all experiments, each once.
        reported: The same with the experiments that report them.
        costs: Cost rows with their experiment.
        verdicts: Audit verdicts by experiment.
        certificates: One row for each defended model on one variant: threat, cost per certificate.
        defenses: Parameters of each defended model's certificates, by (model, defence).
        datasets: Dataset cards.
        models: Model cards.
        footers: Provenance of every file read.
        svgs: Drawn figures by id.
        figures: Id, type and caption of every figure planned.
        config: The whole configuration.
        missing: Planned files that are not there.
        synthetic: Ids of the datasets whose images are rendered.
    """

    title: str
    experiments: list[dict[str, str]]
    tables: pd.DataFrame
    reported: pd.DataFrame
    costs: pd.DataFrame
    verdicts: dict[str, dict[str, Any]]
    certificates: pd.DataFrame
    defenses: dict[tuple[str, str], dict[str, Any]]
    datasets: list[dict[str, Any]]
    models: list[dict[str, Any]]
    footers: list[dict[str, Any]]
    svgs: dict[str, str]
    figures: list[dict[str, str]]
    config: dict[str, Any]
    missing: list[str] = field(default_factory=list)
    synthetic: frozenset[str] = frozenset()

    @property
    def partial(self) -> bool:
        """Whether something is missing."""
        return bool(self.missing)

    @property
    def rho(self) -> float | None:
        """Level of the statements about all images together, as the tables used it."""
        for footer in self.footers:
            for metric in footer["work"].get("metrics", ()):
                if "rho" in metric["params"]:
                    return float(metric["params"]["rho"])
        return None


def read(inputs: Mapping[str, Sequence[Path]], work: Mapping[str, Any]) -> Sources:
    """Read what exists of the inputs of a ``report`` job.

    Args:
        inputs: Files by name, as planned.
        work: The job's work.

    Raises:
        CertbenchError: A file is torn or of another kind.
    """
    from certbench.figures.data import distinct, read_costs, read_tables
    from certbench.results import rows

    there: dict[str, list[Path]] = {}
    missing: list[str] = []
    for name, paths in inputs.items():
        there[name] = [Path(path) for path in paths if Path(path).is_file()]
        missing += [str(path) for path in paths if not Path(path).is_file()]
    tables = read_tables(there.get("tables", []))
    read_files = [p for name in ("tables", "certificates", "shards") for p in there.get(name, [])]
    certificates, defenses = _certificates(there.get("certificates", []))
    # Cards that were written before datasets had label maps say nothing of them.
    cards = [{"mask_class_names": [], **_json(path)} for path in there.get("dataset_cards", [])]
    config = work["config"]
    titles = {one["name"]: one.get("title", one["name"]) for one in config["experiments"]}
    return Sources(
        title=work["report"]["title"],
        experiments=[{"name": n, "title": titles.get(n, n)} for n in work["experiments"]],
        tables=distinct(tables),
        reported=tables,
        costs=read_costs(there.get("costs", [])),
        verdicts={path.stem: _json(path) for path in there.get("verdicts", [])},
        certificates=certificates,
        defenses=defenses,
        datasets=_merged(cards),
        models=[_json(path) for path in there.get("model_cards", [])],
        footers=[rows.provenance(path) for path in read_files],
        svgs={path.stem: path.read_text(encoding="utf-8") for path in there.get("figures", [])},
        figures=list(work["figures"]),
        config=config,
        missing=missing,
        # .../<dataset>/<split>/card.json
        synthetic=frozenset(Path(c["path"]).parts[-3] for c in cards if c["synthetic"]),
    )


def _certificates(paths: Iterable[Path]):
    """Means over the items of each defended model and variant, and the parameters behind them."""
    import pandas as pd
    import pyarrow.parquet as pq

    from certbench.figures.data import plain
    from certbench.results import rows

    keys = list(_CERTIFICATE_COLUMNS[:6])
    frames: list[pd.DataFrame] = []
    defenses: dict[tuple[str, str], dict[str, Any]] = {}
    for path in paths:
        names = set(pq.read_schema(path).names)
        columns = [name for name in _CERTIFICATE_COLUMNS if name in names]
        frame = plain(rows.read(path, "certificates", columns).to_pandas())
        means: dict[str, Any] = {
            name: "mean" for name in ("n_forward", "device_time_s") if name in columns
        }
        rest = {name: "first" for name in columns if name not in (*keys, *means)}
        grouped = frame.groupby(keys, dropna=False, sort=False)
        found = grouped.agg({**means, **rest})
        found["items"] = grouped.size()
        frames.append(found.reset_index())
        work = rows.provenance(path)["work"]
        defenses.setdefault((work["model"], work["defense"]["id"]), work["defense"])
    if not frames:
        return pd.DataFrame({name: [] for name in (*_CERTIFICATE_COLUMNS, "items")}), defenses
    table = pd.concat(frames, ignore_index=True).sort_values(
        "items", ascending=False, kind="stable"
    )
    return table.drop_duplicates(keys).sort_index().reset_index(drop=True), defenses


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CertbenchError(
            "is torn, or no JSON", where=str(path), remedy="delete it and run again"
        ) from error
    return {**value, "path": str(path)}


def _merged(cards: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One card for each dataset, with the sizes of all its splits."""
    found: dict[tuple, dict[str, Any]] = {}
    for card in cards:
        key = (card["title"], card["source"], card["licence"])
        known = found.setdefault(key, {**card, "sizes": {}})
        known["sizes"] = {**known["sizes"], **card["sizes"]}
    return list(found.values())
