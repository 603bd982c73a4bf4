"""Certified accuracy of a reproduction beside the published numbers.

The published numbers are a CSV file with the columns ``name, sigma, n, images, radius,
certified_accuracy, source``: one row for each radius, ``n`` the samples per certificate. They are
points at the radii that were published, with the interval that their number of images means;
nothing is interpolated between them. The workflow does not watch this file: delete the figure after
editing it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbench.errors import CertbenchError
from certbench.figures import style, wording
from certbench.params import param

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from certbench.figures.data import FigureData

version = 2

needs = ("certificates",)

section = "certificates"

about = (
    "A reproduction beside published numbers: lines are certified accuracy measured here with its "
    "band, points the published values with intervals from their number of images."
)

COLUMNS = ("name", "sigma", "n", "images", "radius", "certified_accuracy", "source")


@dataclass(frozen=True)
class Params:
    """What is compared."""

    published: str = param(help="CSV file with the published numbers")
    confidence: float = param(0.95, help="level of the intervals", above=0, below=1)
    note: str = param("", help="what differs from the published setting, shown below the figure")


def read_published(path: str | Path) -> pd.DataFrame:
    """The published numbers.

    Raises:
        CertbenchError: The file is missing, lacks a column, or holds no shares.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(path)
    except FileNotFoundError as error:
        raise CertbenchError(
            "does not exist", where=str(path), remedy="paths are relative to the working folder"
        ) from error
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise CertbenchError(f"lacks the columns {', '.join(missing)}", where=str(path))
    share = frame["certified_accuracy"]
    if not share.between(0, 1).all() or not frame["radius"].ge(0).all():
        raise CertbenchError(
            "certified_accuracy must lie in [0, 1], radius above 0", where=str(path)
        )
    return frame


def compare(certificates: pd.DataFrame, published: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Both at the published radii: one row for each published number and defended model.

    A published number belongs to the certificates with its sigma.

    Args:
        certificates: Rows of kind ``certificates`` with the column ``sigma``.
        published: Rows of :func:`read_published`.
        confidence: Level of the intervals.

    Returns:
        Columns ``model, defense, variant_id, name, sigma, radius, ours, ours_low, ours_high,
        ours_images, ours_n, ours_alpha, published, published_low, published_high,
        published_images, published_n, difference, p_value`` (of "the same share", Fisher's exact
        test: the two sides have images of their own).
    """
    import numpy as np
    import pandas as pd
    from scipy.stats import fisher_exact

    from certbench.certify.intervals import binomial_interval
    from certbench.metrics.certification import certified_accuracy, certified_accuracy_interval

    made: list[dict[str, Any]] = []
    keys = ["model", "defense", "variant_id"]
    for names, rows in certificates.groupby(keys, sort=False, dropna=False):
        close = np.isclose(published["sigma"], float(rows["sigma"].iloc[0]))
        for point in published[close].to_dict("records"):
            low, high = certified_accuracy_interval(rows, point["radius"], confidence)
            share, images = point["certified_accuracy"], int(point["images"])
            held = round(share * images)
            theirs = binomial_interval(held, images, confidence)
            ours = float(certified_accuracy(rows, point["radius"]))
            here = round(ours * len(rows))
            table = [[here, len(rows) - here], [held, images - held]]
            made.append(
                {
                    **dict(zip(keys, names, strict=True)),
                    "name": point["name"],
                    "sigma": point["sigma"],
                    "radius": point["radius"],
                    "ours": ours,
                    "ours_low": float(low),
                    "ours_high": float(high),
                    "ours_images": len(rows),
                    "ours_n": int(rows["n"].max()),
                    "ours_alpha": float(rows["alpha"].iloc[0]),
                    "published": share,
                    "published_low": float(theirs[0]),
                    "published_high": float(theirs[1]),
                    "published_images": images,
                    "published_n": int(point["n"]),
                    "difference": ours - share,
                    "p_value": float(fisher_exact(table).pvalue),
                }
            )
    return pd.DataFrame(made)


def draw(data: FigureData, params: Params) -> Figure:
    """Our curves as steps, the published numbers as points."""
    import numpy as np

    from certbench.certify.intervals import binomial_interval
    from certbench.figures.certified_curve import cap, steps

    published = read_published(params.published)
    frame = data.certificates
    if len(frame):
        frame = frame[frame["sigma"].notna()]
    if frame.empty:
        return style.nothing("No certificates yet")
    pairs = data.looks.sort(zip(frame["model"], frame["defense"], strict=True))
    key: list[Any] = []
    for pair in pairs:
        look, rows = data.looks.of(*pair), _of(frame, pair)
        _, samples = cap(rows)
        text = f"{look.label}: {len(rows)} images, n = {samples:,}"
        key.append(style.handle(look, text, marker="", linestyle=look.line))
    names = list(dict.fromkeys(published["name"]))
    for name in names:
        points = published[published["name"].eq(name)]
        text = f"{name}: {points['images'].iloc[0]} images, n = {int(points['n'].iloc[0]):,}"
        key.append(style.grey("o", f"published: {text}"))
    key += [style.grey("", note) for note in _notes(data, params)]
    sheet = style.Sheet()
    place = wording.place(frame["dataset"].iloc[0], frame["split"].iloc[0])
    norm = wording.norm(frame["threat_norm"].iloc[0])
    axes = sheet.panel(
        f"Certified accuracy on {place}, beside published numbers",
        2.6,
        xlabel=f"certified {norm} radius (pixel values in [0, 1])",
        key=key,
    )
    for pair in pairs:
        rows, look = _of(frame, pair), data.looks.of(*pair)
        radii, counts = steps(rows)
        low, high = binomial_interval(counts, len(rows), params.confidence)
        axes.plot(
            np.append(radii, radii[-1]),
            np.append(counts / len(rows), 0.0),
            drawstyle="steps-pre",
            color=look.colour,
            linestyle=look.line,
        )
        axes.fill_between(radii, low, high, step="pre", color=look.colour, alpha=0.16, linewidth=0)
        largest, samples = cap(rows)
        if largest:
            axes.axvline(largest, color=look.colour, linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
    for point in published.to_dict("records"):
        images = int(point["images"])
        held = round(point["certified_accuracy"] * images)
        low, high = binomial_interval(held, images, params.confidence)
        axes.plot([point["radius"]] * 2, [low, high], color=style.MUTED, linewidth=1.3, zorder=3.5)
        axes.plot(point["radius"], point["certified_accuracy"], "o", color=style.MUTED, zorder=4)
    right = 1.04 * max(frame["radius"].max(), published["radius"].max())
    axes.set(xlim=(-0.02 * right, right), ylim=(0, 1.02))
    style.percent_axis(axes.yaxis)
    style.despine(axes)
    return sheet.done()


def _notes(data: FigureData, params: Params) -> list[str]:
    """What a reader must know before comparing: the images, and what the configuration says."""
    from certbench.results import rows

    blocks = [rows.provenance(path)["work"]["dataset"] for path in data.files("certificates")]
    stored = sorted({block["plugin"] for block in blocks} - {"cifar10", "imagenet"})
    notes = [
        f"images: {block['params'].get('title') or block['id']} ({block['plugin']})"
        for block in blocks
        if block["plugin"] in stored
    ]
    return [*dict.fromkeys(notes), *([params.note] if params.note else [])]


def _of(frame: pd.DataFrame, pair: tuple[str, str | None]) -> pd.DataFrame:
    return frame[frame["model"].eq(pair[0]) & frame["defense"].eq(pair[1])]


def write_comparison(
    certificates: str | Path,
    published: str | Path,
    stem: str | Path,
    confidence: float = 0.95,
    preface: str = "",
) -> pd.DataFrame:
    """Write ``<stem>.csv`` and ``<stem>.md``: the comparison, and where both sides come from.

    Args:
        certificates: A file of kind ``certificates``.
        published: CSV file of :func:`read_published`.
        stem: Path without ending.
        confidence: Level of the intervals.
        preface: Markdown before the table: what was run, and what differs.
    """
    from certbench.figures.data import plain
    from certbench.results import rows
    from certbench.results.atomic import write_text

    theirs = read_published(published)
    frame = plain(rows.read(certificates, "certificates").to_pandas())
    footer = rows.provenance(certificates)
    made = compare(frame, theirs, confidence)
    write_text(f"{stem}.csv", made.to_csv(index=False))
    page = _page(made, frame, footer, theirs, confidence)
    write_text(f"{stem}.md", f"{preface.strip()}\n\n{page}" if preface else page)
    return made


def _page(made, frame, footer, theirs, confidence: float) -> str:
    work = footer["work"]
    level = f"{100 * confidence:g} %"
    lines = [
        f"| radius | here ({level} interval) | published ({level} interval) | difference | p |",
        "|---|---|---|---|---|",
    ]
    for row in made.to_dict("records"):
        lines.append(
            f"| {row['radius']:g} | {row['ours']:.3f} ({row['ours_low']:.3f} to "
            f"{row['ours_high']:.3f}) | {row['published']:.3f} ({row['published_low']:.3f} to "
            f"{row['published_high']:.3f}) | {row['difference']:+.3f} | "
            f"{row['p_value']:.2g} |"
        )
    collected = footer.get("collected", {})
    identity = collected.get("identity", {})
    facts = {
        "images": f"{len(frame)} of {work['dataset']['id']}, split {work['dataset']['split']}, "
        f"dataset plug-in `{work['dataset']['plugin']}`"
        + (f" ({title})" if (title := work["dataset"]["params"].get("title")) else ""),
        "model": str(work["model"]),
        "defence": f"`{work['defense']['name']}` version {work['defense']['version']}, collect "
        f"{work['defense']['collect']}, decide {work['defense']['decide']}",
        "abstentions": f"{int(frame['abstain'].sum())} of {len(frame)}",
        "average certified radius": f"{frame['radius'].where(frame['correct'], 0.0).mean():.4f}",
        "collection": f"{collected.get('device_time_s', 0):.0f} s on "
        f"{', '.join(collected.get('devices', ['an unknown device']))} in "
        f"{collected.get('jobs', 0)} jobs, {int(frame['n_forward'].sum()):,} forward passes"
        + (f", numerics {numerics}" if (numerics := identity.get("numerics")) else ""),
        "certbench": f"{footer['certbench']}, commit {footer.get('commit')}, work "
        f"{footer['work_hash']}",
    }
    lines += ["", "| here | |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts.items())]
    lines += ["", "Sources of the published numbers:", ""]
    for point in theirs.to_dict("records"):
        lines.append(f"- {point['name']}, radius {point['radius']:g}: {point['source']}")
    return "\n".join(lines) + "\n"
