"""Hand the rule to the package."""

from certbench.job import run_rule

run_rule("materialise", snakemake)  # noqa: F821
