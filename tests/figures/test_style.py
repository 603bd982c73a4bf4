import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from certbench.figures import style


def test_a_model_keeps_its_colour_whatever_else_is_drawn():
    order = (["a", "b", "c"], ["none", "s", "t"])
    everything, some = style.Looks(*order), style.Looks(*order)
    whole = {m: everything.of(m, d) for m in "abc" for d in ("none",)}
    assert some.of("c", "none") == whole["c"]
    assert some.of("c", "t").colour == whole["c"].colour
    assert len({everything.colour(m) for m in "abc"}) == 3


def test_a_defence_keeps_its_marker_for_every_model():
    looks = style.Looks(["a", "b"], ["s", "t"])
    assert looks.of("a", "s").marker == looks.of("b", "s").marker != looks.of("a", "t").marker


def test_a_bare_model_is_hollow():
    looks = style.Looks(["a"], ["s"])
    assert looks.of("a", "none").face == looks.of("a", None).face == style.PAPER
    assert looks.of("a", "s").face == looks.of("a", "s").colour


def test_pairs_are_sorted_as_in_the_study_bare_first():
    looks = style.Looks(["m2", "m1"], ["none", "s"])
    pairs = [("m1", "s"), ("m2", "s"), ("m1", "none"), ("m2", "s")]
    assert looks.sort(pairs) == [("m2", "s"), ("m1", "none"), ("m1", "s")]


def test_colours_can_be_told_apart_by_the_colour_blind():
    """Brettel-Vienot simulation of deuteranopia (Vienot et al., 1999) of the first four colours."""
    looks = style.Looks(["a", "b", "c", "d"])
    to_linear = lambda v: np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)  # noqa: E731
    simulate = np.array(
        [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]]
    )
    seen = []
    for model in "abcd":
        code = looks.colour(model).lstrip("#")
        rgb = np.array([int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)])
        seen.append(np.clip(simulate @ to_linear(rgb), 0, 1) ** (1 / 2.4))
    distances = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(distances) > 0.1


def _sheet():
    with style.applied():
        sheet = style.Sheet()
        long = "A title that is far too long for one line of a narrow figure, and then some more"
        looks = style.Looks(["a"])
        first = sheet.panel(long, 1.0, rows=["short", "a name that is too long for one line"])
        second = sheet.panel(
            "Second",
            1.2,
            xlabel="of all images",
            above=0.4,
            key=[style.handle(looks.of("a"), f"entry {i} " + "with words " * 9) for i in range(3)],
        )
        style.percent_axis(second.yaxis)
        figure = sheet.done()
        FigureCanvasAgg(figure).draw()
    return figure, first, second


def test_nothing_of_a_sheet_is_cut_off_or_covered():
    figure, first, second = _sheet()
    renderer = figure.canvas.get_renderer()
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [first.get_tightbbox(renderer), second.get_tightbbox(renderer)]
    boxes += [text.get_window_extent(renderer) for text in figure.texts]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    for box in boxes:
        assert box.x0 >= -0.5 and box.y0 >= -0.5 and box.x1 <= width + 0.5 and box.y1 <= height
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            assert not one.overlaps(other), (one, other)


def test_the_smallest_text_is_readable_on_a_telephone():
    """A figure fills 345 of 390 px; text must stay at least 9 px high there."""
    sizes = [style._CONTEXT[f"{name}.labelsize"] for name in ("xtick", "ytick", "axes")]
    sizes += [style._CONTEXT["legend.fontsize"], style._CONTEXT["font.size"]]
    scale = 345 / (style.WIDTH * 72)
    assert min(sizes) * scale * 1.0 >= 9.0


def test_drawing_leaves_no_trace_in_the_settings():
    import matplotlib

    before = matplotlib.rcParams["font.size"], matplotlib.rcParams["svg.hashsalt"]
    with style.applied("x"):
        assert matplotlib.rcParams["svg.hashsalt"] == "x"
    assert (matplotlib.rcParams["font.size"], matplotlib.rcParams["svg.hashsalt"]) == before


def test_an_empty_figure_says_why():
    with style.applied():
        figure = style.nothing("No certificates yet")
    assert [t.get_text() for t in figure.axes[0].texts] == ["No certificates yet"]


@pytest.mark.parametrize("width", [5, 9, 40])
def test_text_is_measured_as_it_is_drawn(width):
    from matplotlib.figure import Figure

    text = "m" * width
    with style.applied():
        figure = Figure(dpi=72)
        drawn = figure.text(0, 0, text, fontsize=9)
        drawn_width = drawn.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / 72
    assert style.text_width(text) == pytest.approx(drawn_width, rel=0.1)
