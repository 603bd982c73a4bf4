"""Contact sheets against the pixels that variant steps and the renderer make."""

import json
from pathlib import Path

import numpy as np
import pytest

from certbench import job as jobs
from certbench import plan, plugins
from certbench.corruptions import corrupt_batch
from certbench.errors import CertbenchError
from certbench.figures import contact_sheet, style
from certbench.figures.data import FigureData

CONFIG = {
    "datasets": {
        "streets": {"type": "streets", "height": 32, "width": 64, "train": 5, "test": 5},
        "digits": {"type": "digits"},
    },
    "models": {
        name: {
            "builder": {"type": "small_cnn"},
            "recipe": {"type": "standard", "epochs": 1},
            "train_on": {"dataset": name, "view": view},
        }
        for name, view in (("streets", "native"), ("digits", "squash32"))
    },
    "metrics": [{"type": "accuracy"}],
    "figures": {"sheet": {"type": "contact_sheet", "dataset": "streets"}},
    "experiments": [
        {"name": name, "datasets": [{"name": name, "view": view, "limit": 5}], "models": [name]}
        for name, view in (("streets", "native"), ("digits", "squash32"))
    ],
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What the figure reads: two prepared datasets."""
    folder = tmp_path_factory.mktemp("sheets")
    made = plan.make(CONFIG)
    figure = made.jobs["figure", ("sheet",)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for (rule, _), job in made.jobs.items():
            if rule == "prepare" and job.outputs["index"] in figure.inputs["index"]:
                outputs = {name: Path(path) for name, path in job.outputs.items()}
                assert not jobs.execute(rule, json.loads(job.work_text), {}, outputs, Path("log"))
    work = json.loads(figure.work_text)
    for selection in work["selections"]:
        selection["index"] = [str(folder / path) for path in selection["index"]]
    return work


@pytest.fixture
def data(prepared):
    inputs = {"index": [path for one in prepared["selections"] for path in one["index"]]}
    return FigureData(inputs, prepared, plugins.load)


def draw(data, **params):
    with style.applied():
        return contact_sheet.draw(data, contact_sheet.Params(**params))


def pixels(figure):
    return [axes.images[0].get_array() for axes in figure.axes if axes.images]


def words(figure):
    return [text.get_text().replace("\n", " ") for text in figure.texts]


def test_a_sheet_shows_what_the_variant_steps_make(data):
    figure = draw(
        data,
        dataset="digits",
        types=("fog", "contrast"),
        options={"severity_table": "cifar32"},
        first=2,
        seed=4,
    )
    (selection,) = (s for s in data.selections if s["dataset"]["id"] == "digits")
    batch = data.items(selection).load(2, 3)
    expected = [batch.images[0]]
    for name in ("fog", "contrast"):
        expected += [
            corrupt_batch(batch.images, batch.item_ids, name, s, "cifar32", 4, "digits")[0]
            for s in range(1, 6)
        ]
    assert all(np.array_equal(a, b) for a, b in zip(pixels(figure), expected, strict=True))
    assert any(batch.item_ids[0] in text and "cifar32" in text for text in words(figure))
    assert contact_sheet.SYNTHETIC not in words(figure)


def test_all_types_of_the_step_are_shown_unless_some_are_named(data):
    figure = draw(data, dataset="digits", options={"severity_table": "cifar32"})
    from certbench.corruptions.severity import NAMES

    assert len(pixels(figure)) == 1 + 5 * len(NAMES)


def test_conditions_show_the_same_scene_with_its_labels_and_depth(data):
    from certbench.datasets.streets_classes import CONDITIONS, PALETTE
    from certbench.datasets.streets_scene import render_description

    figure = draw(data, dataset="streets", what="conditions", items=2)
    shown = pixels(figure)
    assert len(shown) == 2 * 7
    (selection,) = (s for s in data.selections if s["dataset"]["id"] == "streets")
    items = data.items(selection)
    ((scene, camera, condition), _) = items.module.read_scenes(items.params, items.rows(0, 2))
    for i, name in enumerate(CONDITIONS):
        assert np.array_equal(shown[i], render_description(scene, camera, name).rgb)
    assert np.array_equal(shown[CONDITIONS.index(condition)], items.load(0, 1).images[0])
    clear = render_description(scene, camera)
    assert np.array_equal(shown[5], np.asarray(PALETTE, np.uint8)[clear.labels])
    white = (shown[6] == 255).all(axis=-1)
    assert np.array_equal(white, np.isinf(clear.depth)) and white.any()


def test_images_that_are_rendered_are_marked_on_the_figure_itself(data):
    options = {"types": ("fog",), "options": {"severity_table": "tiny64"}}
    for params in (options, {"what": "conditions"}):
        assert contact_sheet.SYNTHETIC in words(draw(data, dataset="streets", **params))


def test_a_type_that_cannot_be_made_is_named_with_the_reason(data):
    # Digits have no depth.
    figure = draw(data, dataset="digits", step="corruption_3d", types=("color_quant", "fog_3d"))
    assert len(pixels(figure)) == 1 + 5
    assert "fog 3d" in words(figure) and any("depth" in text for text in words(figure))


def test_terms_that_do_not_allow_it_leave_the_sheet_empty(prepared):
    work = {**prepared, "embed_images": "none"}
    data = FigureData({"index": []}, work, plugins.load)
    assert not pixels(draw(data, dataset="digits", options={"severity_table": "cifar32"}))


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({"dataset": "digit"}, "no experiment of the figure shows dataset 'digit'"),
        ({"dataset": "digits", "what": "conditions"}, "has no scenes to render"),
        ({"dataset": "streets", "first": 5}, "the split has 5 items"),
        ({"dataset": "streets", "options": {"severity": "x"}}, "is required"),
    ],
)
def test_mistakes_are_refused(data, params, problem):
    with pytest.raises(CertbenchError, match=problem):
        draw(data, **params)
