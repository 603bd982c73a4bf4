# Images of variants that are stored: made once, sharded by items.
rule materialise:
    input:
        unpack(inputs("materialise")),
    output:
        **paths.OUTPUTS["materialise"],
    log:
        paths.log("materialise"),
    benchmark:
        paths.benchmark("materialise")
    conda:
        "../../environment.yml"
    threads: PLAN.resources("materialise")["threads"]
    resources:
        **PLAN.resources("materialise"),
    params:
        work=work("materialise"),
    message:
        "materialise {wildcards.variant} of {wildcards.dataset}"
    script:
        "../scripts/materialise.py"
