# A model is trained by a recipe, or fetched from a source; then it predicts.
rule train:
    input:
        unpack(inputs("train")),
    output:
        **paths.OUTPUTS["train"],
    wildcard_constraints:
        model=only(PLAN.models("train")),
    log:
        paths.log("train"),
    benchmark:
        paths.benchmark("train")
    threads: PLAN.resources("train")["threads"]
    resources:
        **PLAN.resources("train"),
    params:
        work=work("train"),
    conda:
        "../../environment.yml"
    message:
        "train {wildcards.model}"
    script:
        "../scripts/train.py"


rule fetch:
    input:
        unpack(inputs("fetch")),
    output:
        **paths.OUTPUTS["fetch"],
    wildcard_constraints:
        model=only(PLAN.models("fetch")),
    log:
        paths.log("fetch"),
    benchmark:
        paths.benchmark("fetch")
    threads: PLAN.resources("fetch")["threads"]
    resources:
        **PLAN.resources("fetch"),
    params:
        work=work("fetch"),
    conda:
        "../../environment.yml"
    message:
        "fetch {wildcards.model}"
    script:
        "../scripts/fetch.py"


rule predict:
    input:
        unpack(inputs("predict")),
    output:
        **paths.OUTPUTS["predict"],
    log:
        paths.log("predict"),
    benchmark:
        paths.benchmark("predict")
    threads: PLAN.resources("predict")["threads"]
    resources:
        **PLAN.resources("predict"),
    params:
        work=work("predict"),
    conda:
        "../../environment.yml"
    message:
        "predict: {wildcards.model} on {wildcards.dataset}, {wildcards.variant}"
    script:
        "../scripts/predict.py"
