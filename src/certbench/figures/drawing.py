"""The job ``figure``: draw one figure from its data, as SVG and PNG.

A figure plug-in defines ``version``, ``Params``, ``needs`` (what it reads, see
:class:`certbench.figures.data.FigureData`) and ``draw(data, params) -> matplotlib Figure``;
optionally ``section``, the section of the report it belongs to, and ``about``, one sentence on how
to read it. Equal inputs give equal files, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbench.figures import style
from certbench.figures.data import FigureData
from certbench.params import build
from certbench.results.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from certbench.job import Job

PNG_DPI = 200


def run(job: Job) -> None:
    """Draw the figure of a job; writes ``svg`` and ``png``."""
    with style.applied(job.work["figure"]["id"]):
        figure = draw(job.inputs, job.work, job.plugin)
        with atomic_path(job.output("svg")) as path:
            save(figure, path)
        with atomic_path(job.output("png")) as path:
            save(figure, path)


def draw(
    inputs: Mapping[str, Sequence[Path]],
    work: Mapping[str, Any],
    load: Callable[[str, str], Any],
) -> Figure:
    """Draw a figure; missing input files make it emptier, never fail.

    Call it inside ``style.applied(...)``, and save the figure there.

    Args:
        inputs: Files by need.
        work: The work of a ``figure`` job.
        load: ``(kind, name) -> plug-in module``.
    """
    block = work["figure"]
    module = load("figure", block["name"])
    params = build(module.Params, block["params"], f"figures.{block['id']}")
    needs = getattr(module, "needs", ("tables",))
    return module.draw(FigureData({n: inputs.get(n, []) for n in needs}, work, load), params)


def svg_text(
    inputs: Mapping[str, Sequence[Path]], work: Mapping[str, Any], load: Callable[[str, str], Any]
) -> str:
    """The SVG of a figure, without writing a file."""
    import io

    with style.applied(work["figure"]["id"]):
        made = io.StringIO()
        save(draw(inputs, work, load), made, "svg")
        return made.getvalue()


def save(figure: Figure, target: Any, kind: str | None = None) -> None:
    """Save a figure without date and version, so that equal figures are equal files."""
    kind = kind or Path(target).suffix.lstrip(".")
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(target, format=kind, dpi=PNG_DPI, metadata=metadata)
