import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from certbench.datasets import index
from certbench.datasets.card import Card
from certbench.errors import CertbenchError
from certbench.results import rows as result_rows


def items(n=200, classes=4, seed=0, split="test", start=0):
    source = random.Random(seed)
    ids = [f"{split}/{i:05d}" for i in range(start, start + n)]
    return index.table(
        ids, range(n), split, [source.randrange(classes) for _ in range(n)], path=ids
    )


def card(**changes):
    facts = {
        "title": "T",
        "source": "S",
        "licence": "L",
        "redistributable": True,
        "synthetic": False,
        "class_names": ("a", "b", "c", "d"),
        "sizes": {"test": 200},
        "note": "N – ü",
    }
    return Card(**{**facts, **changes})


def test_a_table_has_the_columns_and_types_of_an_index():
    table = items(3)
    assert dict(zip(table.column_names, table.schema.types, strict=True)) == index.COLUMNS
    assert table.column("row").null_count == 3 and table.column("image").null_count == 3


def test_embedded_images_are_kept_as_bytes():
    table = index.table(["a"], [0], "test", [1], image=[b"png"])
    assert table.column("image").to_pylist() == [{"bytes": b"png", "path": None}]


def test_ranks_are_dense_within_each_split_and_rows_follow_them():
    both = pa.concat_tables([items(150, split="val"), items(50, split="test")])
    ordered = index.order(both, seed=1)
    assert ordered.column("split").to_pylist() == ["test"] * 50 + ["val"] * 150
    assert ordered.column("rank").to_pylist() == [*range(50), *range(150)]
    assert ordered.schema.field("rank").type == pa.uint32()
    assert sorted(ordered.column("item_id").to_pylist()) == sorted(
        both.column("item_id").to_pylist()
    )


def test_the_order_does_not_depend_on_the_rows_order_or_on_other_splits():
    table = items(150)
    mixed = list(range(150))
    random.Random(3).shuffle(mixed)
    expected = index.order(table, seed=1)
    assert index.order(table.take(mixed), seed=1).equals(expected)
    both = index.order(pa.concat_tables([items(90, split="val"), table]), seed=1)
    assert both.slice(0, 150).equals(expected)
    assert not index.order(table, seed=2).equals(expected)
    assert index.order(expected, seed=1).equals(expected)


def test_further_columns_stay_with_their_items():
    table = items(30).append_column("mask", pa.array([f"mask {i}" for i in range(30)]))
    ordered = index.order(table, seed=0)
    for row in ordered.to_pylist():
        assert row["mask"] == f"mask {row['item_index']}"


def test_items_without_labels_can_be_ordered():
    table = items(30)
    table = table.set_column(3, "label", pa.nulls(30, pa.int32()))
    assert index.order(table, seed=0).column("rank").to_pylist() == list(range(30))


@pytest.mark.parametrize("seed", range(8))
def test_leaving_out_items_keeps_prefixes_prefixes(seed):
    """With a limit L only the first L are known to be good; raising L must keep what is there."""
    ordered = index.order(items(120, classes=5, seed=seed), seed=seed)
    source = random.Random(seed)
    bad = set(source.sample(ordered.column("item_id").to_pylist(), 40))

    def first(limit):
        known, current = set(), ordered
        while True:
            prefix = current.column("item_id").to_pylist()[:limit]
            found = bad.intersection(prefix)
            if not found:
                return prefix
            known |= found
            current = index.without(current, found)

    longest = first(80)
    assert len(longest) == 80 and not bad.intersection(longest)
    for limit in (1, 7, 40, 79):
        assert first(limit) == longest[:limit]
    rest = index.without(ordered, bad)
    assert rest.column("rank").to_pylist() == list(range(80))
    assert rest.column("item_id").to_pylist() == longest


def test_the_next_of_the_same_class_takes_a_missing_items_place():
    ordered = index.order(items(120, classes=4), seed=0)
    labels = ordered.column("label").to_pylist()
    gone = ordered.column("item_id")[3].as_py()
    after = index.without(ordered, [gone])
    assert after.column("label").to_pylist()[:100] == labels[:100]
    assert gone not in after.column("item_id").to_pylist()


def test_a_good_table_passes_the_check():
    index.check(items(), 4, "here")


def test_an_item_in_two_splits_is_refused():
    both = pa.concat_tables([items(5), items(5).set_column(2, "split", pa.array(["val"] * 5))])
    with pytest.raises(CertbenchError, match=r"5 items are there twice: test/00000 \(test, val\)"):
        index.check(both, 4, "here")


def test_two_items_with_one_index_are_refused():
    both = pa.concat_tables([items(5), items(5, start=5)])
    with pytest.raises(CertbenchError, match="share one item_index"):
        index.check(both, 4, "here")


def test_labels_outside_the_classes_are_refused():
    with pytest.raises(CertbenchError, match=r"here: labels 3 are outside 0\.\.2 \(3 classes\)"):
        index.check(items(), 3, "here")


def test_a_missing_column_or_a_wrong_type_is_refused():
    with pytest.raises(CertbenchError, match="needs a column 'row' of type int64"):
        index.check(items().drop_columns(["row"]), 4, "here")
    wrong = items(2).set_column(3, "label", pa.array(["a", "b"]))
    with pytest.raises(CertbenchError, match="needs a column 'label' of type int32"):
        index.check(wrong, 4, "here")


def test_a_written_index_tells_its_card_and_where_its_splits_are(tmp_path):
    both = pa.concat_tables([items(150, split="val"), items(50, split="test")])
    ordered = index.order(both, seed=1)
    index.write(tmp_path / "x" / "index.parquet", ordered, card(), {"seed": 1})
    footer = result_rows.provenance(tmp_path / "x" / "index.parquet")
    assert footer["kind"] == "index" and footer["seed"] == 1
    assert footer["splits"] == {"test": [0, 50], "val": [50, 150]}
    assert Card.from_dict(footer["card"]) == card()
    read = pq.read_table(tmp_path / "x" / "index.parquet").replace_schema_metadata(None)
    assert read.equals(ordered)
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["index.parquet"]


def test_large_embedded_images_make_small_row_groups(tmp_path):
    noise = random.Random(0).randbytes(4 << 20)
    ids = [f"i{k:02d}" for k in range(20)]
    table = index.table(ids, range(20), "test", [0] * 20, image=[noise] * 20)
    index.write(tmp_path / "index.parquet", index.order(table, 0), card(), {})
    assert pq.ParquetFile(tmp_path / "index.parquet").metadata.row_group(0).num_rows <= 8


def test_a_card_survives_json():
    assert Card.from_json(card().to_json()) == card()
    assert json.loads(card().to_json())["note"] == "N – ü"


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"title": "T", "colour": 1}'])
def test_what_is_no_card_is_refused(text):
    with pytest.raises(CertbenchError, match="is not a dataset card"):
        Card.from_json(text)
