"""How rows reach metrics, with toy metrics as oracles."""

from types import SimpleNamespace

import pandas as pd

from certbench.metrics import tabulating

KEYS = dict.fromkeys(tabulating.GROUP) | {"dataset": "d", "variant_id": "clean", "model": "m"}


def test_kinds_are_stacked_and_a_kind_without_rows_keeps_its_columns():
    some = pd.DataFrame([{"label": 1, "predict": 1}, {"label": 2, "predict": 0}])
    none = pd.DataFrame({"label": pd.Series(dtype="int32"), "radius": pd.Series(dtype="float64")})
    for frames in ({"predictions": some, "certificates": none},):
        stacked = tabulating._stacked(frames)
        assert list(stacked.columns) == ["label", "predict", "radius", "kind"]
        assert stacked["label"].tolist() == [1, 2] and stacked["radius"].isna().all()
        assert set(stacked["kind"]) == {"predictions"}
    empty = tabulating._stacked({"a": none, "b": none})
    assert empty.empty and "radius" in empty
    assert tabulating._stacked({"predictions": some}) is some


def test_a_metric_gets_one_group_for_all_keys_it_goes_across():
    frame = pd.DataFrame(
        [{**KEYS, "variant_id": v, "model": m} for v in ("clean", "fog") for m in ("a", "b", "b")]
    )
    seen = []

    def compute(group, params, context):
        seen.append(sorted(set(zip(group["variant_id"], group["model"], strict=True))))
        return [{"metric": "count", "value": len(group), "model": "said by the row"}]

    context = tabulating.Context((), None)
    alone = SimpleNamespace(compute=compute)
    rows = tabulating.tabulate(frame, alone, None, context)
    assert [len(group) for group in seen] == [1] * 4
    assert [row["value"] for row in rows] == [1, 2, 1, 2]
    assert [row["variant_id"] for row in rows] == ["clean", "clean", "fog", "fog"]
    seen.clear()
    across = SimpleNamespace(compute=compute, across=("variant_id", "model"))
    (row,) = tabulating.tabulate(frame, across, None, context)
    assert len(seen) == 1 and len(seen[0]) == 4 and row["value"] == 6
    assert row["variant_id"] is None and row["model"] == "said by the row"
    assert row["dataset"] == "d"


def test_rows_about_a_corruption_say_what_it_is():
    known = {"fog-1": tabulating.Corruption("fog", 3, "tiny64")}
    row = tabulating._shifted({"variant_id": "fog-1", "metric": "accuracy"}, known)
    assert (row["corruption"], row["severity"], row["severity_table"]) == ("fog", 3, "tiny64")
    other = {"variant_id": None, "corruption": "snow"}
    assert tabulating._shifted(other, known) is other
