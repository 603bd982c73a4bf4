# One self-contained page.
rule report:
    input:
        unpack(inputs("report")),
    output:
        **paths.OUTPUTS["report"],
    log:
        paths.log("report"),
    benchmark:
        paths.benchmark("report")
    conda:
        "../../environment.yml"
    threads: PLAN.resources("report")["threads"]
    resources:
        **PLAN.resources("report"),
    params:
        work=work("report"),
    message:
        "report"
    script:
        "../scripts/report.py"
