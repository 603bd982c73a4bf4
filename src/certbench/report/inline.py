"""Drawings inside a page: one document, its colours, no clash of identifiers."""

from __future__ import annotations

import re

from certbench.figures import style

_PROLOGUE = re.compile(r"^.*?(?=<svg\b)", re.DOTALL)
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_SIZE = re.compile(r"<svg\b[^>]*?>", re.DOTALL)
_BOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')
_ID = re.compile(r'\s\bid="([^"]+)"')
_REFERENCE = re.compile(r'(href="#|url\(#)([^")]+)(?=[")])')

THEME = {
    style.INK: "var(--ink)",
    style.MUTED: "var(--muted)",
    style.GRID: "var(--line)",
    style.PAPER: "var(--paper)",
}
"""Colours of the drawings that follow the page's light or dark mode."""


def svg(text: str, name: str, label: str) -> tuple[str, int]:
    """An SVG file as an element of a page.

    Identifiers get the figure's name, so that two drawings never refer to each other's parts.

    Args:
        text: The file.
        name: Id of the figure.
        label: What it shows, for readers who cannot see it.

    Returns:
        The element, and its natural width in CSS pixels.
    """
    from markupsafe import escape

    body = _METADATA.sub("", _PROLOGUE.sub("", text, count=1))
    box = _BOX.search(body)
    width, height = (float(box[1]), float(box[2])) if box else (345.6, 216.0)
    head = (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    body = _SIZE.sub(head.replace("\\", "\\\\"), body, count=1)
    body = _REFERENCE.sub(rf"\g<1>{name}-\g<2>", body)
    seen: set[str] = set()

    def own(match: re.Match) -> str:
        # Equal images have equal identifiers, which nothing refers to.
        if match[1] in seen:
            return ""
        seen.add(match[1])
        return f' id="{name}-{match[1]}"'

    body = _ID.sub(own, body)
    for colour, variable in THEME.items():
        body = re.sub(rf"(?<=: ){colour}\b", variable, body, flags=re.IGNORECASE)
    return body.strip(), round(width * 96 / 72)
