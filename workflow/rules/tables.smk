# Tables and figures: pure functions of the rows.
rule table:
    input:
        unpack(inputs("table")),
    output:
        **paths.OUTPUTS["table"],
    log:
        paths.log("table"),
    benchmark:
        paths.benchmark("table")
    threads: PLAN.resources("table")["threads"]
    resources:
        **PLAN.resources("table"),
    params:
        work=work("table"),
    conda:
        "../../environment.yml"
    message:
        "table of {wildcards.experiment}"
    script:
        "../scripts/table.py"


rule figure:
    input:
        unpack(inputs("figure")),
    output:
        **paths.OUTPUTS["figure"],
    log:
        paths.log("figure"),
    benchmark:
        paths.benchmark("figure")
    threads: PLAN.resources("figure")["threads"]
    resources:
        **PLAN.resources("figure"),
    params:
        work=work("figure"),
    conda:
        "../../environment.yml"
    message:
        "figure {wildcards.figure}"
    script:
        "../scripts/figure.py"
