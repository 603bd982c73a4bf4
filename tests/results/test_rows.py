"""Rows: kinds, declared columns, constants, files with provenance."""

import numpy as np
import pyarrow as pa
import pytest

from certbench.errors import CertbenchError
from certbench.results import rows

KEYS = {
    "task": "classification",
    "dataset": "digits",
    "split": "test",
    "view": "squash32",
    "variant_id": "clean",
    "model": "plain",
    "defense": "none",
    "seed": 0,
}


def predictions(**changes):
    columns = {
        "item_id": ["a", "b"],
        "item_index": np.array([0, 1], np.uint32),
        "label": np.array([1, 2], np.int32),
        "predict": np.array([1, 3], np.int32),
        "correct": np.array([True, False]),
        **changes,
    }
    return rows.table("predictions", columns, KEYS)


def test_constants_fill_every_row_and_missing_columns_are_null():
    made = predictions()
    assert made.column("model").to_pylist() == ["plain", "plain"]
    assert made.column("attack").to_pylist() == [None, None]
    assert made.column("confidence").null_count == 2
    assert made.schema.field("item_index").type == pa.uint32()


def test_an_undeclared_column_fails_and_names_the_nearest():
    with pytest.raises(CertbenchError, match=r"'predcit' is not declared.*\n.*'predict'"):
        predictions(predcit=np.zeros(2))


def test_a_plug_in_may_declare_columns_but_not_redefine_them():
    declared = rows.schema("attacks", {"queries": "int64"})
    assert declared["queries"] == "int64"
    with pytest.raises(CertbenchError, match="is int32 in every attacks row"):
        rows.schema("attacks", {"label": "string"})
    with pytest.raises(CertbenchError, match="unknown column type 'int46'"):
        rows.schema("attacks", {"queries": "int46"})


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(CertbenchError, match="unequal length"):
        predictions(label=np.array([1], np.int32))


def test_every_kind_has_keys_and_costs():
    for kind in rows.KINDS:
        columns = rows.schema(kind)
        assert {"task", "dataset", "model", "n_forward", "device_time_s"} <= set(columns)


def test_a_file_gives_back_its_rows_and_its_provenance(tmp_path):
    path = tmp_path / "rows.parquet"
    rows.write(path, predictions(), "predictions", {"seed": 7, "work": {"a": [1]}})
    assert rows.read(path, "predictions").to_pylist() == predictions().to_pylist()
    assert rows.provenance(path) == {"kind": "predictions", "seed": 7, "work": {"a": [1]}}


def test_files_are_read_in_the_order_given(tmp_path):
    for i in range(3):
        made = predictions(item_index=np.array([2 * i, 2 * i + 1], np.uint32))
        rows.write(tmp_path / f"{i}.parquet", made, "predictions", {})
    found = rows.read([tmp_path / f"{i}.parquet" for i in (2, 0, 1)], "predictions")
    assert found.column("item_index").to_pylist() == [4, 5, 0, 1, 2, 3]


def test_no_files_are_no_rows_with_all_columns():
    made = rows.read([], "certificates")
    assert made.num_rows == 0 and "radius" in made.column_names


def test_another_kind_a_torn_file_and_a_foreign_file_are_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    rows.write(path, predictions(), "predictions", {})
    with pytest.raises(CertbenchError, match="holds predictions rows, not attacks"):
        rows.read(path, "attacks")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CertbenchError, match="torn"):
        rows.read(path, "predictions")
    with pytest.raises(CertbenchError, match="does not exist"):
        rows.read(tmp_path / "none.parquet", "predictions")
