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
    conda:
        "../../environment.yml"
    threads: PLAN.resources("table")["threads"]
    resources:
        **PLAN.resources("table"),
    params:
        work=work("table"),
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
    conda:
        "../../environment.yml"
    threads: PLAN.resources("figure")["threads"]
    resources:
        **PLAN.resources("figure"),
    params:
        work=work("figure"),
    message:
        "figure {wildcards.figure}"
    script:
        "../scripts/figure.py"
