# Model calls of certified defences: sharded by items and by samples.
rule collect:
    input:
        unpack(inputs("collect")),
    output:
        **paths.OUTPUTS["collect"],
    log:
        paths.log("collect"),
    benchmark:
        paths.benchmark("collect")
    conda:
        "../../environment.yml"
    threads: PLAN.resources("collect")["threads"]
    resources:
        **PLAN.resources("collect"),
    params:
        work=work("collect"),
    message:
        "collect: {wildcards.defense} of {wildcards.model} on {wildcards.variant}, {wildcards.item_range} {wildcards.sample_range}"
    script:
        "../scripts/collect.py"
