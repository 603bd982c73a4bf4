"""What planning knows, and the jobs that it has added so far."""

from __future__ import annotations

from typing import Any

from certbench import paths
from certbench.definitions import Definitions
from certbench.errors import CertbenchError
from certbench.plan import Plan, PlannedJob

# What rows a model's answers are depends on its task.
ANSWERS = {"classification": "predictions", "segmentation": "segmentation"}


class Planner:
    """A configuration, its definitions, and the plan that grows.

    Definitions are resolved on first use, so that only what experiments reference is checked.
    """

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.defined = Definitions(config)
        self.extra = self.defined.extra
        self.plan = Plan(config)
        self.runtime = {
            "seed": config["seed"],
            "device": config["device"],
            "numerics": config["numerics"],
            "plugins": list(self.extra),
        }
        self.metrics = [
            self.defined.plugin(f"metrics[{i}]", "metric", entry)
            for i, entry in enumerate(config["metrics"])
        ]

    def add(self, rule: str, key: tuple[str, ...], inputs: dict, work: dict) -> PlannedJob:
        """The job of a rule and key: a new one, or the one that is there if its work is the same.

        Raises:
            CertbenchError: Another job of that name is planned already.
        """
        known = self.plan.jobs.get((rule, key))
        if known is None:
            files = {k: [v] if isinstance(v, str) else list(v) for k, v in inputs.items()}
            known = PlannedJob(rule, key, files, paths.fill(rule, key), work)
            self.plan.jobs[rule, key] = known
        elif known.work != work:
            raise CertbenchError(
                f"two different {rule} jobs would write {next(iter(known.outputs.values()))}",
                where="config",
                remedy="rename one of the definitions",
            )
        return known
