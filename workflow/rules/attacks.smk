# Attacks: an optional fit on training data, then the attack itself, sharded by items.
rule fit:
    input:
        unpack(inputs("fit")),
    output:
        **paths.OUTPUTS["fit"],
    log:
        paths.log("fit"),
    benchmark:
        paths.benchmark("fit")
    conda:
        "../../environment.yml"
    threads: PLAN.resources("fit")["threads"]
    resources:
        **PLAN.resources("fit"),
    params:
        work=work("fit"),
    message:
        "fit {wildcards.attack} on {wildcards.model}"
    script:
        "../scripts/fit.py"


rule attack:
    input:
        unpack(inputs("attack")),
    output:
        **paths.OUTPUTS["attack"],
    log:
        paths.log("attack"),
    benchmark:
        paths.benchmark("attack")
    conda:
        "../../environment.yml"
    threads: PLAN.resources("attack")["threads"]
    resources:
        **PLAN.resources("attack"),
    params:
        work=work("attack"),
    message:
        "attack: {wildcards.attack} on {wildcards.defense} of {wildcards.model}, {wildcards.variant}"
    script:
        "../scripts/attack.py"
