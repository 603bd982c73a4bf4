import numpy as np
import pandas as pd
import pytest

from certbench import plugins
from certbench.errors import CertbenchError
from certbench.figures.data import FigureData, distinct


def test_a_need_that_was_not_named_is_refused(study):
    data = FigureData({"tables": []}, {}, plugins.load)
    with pytest.raises(CertbenchError, match=r"asks for 'attacks'.*does not need"):
        _ = data.attacks


def test_files_that_are_missing_leave_an_empty_frame_with_columns(tmp_path):
    needs = ("tables", "costs", "predictions", "certificates", "attacks", "audits", "training")
    data = FigureData({need: [tmp_path / "absent.parquet"] for need in needs}, {}, plugins.load)
    for need in needs:
        frame = getattr(data, need)
        assert len(frame) == 0 and len(frame.columns) > 5, need


def test_rows_that_two_experiments_share_count_once(data):
    frame = data.certificates
    keys = ["variant_id", "model", "defense", "item_id"]
    assert not frame.duplicated(keys).any()
    clean = frame[frame["variant_id"].eq("clean") & frame["model"].eq("noisy")]
    assert len(clean) == 40


def test_of_two_reports_of_a_number_the_one_about_more_items_stays():
    from certbench.metrics.tabulating import COLUMNS

    row = dict.fromkeys(COLUMNS)
    row |= {"dataset": "d", "model": "m", "metric": "accuracy"}
    table = pd.DataFrame(
        [
            {**row, "experiment": "small", "value": 0.5, "n": 10},
            {**row, "experiment": "large", "value": 0.7, "n": 90},
            {**row, "experiment": "small", "metric": "acr", "value": 1.0, "n": 10},
        ]
    )
    kept = distinct(table)
    assert kept["value"].tolist() == [0.7, 1.0]


def test_nulls_are_none_and_labels_are_text(data):
    frame = data.predictions
    assert frame["attack"].tolist()[:3] == [None] * 3
    assert set(frame["model"]) == {"plain", "noisy"}


def test_images_are_the_pixels_that_the_models_saw(study, data):
    """Against the path that jobs take to their network input."""
    from certbench.variants import applying

    (selection,) = data.selections
    variant = next(v for v in selection["variants"] if v["variant_id"].startswith("gaussian"))
    shown, _ = data.images(selection, variant, 3, seed=0)
    planned = next(
        job
        for (rule, key), job in study.jobs.items()
        if rule == "predict" and key[1] == variant["variant_id"]
    )
    from pathlib import Path

    from certbench.job import Job

    job = Job(
        "predict", planned.work, {k: [Path(p) for p in v] for k, v in planned.inputs.items()}, {}
    )
    _, tensor = applying.load_batch(job, applying.open_items(job, job.work["dataset"]), 0, 3)
    expected = tensor.numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(shown.images.astype(np.float32) / 255, expected)
    clean, _ = data.images(selection, {"steps": []}, 3, seed=0)
    assert not np.array_equal(clean.images, shown.images)
