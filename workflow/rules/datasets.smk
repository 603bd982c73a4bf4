# Read and check every image that will be used, once, before any model runs.
rule prepare:
    input:
        unpack(inputs("prepare")),
    output:
        **paths.OUTPUTS["prepare"],
    log:
        paths.log("prepare"),
    benchmark:
        paths.benchmark("prepare")
    conda:
        "../../environment.yml"
    threads: PLAN.resources("prepare")["threads"]
    resources:
        **PLAN.resources("prepare"),
    params:
        work=work("prepare"),
    message:
        "prepare dataset {wildcards.source}, {wildcards.split}"
    script:
        "../scripts/prepare.py"
