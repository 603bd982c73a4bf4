# Table of contents. What is measured stands in config/, where it runs in profiles/, how in src/.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


include: "workflow/rules/plan.smk"
include: "workflow/rules/datasets.smk"
include: "workflow/rules/variants.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/collect.smk"
include: "workflow/rules/decide.smk"
include: "workflow/rules/attacks.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        PLAN.targets(),


onstart:
    refused(preflight.check, PLAN, workflow)


onsuccess:
    judge(PLAN)


onerror:
    preflight.explain_failure()
    report_partly(PLAN)
