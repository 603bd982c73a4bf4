# The plan: every job with its files and its work, made before anything runs.
import sys

from certbench.cluster import array_task

array_task.become()

from certbench import paths, plan as planning
from certbench.cluster import preflight
from certbench.errors import CertbenchError
from certbench.report.verdict import judge, report_partly


def refused(make, *arguments):
    """Call, and end with one clear message where the configuration is wrong."""
    try:
        return make(*arguments)
    except CertbenchError as error:
        sys.exit(f"certbench: {error}")


PLAN = refused(planning.make, config)


wildcard_constraints:
    **paths.CONSTRAINTS,


def inputs(rule):
    return lambda wildcards: refused(PLAN.job, rule, wildcards).inputs


def work(rule):
    return lambda wildcards: refused(PLAN.job, rule, wildcards).work_text


def only(names):
    """A wildcard constraint: one of these names (or nothing, where there are none)."""
    return "|".join(names) or "(?!)"
