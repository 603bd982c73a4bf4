"""The job ``report``: one self-contained page from tables, figures, cards and verdicts.

The page asks nothing of the network and works without scripts. It is a pure function of its
inputs: no date, no machine name but those the results state.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbench.errors import CertbenchError
from certbench.figures import wording
from certbench.results.atomic import write_text

if TYPE_CHECKING:
    from certbench.job import Job
    from certbench.plan import Plan
    from certbench.report.sources import Sources

PARTIAL = Path("results/report-partial.html")
"""Where a page goes that lacks something: never where the workflow would take it for the report."""

SECTIONS = ("certificates", "attacks", "shift", "gallery", "models", "cost", "more")
"""Sections that figures may belong to."""


def run(job: Job) -> None:
    """Build the report; writes ``html``."""
    from certbench.report import sources

    write_text(job.output("html"), page(sources.read(job.inputs, job.work)))


def build(plan: Plan, partial: bool = False) -> tuple[Path, list[str]]:
    """Build the report of a plan from the files that are there, without running anything.

    Args:
        plan: The plan of the configuration.
        partial: Whether a page may lack something. It is then written to :data:`PARTIAL`, and its
            figures are drawn anew from the data that exist.

    Returns:
        The page written, and the planned files that it lacks.

    Raises:
        CertbenchError: Something is missing and ``partial`` is false.
    """
    from certbench.report import sources

    job = plan.jobs["report", ()]
    inputs = {name: [Path(path) for path in paths] for name, paths in job.inputs.items()}
    if partial:
        found = sources.read({**inputs, "figures": []}, job.work)
        found.svgs = _drawn(plan, found)
        found.missing += [str(path) for path in inputs["figures"] if path.stem not in found.svgs]
    else:
        found = sources.read(inputs, job.work)
    if found.missing and not partial:
        listed = "\n     ".join(found.missing[:10])
        more = f"\n     and {len(found.missing) - 10} more" if len(found.missing) > 10 else ""
        raise CertbenchError(
            f"{wording.plural(len(found.missing), 'file')} of the report "
            f"{'is' if len(found.missing) == 1 else 'are'} not there yet:\n     {listed}{more}",
            where="report",
            remedy="run the workflow, or build what exists with: certbench report --partial",
        )
    target = PARTIAL if found.missing else Path(job.outputs["html"])
    write_text(target, page(found))
    return target, found.missing


def _drawn(plan: Plan, found: Sources) -> dict[str, str]:
    """Figures drawn from what exists; one that cannot be drawn is left out and said so."""
    from certbench import plugins
    from certbench.figures import drawing

    extra = tuple(plan.config["plugins"])
    drawn = {}
    for (rule, key), job in plan.jobs.items():
        if rule != "figure":
            continue
        inputs = {need: [Path(path) for path in paths] for need, paths in job.inputs.items()}
        if not any(path.is_file() for paths in inputs.values() for path in paths):
            continue
        try:
            drawn[key[0]] = drawing.svg_text(
                inputs, job.work, lambda kind, name: plugins.load(kind, name, extra)
            )
        except CertbenchError as error:
            found.missing.append(f"{job.outputs['svg']} ({error.problem})")
    return drawn


def page(found: Sources) -> str:
    """The page as HTML text.

    Args:
        found: What was read.
    """
    import jinja2

    here = resources.files("certbench.report")

    def text(name: str) -> str:
        return here.joinpath(name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(text),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "duration": wording.duration,
        "number": wording.number,
        "percent": wording.percent,
        "threat": wording.threat,
        "variant": lambda one: next(iter(wording.variants([one])[0].values())),
    }
    made = environment.get_template("page.html").render(
        css=jinja2.utils.markupsafe.Markup(text("page.css")),
        js=jinja2.utils.markupsafe.Markup(text("page.js")),
        **context(found),
    )
    return "\n".join(line.rstrip() for line in made.splitlines() if line.strip()) + "\n"


def context(found: Sources) -> dict[str, Any]:
    """Everything the template shows, computed."""
    from certbench.report import crosstable, details, findings, remarks, segmentation, shift
    from certbench.report.numbers import Numbers

    # Pixels are not images: their numbers stand in tables of their own.
    of_pixels = found.tables["task"].eq("segmentation")
    numbers, pixels = Numbers(found.tables[~of_pixels]), Numbers(found.tables[of_pixels])
    audit = details.audit(found)
    checks = details.checks(found)
    made = findings.build(found, numbers)
    headline, said = findings.headline(made, len(audit.violations), audit.sound)
    headline += segmentation.sentences(found, pixels)
    return {
        "title": found.title,
        "experiments": found.experiments,
        "missing": found.missing,
        "headline": headline,
        "said": said,
        "findings": made,
        "cross": crosstable.build(found, numbers),
        "audit": audit,
        "attacked": details.attacked(found),
        "checks": checks,
        "alarms": sum(check["alarm"] for check in checks),
        "certificates": details.certificates(found, numbers),
        "certificate_columns": details.CERTIFICATE_COLUMNS,
        "comparisons": details.comparisons(found),
        "shift": shift.build(found),
        "figures": _figures(found),
        "datasets": found.datasets,
        "segmentation": segmentation.build(found, pixels),
        "models": details.models(found, numbers, pixels),
        "costs": details.costs(found),
        "provenance": details.provenance(found),
        "config": details.config_text(found),
        "remarks": remarks.build(found, numbers),
        "glossary": remarks.GLOSSARY,
        "verdict_words": wording.VERDICTS,
        "images": _image_credit(found),
    }


def _figures(found: Sources) -> dict[str, list[dict[str, Any]]]:
    """Drawn figures by section of the page."""
    from markupsafe import Markup

    from certbench import plugins
    from certbench.report import inline

    sections: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
    extra = tuple(found.config["plugins"])
    for figure in found.figures:
        module = plugins.load("figure", figure["type"], extra)
        section = getattr(module, "section", "more")
        about = getattr(module, "about", "")
        if section == "gallery" and found.config["report"]["embed_images"] == "none":
            continue
        if figure["id"] not in found.svgs:
            continue
        caption = figure["caption"] or about
        element, width = inline.svg(found.svgs[figure["id"]], figure["id"], caption)
        sections[section if section in SECTIONS else "more"].append(
            {
                "id": figure["id"],
                "svg": Markup(element),
                "width": width,
                "caption": figure["caption"],
                "about": about,
            }
        )
    return sections


def _image_credit(found: Sources) -> list[str]:
    allowed = found.config["report"]["embed_images"]
    return [
        f"{card['title']}: {card['source']}. Licence: {card['licence']}."
        for card in found.datasets
        if allowed == "all" or (allowed == "redistributable" and card["redistributable"])
    ]
