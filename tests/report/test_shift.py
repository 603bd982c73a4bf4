"""Tables of the page about corruptions, against the rows of the tables."""

from pathlib import Path

import pandas as pd
import pytest

from certbench.report import shift, sources


@pytest.fixture
def found(study):
    job = study.jobs["report", ()]
    inputs = {name: [Path(path) for path in paths] for name, paths in job.inputs.items()}
    return sources.read(inputs, job.work)


def _rows(found, metric, model, **wanted):
    rows = found.reported
    rows = rows[rows["metric"].eq(metric) & rows["model"].eq(model)]
    for name, value in wanted.items():
        rows = rows[rows[name].eq(value)]
    return rows[rows["variant_id"].isna()]


def test_every_experiment_with_corruptions_has_a_table(found):
    (table,) = shift.build(found)
    assert table.title == "digits (test), severity table cifar32 (experiment shifted)"
    assert table.over == "3 types, severity 3" and not table.reasons
    assert [name for name, _ in table.rows] == [
        {"model": "plain", "defense": "bare model"},
        {"model": "noisy", "defense": "bare model"},
        {"model": "noisy", "defense": "smoothing"},
    ]
    assert all(len(cells) == len(table.columns) for _, cells in table.rows)


def test_cells_are_the_numbers_of_the_table(found):
    (table,) = shift.build(found)
    cells = [dict(zip(table.columns, cells, strict=True)) for _, cells in table.rows]
    (mean,) = _rows(found, "mean_accuracy", "plain", severity_table="cifar32")[
        lambda rows: rows["corruption"].isna() & rows["severity"].isna()
    ]["value"]
    assert cells[0]["right"].sort == mean and cells[0]["right"].text == f"{100 * mean:.1f}%"
    assert cells[0]["mCE against plain"].text == "100.0"
    (mce,) = _rows(found, "certified_mce:plain", "noisy", parameter=0.0)["value"]
    assert cells[2]["mCE against plain"].sort == mce
    (held,) = _rows(found, "certified_mce:plain", "noisy", parameter=0.5)["value"]
    assert cells[2]["mCE against plain"].note == f"certified to 0.5: {held:.1f}"
    (worst,) = _rows(found, "worst_accuracy", "noisy").itertuples()
    assert cells[1]["worst type"].text == worst.corruption.replace("_", " ")
    (abstains,) = _rows(found, "mean_abstain_rate", "noisy")[
        lambda rows: rows["corruption"].isna() & rows["severity"].isna()
    ]["value"]
    assert cells[2]["abstains"].sort == abstains
    assert cells[0]["abstains"].sort is None


def test_without_a_complete_set_the_reason_stands_for_the_means(found):
    rows = found.reported
    means = rows["variant_id"].isna() & rows["metric"].str.contains("mean_|rpc|mce:")
    rows = rows[~(means & (rows["corruption"].notna() | rows["severity"].notna()))].copy()
    means = rows["variant_id"].isna() & rows["metric"].str.contains("mean_|rpc|mce:")
    rows.loc[means, ["value", "low", "high"]] = None
    rows.loc[means, "note"] = "lacks fog of 15 types, severities 1 to 5"
    found.reported = rows
    (table,) = shift.build(found)
    assert table.columns == ["worst type"] and not table.by_type
    assert table.over == "" and table.reasons == ["lacks fog of 15 types, severities 1 to 5"]


def test_the_page_shows_the_tables(study):
    text = Path("results/report.html").read_text(encoding="utf-8")
    assert "severity table cifar32 (experiment shifted)" in text
    assert "mCE against plain" in text and "Over 3 types, severity 3." in text


def test_segmentation_is_shown_by_miou_and_corruption_degradation(found):
    from certbench.metrics.tabulating import COLUMNS

    common = {"experiment": "e", "dataset": "d", "split": "test", "view": "v", "model": "unet"}
    common |= {"severity_table": "tiny64", "n": 4, "note": "2 types, severities 1, 3"}
    numbers = {
        "mean_miou": 0.4,
        "miou_rpc": 0.5,
        "mean_cd:other": 90.0,
        "relative_mean_cd:other": 80.0,
    }
    rows = [{**common, "metric": name, "value": number} for name, number in numbers.items()]
    rows.append({**common, "metric": "worst_miou", "value": 0.3, "corruption": "snow"})
    rows.append({**common, "metric": "mean_miou", "value": 0.3, "corruption": "snow"})
    found.reported = pd.DataFrame([{**dict.fromkeys(COLUMNS), **row} for row in rows])
    (table,) = shift.build(found)
    ((_, cells),) = table.rows
    shown = {name: cell.text for name, cell in zip(table.columns, cells, strict=True)}
    assert shown == {
        "mIoU": "40.0%",
        "of clean (rPC)": "50.0%",
        "worst type": "snow",
        "mean CD against other": "90.0",
        "relative mean CD against other": "80.0",
    }
    assert [(name, [cell.text for cell in cells]) for name, cells in table.by_type] == [
        ("snow", ["30.0%"])
    ]
