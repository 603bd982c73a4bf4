import re

from certbench.figures import style
from certbench.report import inline

SVG = f"""<?xml version="1.0" encoding="utf-8" standalone="no"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">
<svg width="72pt" height="36pt" viewBox="0 0 72 36" xmlns="http://www.w3.org/2000/svg">
 <metadata><rdf:RDF>who made it</rdf:RDF></metadata>
 <defs><clipPath id="p1"><rect/></clipPath><path id="p10" d="M 0 0"/></defs>
 <g id="figure_1"><use xlink:href="#p10" style="fill: {style.INK}" clip-path="url(#p1)"/>
 <path style="stroke: {style.GRID}; fill: #0173b2"/></g>
</svg>"""


def test_two_drawings_in_one_page_never_share_an_identifier():
    one, _ = inline.svg(SVG, "one", "a")
    two, _ = inline.svg(SVG, "two", "b")
    found = [set(re.findall(r'id="([^"]+)"', text)) for text in (one, two)]
    assert len(found[0]) == 3 and not found[0] & found[1]


def test_an_identifier_that_occurs_twice_in_a_drawing_is_kept_once():
    text, _ = inline.svg(SVG.replace("</g>", '<image id="i"/><image id="i"/></g>'), "fig", "a")
    assert text.count("<image") == 2 and text.count('id="fig-i"') == 1


def test_every_reference_points_to_something_in_the_same_drawing():
    text, _ = inline.svg(SVG, "fig", "a")
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
    assert {a or b for a, b in references} <= ids


def test_prologue_and_metadata_are_gone_and_the_label_is_there():
    text, width = inline.svg(SVG, "fig", 'what it "shows" <b>')
    assert text.startswith("<svg viewBox=") and "metadata" not in text and "DOCTYPE" not in text
    assert 'aria-label="what it &#34;shows&#34; &lt;b&gt;"' in text
    assert width == 96


def test_only_ink_and_paper_follow_the_theme():
    text, _ = inline.svg(SVG, "fig", "a")
    assert "fill: var(--ink)" in text and "stroke: var(--line)" in text
    assert "fill: #0173b2" in text


def test_colours_of_the_theme_are_no_colours_of_data():
    data = {*style.VERDICT_COLOURS.values(), *(style.Looks().colour(str(i)) for i in range(10))}
    assert not data & set(inline.THEME)
