# Merge the shards and decide: no model call, all variants at once. Then the audit.
rule decide:
    input:
        unpack(inputs("decide")),
    output:
        **paths.OUTPUTS["decide"],
    log:
        paths.log("decide"),
    benchmark:
        paths.benchmark("decide")
    conda:
        "../../environment.yml"
    threads: PLAN.resources("decide")["threads"]
    resources:
        **PLAN.resources("decide"),
    params:
        work=work("decide"),
    message:
        "decide: {wildcards.defense} of {wildcards.model} for {wildcards.experiment}"
    script:
        "../scripts/decide.py"


rule audit:
    input:
        unpack(inputs("audit")),
    output:
        **paths.OUTPUTS["audit"],
    log:
        paths.log("audit"),
    benchmark:
        paths.benchmark("audit")
    conda:
        "../../environment.yml"
    threads: PLAN.resources("audit")["threads"]
    resources:
        **PLAN.resources("audit"),
    params:
        work=work("audit"),
    message:
        "audit {wildcards.experiment}"
    script:
        "../scripts/audit.py"
