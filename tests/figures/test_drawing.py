import dataclasses
import json
import re
from pathlib import Path

import pytest

from certbench import plugins
from certbench.errors import CertbenchError
from certbench.figures import drawing, style
from certbench.params import build


def _without_required():
    """Figures that can be drawn without naming anything (a published curve needs its file)."""
    for name in sorted(plugins.available("figure")):
        fields = dataclasses.fields(plugins.load("figure", name).Params)
        if all(field.default is not dataclasses.MISSING for field in fields):
            yield name


PLUGINS = list(_without_required())


def _job(study, name):
    return next(
        job
        for (rule, _), job in study.jobs.items()
        if rule == "figure" and job.work["figure"]["name"] == name
    )


DRAWN = (
    "attack_summary",
    "audit_bars",
    "certified_curve",
    "cost",
    "gallery",
    "pa_distribution",
    "shift",
    "training",
)


@pytest.mark.parametrize("name", DRAWN)
def test_equal_inputs_give_the_same_bytes(study, fabricated, name):
    job = _job(study, name)
    files = [Path(path) for path in job.outputs.values()]
    before = [file.read_bytes() for file in files]
    assert before[0].startswith(b"<?xml") and before[1].startswith(b"\x89PNG")
    fabricated.run(job)
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawing_needs_no_font_date_or_network(study, name):
    svg = Path(_job(study, name).outputs["svg"]).read_text()
    assert "<text" not in svg and "font-family" not in svg
    assert "<dc:date>" not in svg
    outside = re.findall(r'(?:href|src)="(?!#|data:image/png;base64,)[^"]*"', svg)
    assert outside == []


@pytest.mark.parametrize("name", PLUGINS)
def test_a_figure_without_any_file_says_so(name):
    module = plugins.load("figure", name)
    work = {
        "figure": {"id": "x", "name": name, "params": {}, "version": module.version},
        "experiments": [],
    }
    needs = getattr(module, "needs", ("tables",))
    with style.applied():
        figure = drawing.draw({need: ["absent"] for need in needs}, work, plugins.load)
    assert any(axes.texts for axes in figure.axes)


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("missing", ["first need", "other needs"])
def test_a_figure_survives_the_absence_of_some_files(study, name, missing):
    job = _job(study, name)
    first = next(iter(job.inputs))
    kept = {
        need: [] if (need == first) == (missing == "first need") else paths
        for need, paths in job.inputs.items()
    }
    assert drawing.svg_text(kept, job.work, plugins.load).count("<svg") == 1


@pytest.mark.parametrize("name", PLUGINS)
def test_defaults_of_a_figure_are_valid(name):
    module = plugins.load("figure", name)
    build(module.Params, {}, name)
    assert getattr(module, "about", "").strip(), "a reader needs to know how to read it"


def test_a_plug_in_that_asks_for_more_than_it_needs_is_refused(study, tmp_path):
    (tmp_path / "greedy.py").write_text(
        "kind = 'figure'\nversion = 1\nneeds = ('tables',)\n"
        "from dataclasses import dataclass\n\n"
        "@dataclass(frozen=True)\nclass Params:\n    pass\n\n"
        "def draw(data, params):\n    return data.audits\n"
    )
    path = str(tmp_path / "greedy.py")
    work = {"figure": {"id": "g", "name": "greedy", "params": {}}, "experiments": []}
    with pytest.raises(CertbenchError, match="audits"):
        drawing.draw({}, work, lambda kind, name: plugins.load(kind, name, (path,)))


def test_images_of_a_dataset_that_may_not_be_passed_on_are_not_drawn(study, monkeypatch):
    from certbench.datasets.card import Card

    job = _job(study, "gallery")
    shown = drawing.svg_text(job.inputs, job.work, plugins.load)
    assert "data:image/png" in shown
    real = Card.from_dict
    monkeypatch.setattr(
        Card, "from_dict", classmethod(lambda cls, v: real({**v, "redistributable": False}))
    )
    refused = drawing.svg_text(job.inputs, job.work, plugins.load)
    assert "data:image/png" not in refused
    told = json.loads(json.dumps({**job.work, "embed_images": "all"}))
    assert "data:image/png" in drawing.svg_text(job.inputs, told, plugins.load)


def test_no_images_are_drawn_where_the_report_wants_none(study):
    job = _job(study, "gallery")
    work = {**job.work, "embed_images": "none"}
    assert "data:image/png" not in drawing.svg_text(job.inputs, work, plugins.load)
