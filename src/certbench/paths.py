"""Where every result lies: one pattern for each output of each rule.

The workflow's rules and the plan both read this table, so a path is written once. Wildcards are
ids (``[a-z0-9][a-z0-9_-]*``); ``{dataset}`` of results is a *selection*, ``<id>-<split>-<view>``;
``{item_range}`` and ``{sample_range}`` are half-open ranges.
"""

from __future__ import annotations

import re

ID = r"[a-z0-9][a-z0-9_-]*"

CONSTRAINTS = {
    "source": ID,
    "split": ID,
    "dataset": ID,
    "variant": ID,
    "model": ID,
    "defense": ID,
    "attack": ID,
    "experiment": ID,
    "figure": ID,
    "item_range": r"i\d+-\d+",
    "sample_range": r"s\d+-\d+|all",
}

_DEFENDED = "{dataset}/{variant}/{model}/{defense}"

OUTPUTS: dict[str, dict[str, str]] = {
    "prepare": {
        "index": "results/datasets/{source}/{split}/index.parquet",
        "card": "results/datasets/{source}/{split}/card.json",
    },
    "materialise": {
        "images": "results/variants/{dataset}/{variant}/{item_range}.parquet",
    },
    "train": {
        "weights": "results/models/{model}/model.safetensors",
        "card": "results/models/{model}/model.json",
        "training": "results/models/{model}/training.parquet",
    },
    "fetch": {
        "weights": "results/models/{model}/model.safetensors",
        "card": "results/models/{model}/model.json",
    },
    "predict": {
        "rows": "results/predictions/{dataset}/{variant}/{model}/{item_range}.parquet",
    },
    "collect": {
        "rows": f"results/stats/{_DEFENDED}/{{item_range}}_{{sample_range}}.parquet",
    },
    "decide": {
        "rows": "results/certificates/{experiment}/{dataset}/{model}/{defense}.parquet",
    },
    "fit": {
        "artifact": "results/artifacts/{dataset}/{model}/{defense}/{attack}.safetensors",
    },
    "attack": {
        "rows": f"results/attacks/{_DEFENDED}/{{attack}}/{{item_range}}.parquet",
        "images": f"results/attacks/{_DEFENDED}/{{attack}}/{{item_range}}.npz",
    },
    "audit": {
        "rows": "results/audit/{experiment}.parquet",
        "verdict": "results/audit/{experiment}.json",
    },
    "table": {
        "rows": "results/tables/{experiment}.parquet",
        "csv": "results/tables/{experiment}.csv",
        "cost": "results/tables/{experiment}.cost.parquet",
    },
    "figure": {
        "svg": "results/figures/{figure}.svg",
        "png": "results/figures/{figure}.png",
    },
    "report": {
        "html": "results/report.html",
    },
}


def wildcards(rule: str) -> tuple[str, ...]:
    """Names of a rule's wildcards, in the order of its first output."""
    return tuple(re.findall(r"\{(\w+)\}", next(iter(OUTPUTS[rule].values()))))


def fill(rule: str, values: tuple[str, ...]) -> dict[str, str]:
    """The output files of one job: its patterns with the wildcards filled in."""
    named = dict(zip(wildcards(rule), values, strict=True))
    return {name: pattern.format(**named) for name, pattern in OUTPUTS[rule].items()}


def log(rule: str) -> str:
    """Pattern of a rule's log file: one for each job."""
    return _beside(rule, "logs", ".log")


def benchmark(rule: str) -> str:
    """Pattern of a rule's benchmark file (time and memory of each job)."""
    return _beside(rule, "benchmarks", ".tsv")


def _beside(rule: str, folder: str, suffix: str) -> str:
    parts = [f"{{{name}}}" for name in wildcards(rule)] or [rule]
    return "/".join(["results", folder, rule, *parts]) + suffix


def item_range(start: int, stop: int) -> str:
    """Name of a range of items."""
    return f"i{start:07d}-{stop:07d}"


def sample_range(start: int, stop: int | None) -> str:
    """Name of a range of samples (``all`` for methods that are not sharded over samples)."""
    return "all" if stop is None else f"s{start:09d}-{stop:09d}"


def ranges(total: int, size: int) -> list[tuple[int, int]]:
    """Half-open ranges of ``size`` that cover ``[0, total)``; only the last may be shorter."""
    return [(start, min(start + size, total)) for start in range(0, total, size)]
