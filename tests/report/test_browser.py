"""The page in a real browser: no error, nothing wider than the screen, readable without scripts."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium, which is not installed"),
]

# Measured in the page after it has loaded: what sticks out of the screen, what covers what.
PROBE = """<script>
addEventListener("load", () => {
  const width = document.documentElement.clientWidth;
  const scrolls = (e) => e.closest(".scroll, .drawing, nav, pre");
  const wide = [...document.querySelectorAll("body *")].filter(
    (e) => !scrolls(e) && e.getBoundingClientRect().right > width + 0.5);
  const small = [...document.querySelectorAll("main *")].filter(
    (e) => e.childElementCount === 0 && e.textContent.trim()
      && !e.closest("svg, details:not([open])")
      && parseFloat(getComputedStyle(e).fontSize) < 11);
  const buttons = document.querySelectorAll("table.cross th button");
  let sorted = "none";
  if (buttons.length) {
    buttons[0].click();
    const cells = [...document.querySelector("table.cross").tBodies[0].rows]
      .map((r) => r.cells[1].dataset.sort).filter((v) => v !== undefined).map(Number);
    sorted = cells.every((v, i) => i === 0 || cells[i - 1] >= v);
  }
  document.body.setAttribute("data-probe", JSON.stringify({
    page: document.documentElement.scrollWidth, width, sorted,
    wide: wide.slice(0, 5).map((e) => e.tagName + "." + e.className),
    small: small.slice(0, 5).map((e) => e.tagName + " " + e.textContent.slice(0, 40)),
    drawings: document.querySelectorAll("figure svg").length}));
});
</script></body>"""


def _open(path: Path, width: int, profile: Path, *more: str) -> tuple[str, str]:
    """The page's document after loading, and what the browser said."""
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            "--v=0",
            f"--user-data-dir={profile}",
            f"--window-size={width},900",
            *more,
            "--dump-dom",
            path.resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return done.stdout, done.stderr


def _probed(folder: Path, width: int) -> tuple[dict, str]:
    import html
    import json

    text = Path("results/report.html").read_text(encoding="utf-8")
    # Headless windows have a smallest width; a frame of the wanted width has none.
    inner = folder / "inner.html"
    inner.write_text(text.replace("</body>", PROBE), encoding="utf-8")
    outer = folder / "outer.html"
    outer.write_text(
        f'<!doctype html><body style="margin:0"><iframe id="f" src="inner.html" '
        f'style="border:0;width:{width}px;height:900px"></iframe><script>'
        'addEventListener("load", () => { document.body.setAttribute("data-probe", '
        'document.getElementById("f").contentDocument.body.getAttribute("data-probe")); });'
        "</script></body>",
        encoding="utf-8",
    )
    dom, said = _open(outer, 1300, folder / "profile", "--allow-file-access-from-files")
    match = re.search(r'data-probe="([^"]*)"', dom)
    assert match, dom[:500]
    return json.loads(html.unescape(match[1])), said


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen_and_nothing_fails(study, tmp_path, width):
    probe, said = _probed(tmp_path, width)
    assert probe["width"] == width
    assert probe["page"] <= width and probe["wide"] == []
    assert probe["small"] == []
    assert probe["drawings"] == len(study.config["figures"])
    assert probe["sorted"] is True
    complaints = [line for line in said.splitlines() if "CONSOLE" in line]
    assert complaints == []


def test_the_page_reads_the_same_without_scripts(study, tmp_path):
    """With scripts taken out (as a browser that blocks them would) everything is still there."""
    text = Path("results/report.html").read_text(encoding="utf-8")
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL), encoding="utf-8")
    dom, _ = _open(bare, 1280, tmp_path / "profile")
    for words in ("The answer", "Everything against everything", "Glossary"):
        assert words in dom
    assert dom.count("<svg") == text.count("<svg")
