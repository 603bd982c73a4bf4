"""What the other figures draw, against the rows they were given."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from certbench.figures import (
    attack_summary,
    audit_bars,
    cost,
    gallery,
    pa_distribution,
    shift,
    style,
    training,
)


def _draw(module, data, **params):
    with style.applied():
        return module.draw(data, module.Params(**params))


def _titles(figure):
    return [text.get_text().replace("\n", " ") for text in figure.texts]


def test_bars_of_an_audit_are_its_counts(data):
    figure = _draw(audit_bars, data)
    axes = figure.axes[0]
    total = {}
    for patch in axes.patches:
        total[round(patch.get_y(), 3)] = total.get(round(patch.get_y(), 3), 0) + patch.get_width()
    assert len(total) == 4 and all(np.isclose(width, 1.0) for width in total.values())
    frame = data.audits
    first = frame[frame["model"].eq("plain") & frame["attack"].eq("pgd-l2")]
    assert axes.patches[0].get_width() == pytest.approx(first["verdict"].eq("proven").mean())


def test_shift_has_a_panel_for_the_bare_models_and_one_for_each_radius(data):
    figure = _draw(shift, data, radii=(0.0, 0.25, 0.5))
    titles = _titles(figure)
    assert len(figure.axes) == 5
    assert titles[0].startswith("Accuracy of the bare model")
    assert titles[3].startswith("Certified at radius 0.5")
    assert titles[4].startswith("Abstains")


def test_shift_puts_clean_first_and_the_hardest_last(data):
    figure = _draw(shift, data)
    table = data.tables
    rows = table[table["metric"].eq("accuracy")].groupby("variant_id")["value"].mean()
    hardest = rows.drop("clean").idxmin().split("-")[0].replace("_", " ")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[0] == "clean" and names[-1] == hardest


def _severities():
    """Numbers of a bare and a defended model, two types of corruption, severities not monotone."""
    from certbench.metrics.tabulating import COLUMNS

    base = {"dataset": "d", "split": "test", "view": "v", "model": "m", "n": 10}
    measures = (
        (None, "accuracy", None, 0.0),
        ("smoothing", "certified_accuracy", 0.0, 0.1),
        ("smoothing", "certified_accuracy", 0.5, 0.3),
        ("smoothing", "abstain_rate", None, 0.5),
    )
    rows = []
    for defense, metric, parameter, less in measures:
        rows.append({"variant_id": "clean", "value": 0.95 - less})
        for kind in ("snow", "brightness"):
            for severity, value in ((1, 0.8), (3, 0.9), (5, 0.6)):
                rows.append({"variant_id": f"{kind}-{severity}", "value": value - less})
                rows[-1] |= {"corruption": kind, "severity": float(severity)}
                rows[-1] |= {"severity_table": "tiny64"}
        for row in rows[-7:]:
            row |= {"defense": defense, "metric": metric, "parameter": parameter}
    table = pd.DataFrame([{**dict.fromkeys(COLUMNS), **base, **row} for row in rows])
    return SimpleNamespace(tables=table, looks=style.Looks(["m"], ["smoothing"]))


def test_curves_over_severity_hold_every_measure_and_begin_at_the_clean_images():
    figure = _draw(shift, _severities())
    small = {axes.get_title(loc="left"): axes for host in figure.axes for axes in host.child_axes}
    assert list(small) == ["snow", "brightness"]
    for axes in small.values():
        lines = [line.get_xydata().tolist() for line in axes.lines]
        # Bare, right and not abstaining, certified to 0.5, abstaining.
        assert lines == [
            [[0, pytest.approx(0.95 - d)]]
            + [[s, pytest.approx(v - d)] for s, v in ((1, 0.8), (3, 0.9), (5, 0.6))]
            for d in (0.0, 0.1, 0.3, 0.5)
        ]


def test_curves_can_be_left_out_and_need_several_severities(data):
    assert not any(axes.child_axes for axes in _draw(shift, _severities(), curves=False).axes)
    assert not any(axes.child_axes for axes in _draw(shift, data).axes)


def test_an_attack_summary_spans_from_proven_to_not_broken(data):
    figure = _draw(attack_summary, data)
    table = data.tables
    own = table[
        table["model"].eq("noisy") & table["defense"].eq("smoothing") & table["attack"].eq("pgd-l2")
    ].set_index("metric")["value"]
    bars = [line for line in figure.axes[0].lines if line.get_linewidth() == 7]
    spans = [tuple(line.get_xdata()) for line in bars]
    assert (own["proven"], own["robust_accuracy"]) in [
        (pytest.approx(a), pytest.approx(b)) for a, b in spans
    ]


def test_the_distribution_ends_at_one_and_its_band_is_of_known_width(data):
    figure = _draw(pa_distribution, data)
    axes = figure.axes[0]
    curve = axes.lines[0]
    assert curve.get_ydata()[0] == 0 and curve.get_ydata()[-1] == 1
    half = np.sqrt(np.log(2 / 0.05) / (2 * 40))
    y = axes.collections[0].get_paths()[0].vertices[:, 1]
    middle = curve.get_ydata()[np.argmin(np.abs(curve.get_ydata() - 0.5))]
    assert np.isclose(y, middle + half).any() and np.isclose(y, middle - half).any()


def test_votes_can_be_shown_instead_of_the_bound(data):
    figure = _draw(pa_distribution, data, quantity="votes")
    assert figure.axes[0].get_xlabel() == "share of votes"


def test_cost_bars_are_the_seconds_of_the_cost_table(data):
    figure = _draw(cost, data)
    costs = data.costs
    own = costs[costs["experiment"].eq("attacked")]
    widths = [patch.get_width() for patch in figure.axes[0].patches][::2]
    assert sorted(widths) == pytest.approx(sorted(own.groupby("stage")["wall_time_s"].sum()))
    assert _titles(figure)[0].startswith("attacked: ")


def test_training_draws_every_epoch_of_every_model(data):
    figure = _draw(training, data)
    for axes in figure.axes:
        assert [len(line.get_xdata()) for line in axes.lines] == [4, 4]


def test_the_gallery_marks_wrong_answers_and_only_those(data):
    figure = _draw(gallery, data, items=4, models=("plain", "noisy"))
    answers = [t for t in figure.texts if t.get_text().startswith(("plain ", "noisy "))]
    crossed = [t for t in answers if t.get_text().endswith("✗")]
    frame = data.predictions
    first = list(dict.fromkeys(frame["item_id"]))[:4]
    frame = frame[frame["item_id"].isin(first)]
    wrong = int((~frame["correct"]).sum())
    attacks = data.attacks
    bare = attacks[attacks["defense"].eq("none") & attacks["model"].eq("plain")]
    bare = bare[bare["item_id"].isin(first)]
    wrong += int((bare["adv_pred"] != bare["label"]).sum())
    assert len(answers) == len(frame) + len(bare)
    assert len(crossed) == wrong > 0
    assert all(t.get_color() == style.WRONG for t in crossed)


def test_the_gallery_shows_as_many_columns_as_it_may(data):
    figure = _draw(gallery, data, items=2, columns=3)
    assert len(figure.axes) == 2 * 3
    assert any("more not shown" in title for title in _titles(figure))
