# A model is trained by a recipe, or fetched from a source; then it predicts.
rule train:
    input:
        unpack(inputs("train")),
    output:
        **paths.OUTPUTS["train"],
    log:
        paths.log("train"),
    benchmark:
        paths.benchmark("train")
    wildcard_constraints:
        model=only(PLAN.models("train")),
    conda:
        "../../environment.yml"
    threads: PLAN.resources("train")["threads"]
    resources:
        **PLAN.resources("train"),
    params:
        work=work("train"),
    message:
        "train {wildcards.model}"
    script:
        "../scripts/train.py"


rule fetch:
    input:
        unpack(inputs("fetch")),
    output:
        **paths.OUTPUTS["fetch"],
    log:
        paths.log("fetch"),
    benchmark:
        paths.benchmark("fetch")
    wildcard_constraints:
        model=only(PLAN.models("fetch")),
    conda:
        "../../environment.yml"
    threads: PLAN.resources("fetch")["threads"]
    resources:
        **PLAN.resources("fetch"),
    params:
        work=work("fetch"),
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
    conda:
        "../../environment.yml"
    threads: PLAN.resources("predict")["threads"]
    resources:
        **PLAN.resources("predict"),
    params:
        work=work("predict"),
    message:
        "predict: {wildcards.model} on {wildcards.dataset}, {wildcards.variant}"
    script:
        "../scripts/predict.py"
