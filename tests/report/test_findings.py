"""Sentences against numbers written by hand."""

import pandas as pd
import pytest

from certbench.metrics.tabulating import COLUMNS
from certbench.report import crosstable, findings
from certbench.report.numbers import Numbers
from certbench.report.sources import Sources

PLACE = ("digits", "test", "v")


def _row(metric, value, *, model="noisy", defense="smoothing", variant="clean", **more):
    return {
        **dict.fromkeys(COLUMNS),
        "experiment": "e",
        "task": "classification",
        "dataset": "digits",
        "split": "test",
        "view": "v",
        "variant_id": variant,
        "model": model,
        "defense": defense,
        "metric": metric,
        "value": value,
        "low": None if value is None else max(value - 0.05, 0),
        "high": None if value is None else min(value + 0.05, 1),
        "n": 200,
        **more,
    }


ROWS = [
    _row("accuracy", 0.925, defense="none"),
    _row("accuracy", 0.955, defense="none", model="plain"),
    _row("accuracy", 0.30, defense="none", variant="fog-aaaaaa"),
    _row("certified_accuracy", 0.925, parameter=0.0),
    _row("certified_accuracy", 0.905, parameter=0.25),
    _row("certified_accuracy", 0.87, parameter=0.5),
    _row("certified_accuracy", 0.645, parameter=1.0),
    _row("certified_accuracy_surely", 0.855, parameter=0.5),
    _row("certified_at:lp-l2-0.5", 0.87, parameter=0.5),
    _row("certified_accuracy", 0.4, parameter=0.0, variant="fog-aaaaaa"),
    _row("certified_accuracy", 0.1, parameter=0.5, variant="fog-aaaaaa"),
    _row("certified_accuracy", 0.7, parameter=0.0, variant="snow-bbbbbb"),
    _row("certified_accuracy", 0.6, parameter=0.5, variant="snow-bbbbbb"),
    _row("abstain_rate", 0.01),
    _row("robust_accuracy", 0.88, attack="pgd-l2", threat_id="lp-l2-0.5"),
    _row("proven", 0.87, attack="pgd-l2", threat_id="lp-l2-0.5"),
    _row("robust_accuracy", 0.68, attack="pgd-linf", threat_id="lp-linf-8of255"),
    _row("proven", 0.0, attack="pgd-linf", threat_id="lp-linf-8of255"),
    _row("robust_accuracy", 0.535, model="plain", defense="none", attack="pgd-l2",
         threat_id="lp-l2-0.5"),
]  # fmt: skip


def _sources(threat=None, collect=None):
    threat = {
        "threat_kind": "lp",
        "threat_norm": "l2",
        "threat_guarantee": "probabilistic",
        "threat_alpha": 0.001,
        **(threat or {}),
    }
    certificates = pd.DataFrame(
        [
            {
                "dataset": "digits",
                "split": "test",
                "view": "v",
                "variant_id": "clean",
                "model": "noisy",
                "defense": "smoothing",
                "n_forward": 1100.0,
                "device_time_s": 0.4,
                **threat,
            }
        ]
    )
    empty = pd.DataFrame({name: [] for name in COLUMNS})
    return Sources(
        title="t",
        experiments=[],
        tables=pd.DataFrame(ROWS),
        reported=empty,
        costs=empty,
        verdicts={},
        certificates=certificates,
        defenses={
            ("noisy", "smoothing"): {"collect": {"sigma": 0.5} if collect is None else collect}
        },
        datasets=[],
        models=[],
        footers=[{"work": {"metrics": [{"name": "certified", "params": {"rho": 0.001}}]}}],
        svgs={},
        figures=[],
        config={"experiments": [{"models": ["plain", "noisy"], "defenses": ["none", "smoothing"]}]},
    )


def _finding(**changes):
    sources = _sources(**changes)
    (found,) = findings.build(sources, Numbers(sources.tables))
    return found, " ".join(found.sentences).replace("\u00a0", " ")


def test_the_first_sentence_holds_certificate_against_bare_accuracy():
    found, _ = _finding()
    assert found.sentences[0] == (
        "On 200 images of digits, the smoothed classifier made of “noisy” is right and certified "
        "against every change with ℓ₂ norm below 0.5 on 87.0% (82.0–92.0%): 5.5 percentage points "
        "fewer than the bare model classifies correctly (92.5%) without any proof."
    )


def test_what_is_neither_proven_nor_broken_is_called_undecided():
    _, text = _finding()
    assert "Under pgd-l2 with ℓ₂ ≤ 0.5 it still answers correctly on 88.0%" in text
    assert "87.0% are proven, the other 1.0% are undecided" in text
    assert "bare “plain” stays right on 53.5%" in text


def test_an_attack_on_some_of_the_images_says_on_how_many(monkeypatch):
    some = [{**row, "n": 100} if row["attack"] == "pgd-l2" else row for row in ROWS]
    monkeypatch.setitem(globals(), "ROWS", some)
    _, text = _finding()
    assert "On the first 100 images, under pgd-l2 with ℓ₂ ≤ 0.5 it still answers" in text
    sources = _sources()
    (table,) = crosstable.build(sources, Numbers(sources.tables))
    notes = {cell.note for _, cells in table.rows for cell in cells if cell.note}
    assert "of 100 images" in notes


def test_an_attack_of_another_norm_is_outside_the_threat_model():
    _, text = _finding()
    assert "Outside its threat model the certificate proves nothing: under pgd-linf" in text
    assert "Under pgd-linf" not in text


def test_the_worst_shift_is_named_with_what_is_certified_on_it():
    _, text = _finding()
    assert "fares worst with fog: right on 40.0%" in text
    assert "certified to 0.5 on 10.0%" in text
    assert "The bare model fares worst with fog: 30.0%" in text
    assert "says nothing about such shifts" in text


def test_the_promise_names_classifier_region_and_probability():
    found, _ = _finding()
    text = " ".join(found.promise).replace("\u00a0", " ")
    assert "noise of level σ = 0.5" in text
    assert "the certificate says nothing about the bare model" in text
    assert "ℓ₂ norm smaller than R" in text
    assert "at least 1 − α = 0.999" in text
    assert "Among 200 certificates at most 0.2 are expected to fail" in text
    assert "at least 85.5% of these images are right and robust to 0.5" in text


def test_a_deterministic_certificate_has_no_alpha():
    found, _ = _finding(
        threat={"threat_guarantee": "deterministic", "threat_alpha": None}, collect={}
    )
    text = " ".join(found.promise)
    assert "deterministic" in text and "α" not in text and "smoothed" not in text


def test_a_detection_promises_no_silent_error():
    found, _ = _finding(threat={"threat_guarantee": "detection", "threat_alpha": None})
    assert "raises an alarm" in " ".join(found.promise)


def test_the_reference_radius_is_the_threat_of_the_experiment():
    numbers = Numbers(pd.DataFrame(ROWS))
    assert findings.reference_radius(numbers, PLACE, ("noisy", "smoothing")) == 0.5
    without = Numbers(pd.DataFrame([r for r in ROWS if ":" not in r["metric"]]))
    assert findings.reference_radius(without, PLACE, ("noisy", "smoothing")) == 0.5
    assert crosstable.middle([0.25, 0.5, 0.75, 1.0]) == 0.5
    assert crosstable.middle([]) is None


@pytest.mark.parametrize(
    ("violations", "sound", "words", "told"),
    [(0, True, "Under pgd-l2", 2), (3, False, "trust none", 1), (1, True, "as the failure", 2)],
)
def test_the_headline_speaks_of_violations(violations, sound, words, told):
    found, _ = _finding()
    said, count = findings.headline([found], violations, sound)
    assert any(words in sentence for sentence in said)
    assert count == told and said[0] == found.sentences[0]


def test_without_certificates_there_is_no_answer():
    said, count = findings.headline([], 0, None)
    assert "no answer" in said[0] and count == 0


def test_many_variants_are_one_column_for_each_shift():
    """A mean over severities; unknown where one severity is."""
    shifts = [
        _row("accuracy", 0.9 - 0.1 * s, defense="none", variant=f"{c}-{s}-t-{s:06d}")
        for c in "abcdef"
        for s in range(1, 6)
        if (c, s) != ("f", 2)
    ]
    shifts.append(_row("accuracy", 0.5, defense="none", model="plain", variant="a-1-t-000001"))
    sources = _sources()
    numbers = Numbers(pd.DataFrame([*ROWS[:2], *shifts]))
    (table,) = crosstable.build(sources, numbers)
    assert [title for title, _ in table.columns] == ["right", "a", "b", "c", "d", "e", "f"]
    assert "means over severities" in table.groups[1][0]
    bare = next(cells for name, cells in table.rows if name["model"] == "noisy")
    assert [cell.text for cell in bare] == ["92.5%", *["60.0%"] * 5, "57.5%"]
    plain = next(cells for name, cells in table.rows if name["model"] == "plain")
    assert [cell.text for cell in plain] == ["95.5%", *["–"] * 6]
