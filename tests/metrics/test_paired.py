"""Paired tests between models, from the rows of an experiment."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from certbench.metrics import paired
from certbench.metrics.tabulating import Context, tabulate

CONTEXT = Context((), None)
KEYS = {"task": "classification", "dataset": "d", "split": "test", "view": "v", "attack": None}


def series(model, right, *, defense=None, radius=None, norm="l2", variant="clean"):
    """Rows of one model: label 1, answer 1 where right."""
    count = len(right)
    frame = {
        **KEYS,
        "variant_id": variant,
        "model": model,
        "defense": defense,
        "threat_id": None if radius is None else f"lp-{norm}",
        "seed": 0,
        "item_id": [f"i{i}" for i in range(count)],
        "label": 1,
        "predict": np.asarray(right, int),
        "kind": "predictions" if radius is None else "certificates",
        "radius": np.nan if radius is None else radius,
        "threat_kind": None if radius is None else "lp",
        "threat_norm": None if radius is None else norm,
    }
    return pd.DataFrame(frame)


def table(*frames, radii=(0.0, 0.5)):
    made = tabulate(pd.concat(frames), paired, paired.Params(radii=radii), CONTEXT)
    return {(r["model"], r["defense"], r["metric"], r["parameter"]): r for r in made}


def test_the_p_value_is_the_binomial_test_of_the_images_they_disagree_on():
    rng = np.random.default_rng(3)
    a, b = rng.random(300) < 0.9, rng.random(300) < 0.8
    found = table(series("a", a), series("b", b))
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    row = found["a", "none", "paired_p:b/none", None]
    assert row["value"] == pytest.approx(binomtest(only_a, only_a + only_b, 0.5).pvalue, rel=1e-9)
    assert row["n"] == 300 and f"here {only_a}" in row["note"] and f"there {only_b}" in row["note"]
    difference = found["a", "none", "paired_difference:b/none", None]["value"]
    assert difference == pytest.approx(a.mean() - b.mean())


def test_certificates_are_compared_at_each_radius_and_bare_models_without_one():
    ones = np.ones(10, bool)
    found = table(
        series("a", ones),
        series("b", ones),
        series("a", ones, defense="s", radius=np.linspace(0, 0.9, 10)),
        series("b", ones, defense="s", radius=np.full(10, 0.3)),
    )
    assert found["a", "s", "paired_difference:b/s", 0.5]["value"] == pytest.approx(0.5)
    assert found["a", "s", "paired_difference:b/s", 0.0]["value"] == 0.0
    assert {key[1] for key in found} == {"none", "s"}
    assert len(found) == 2 * (1 + 2)


def test_only_images_that_both_were_shown_count():
    found = table(series("a", np.ones(10, bool)), series("b", np.zeros(4, bool)))
    row = found["a", "none", "paired_difference:b/none", None]
    assert (row["n"], row["value"]) == (4, 1.0)


def test_nothing_is_compared_across_norms_or_variants():
    ones = np.ones(5, bool)
    assert not table(
        series("a", ones, defense="s", radius=1.0),
        series("b", ones, defense="s", radius=1.0, norm="l1"),
    )
    assert not table(series("a", ones), series("b", ones, variant="fog"))


def test_one_model_alone_has_no_pair():
    assert not table(series("a", np.ones(5, bool)))
