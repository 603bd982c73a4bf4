"""The report of an experiment whose models tell the class of every pixel."""

import os
from pathlib import Path

import pandas as pd
import pytest

from certbench.datasets.streets_classes import CLASSES

STREETS = {"type": "streets", "height": 32, "width": 64, "train": 5, "val": 5, "calibration": 5}

CONFIG = {
    "shards": {"items": 8, "samples": 100},
    "datasets": {
        "streets": {**STREETS, "test": 12, "condition": "clear"},
        "foggy": {**STREETS, "test": 12, "condition": "fog"},
    },
    "models": {
        "segmenter": {
            "task": "segmentation",
            "builder": {"type": "small_unet"},
            "recipe": {"type": "standard", "epochs": 4},
            "train_on": {"dataset": "streets", "view": "native"},
        }
    },
    "variants": {
        "shift": {
            "type": "corruption",
            "corruption": ["contrast", "fog"],
            "severity": 3,
            "severity_table": "tiny64",
        }
    },
    "metrics": [{"type": "accuracy"}, {"type": "segmentation", "resamples": 200}],
    "figures": {
        name.replace("_", "-"): {"type": name}
        for name in ("label_maps", "gallery", "shift", "training", "cost")
    },
    "experiments": [
        {
            "name": "pixels",
            "title": "Pixels of streets",
            "task": "segmentation",
            "datasets": [
                {"name": "streets", "view": "native", "limit": 12},
                {"name": "foggy", "view": "native", "limit": 12},
            ],
            "variants": ["clean", "shift"],
            "models": ["segmenter"],
            "exclude": [{"dataset": "foggy", "variant": "shift"}],
        }
    ],
}


@pytest.fixture(scope="module")
def finished_pixels(fabricated, tmp_path_factory):
    """Folder and plan of a finished study of segmentation alone."""
    folder = tmp_path_factory.mktemp("pixels")
    before = Path.cwd()
    os.chdir(folder)
    try:
        made = fabricated.study(CONFIG)
        fabricated.finish(made)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def page(finished_pixels):
    return (finished_pixels / "results/report.html").read_text(encoding="utf-8")


def test_every_miou_of_the_table_stands_on_the_page_with_its_interval(finished_pixels, page):
    table = pd.read_parquet(finished_pixels / "results/tables/pixels.parquet")
    rows = table[table["metric"].isin(["miou", "pixel_accuracy"])]
    assert len(rows) == 2 * 4 and rows["value"].between(0.2, 1).all()
    for row in rows.itertuples():
        assert f"{100 * row.value:.1f}%" in page
        if row.metric == "miou":
            assert f"{100 * row.low:.1f}–{100 * row.high:.1f}" in page
    clean = table[table["variant_id"].eq("clean") & table["dataset"].eq("streets")]
    for row in clean[clean["metric"].str.startswith("iou:")].itertuples():
        assert row.metric.removeprefix("iou:") in CLASSES and f"{100 * row.value:.1f}%" in page


def test_the_answer_names_model_dataset_and_worst_shift_and_claims_no_certificate(page):
    assert "No certificate has been made yet" in page
    assert "Without any certificate, “segmenter” tells the classes of pixels apart" in page
    assert "on 12 rendered images of streets (test)" in page and "fares worst with" in page
    assert "No violation" not in page


def test_synthetic_images_are_marked_where_their_numbers_stand(page):
    section = page[page.index('<section id="segmentation">') :]
    section = section[: section.index("</section>")]
    assert section.count("synthetic: rendered, not recorded") == 2
    data = page[page.index('<section id="data">') :]
    assert "label maps of 10 classes: road, pavement" in data


def test_the_picture_shows_images_and_maps(finished_pixels, page):
    assert 'id="figure-label-maps"' in page
    drawing = (finished_pixels / "results/figures/label-maps.svg").read_text()
    # Two items of two datasets: images and predicted maps of 3 and 1 variants, and one label map.
    assert drawing.count("<image") == 2 * (3 * 2 + 1) + 2 * (1 * 2 + 1)


def test_images_that_may_not_be_shown_are_not_drawn(fabricated, finished_pixels, monkeypatch):
    import json

    from certbench import plan as planning
    from certbench.figures import drawing

    monkeypatch.chdir(finished_pixels)
    made = planning.make({**CONFIG, "report": {"embed_images": "none"}})
    job = made.jobs["figure", ("label-maps",)]
    inputs = {need: [Path(p) for p in paths] for need, paths in job.inputs.items()}
    from certbench import plugins

    text = drawing.svg_text(inputs, json.loads(job.work_text), plugins.load)
    assert "<image" not in text
