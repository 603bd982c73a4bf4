"""From the configuration to all work, before anything runs.

:func:`make` checks the configuration and enumerates every job with its inputs, outputs and complete
work description. The Snakefile, the cost estimate and the doctor read this plan; nothing is probed
while planning, and no torch is imported. The number of jobs is known in advance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from certbench import config as configuration
from certbench import params as parameters
from certbench import paths
from certbench.errors import CertbenchError, did_you_mean

GPU_RULES = ("train", "predict", "collect", "fit", "attack")


@dataclass(frozen=True)
class PlannedJob:
    """One job: a rule with its wildcard values, files and work.

    Attributes:
        rule: Rule name.
        key: Wildcard values in the order of :func:`certbench.paths.wildcards`.
        inputs: Input files by name.
        outputs: Output files by name.
        work: Everything the job depends on (JSON values); a change makes it run again.
    """

    rule: str
    key: tuple[str, ...]
    inputs: dict[str, list[str]]
    outputs: dict[str, str]
    work: dict[str, Any]

    @property
    def work_text(self) -> str:
        """The work as canonical JSON: equal work gives equal text."""
        return parameters.canonical(self.work)


@dataclass
class Plan:
    """All work of a configuration.

    Attributes:
        config: The checked configuration with defaults.
        jobs: Every job, by rule and wildcard values.
        experiments: For each experiment, the keys of its jobs by rule (predict, collect, ...).
    """

    config: dict[str, Any]
    jobs: dict[tuple[str, tuple[str, ...]], PlannedJob] = field(default_factory=dict)
    experiments: dict[str, dict[str, list[PlannedJob]]] = field(default_factory=dict)

    def job(self, rule: str, wildcards: Any) -> PlannedJob:
        """The job of a rule for Snakemake's wildcards (any object with those attributes).

        Raises:
            CertbenchError: The configuration plans no such job.
        """
        key = tuple(str(getattr(wildcards, name)) for name in paths.wildcards(rule))
        try:
            return self.jobs[rule, key]
        except KeyError:
            known = {"/".join(k) for r, k in self.jobs if r == rule}
            raise CertbenchError(
                f"the configuration plans no {rule} job '{'/'.join(key)}'",
                where="target",
                remedy=did_you_mean("/".join(key), known),
            ) from None

    def targets(self) -> list[str]:
        """What ``rule all`` asks for: the report, and every table and figure.

        Snakemake does not make a deleted file again that only an up-to-date target needs, so tables
        and figures are targets of their own.
        """
        shown = ("table", "figure", "report")
        return [
            path
            for (rule, _), job in self.jobs.items()
            if rule in shown
            for path in job.outputs.values()
        ]

    def counts(self) -> Counter:
        """Number of jobs by rule."""
        return Counter(rule for rule, _ in self.jobs)

    def models(self, rule: str) -> list[str]:
        """Ids of the models that a rule (``train`` or ``fetch``) makes."""
        return [key[0] for r, key in self.jobs if r == rule]

    def verdicts(self) -> list[str]:
        """The audit verdict files of all experiments."""
        return [job.outputs["verdict"] for (rule, _), job in self.jobs.items() if rule == "audit"]

    def resources(self, rule: str) -> dict[str, int]:
        """Threads, memory, runtime, GPUs and batch size of a rule's jobs (constant per rule)."""
        group = "gpu_jobs" if rule in GPU_RULES else "cpu_jobs"
        asked = dict(self.config["resources"][group])
        if rule == "train":
            asked |= self.config["resources"].get("train_jobs", {})
        return {**asked, "batch_size": self.config["batch_size"]}


def make(config: Mapping[str, Any]) -> Plan:
    """Check a configuration and enumerate all of its work.

    Args:
        config: The merged configuration, as from YAML.

    Raises:
        CertbenchError: The first thing that is wrong, with its key and the remedy.
    """
    from certbench.planning import experiments, presentation
    from certbench.planning.planner import Planner

    planner = Planner(configuration.check(config))
    experiments.add_experiments(planner)
    presentation.add_figures(planner)
    presentation.add_report(planner)
    return planner.plan
