import io
import os
import pickle
import struct
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from certbench.datasets import cifar10
from certbench.datasets.access import Items
from certbench.errors import CertbenchError

BLACK = np.zeros((2, 3072), np.uint8)


def short(text):
    return b"U" + bytes([len(text)]) + text


def python2_batch(pixels, labels, dtype=b"u1"):
    """What Python 2's pickle (protocol 2) makes of a batch, as in the original archive."""
    n, width = pixels.shape
    raw = pixels.tobytes()
    shape = b"M" + struct.pack("<H", n) + b"M" + struct.pack("<H", width) + b"\x86"
    empty = b"K\x00\x85" + short(b"b") + b"\x87Rq\x05"
    byte = b"cnumpy\ndtype\nq\x06" + short(dtype) + b"K\x00K\x01\x87Rq\x07"
    byte += b"(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01" + shape + byte + b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04" + empty + state
    return (
        b"\x80\x02}q\x01(" + short(b"data") + array + short(b"labels") + b"]("
        + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
        + short(b"batch_label") + short(b"training batch 1 of 5") + b"u."
    )  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """All six batches with random pixels; image i of the data set starts with the bytes of i."""
    root = tmp_path_factory.mktemp("cifar")
    folder = root / cifar10.FOLDER
    folder.mkdir()
    generator = np.random.Generator(np.random.PCG64(0))
    labels = {}
    for b, name in enumerate([*cifar10.BATCHES["train"], *cifar10.BATCHES["test"]]):
        pixels = np.tile(generator.integers(0, 256, (100, 3072), np.uint8), (100, 1))
        pixels[:, :2] = (
            np.arange(b * 10_000, (b + 1) * 10_000, dtype="<u2").view(np.uint8).reshape(-1, 2)
        )
        labels[name] = generator.permutation(np.arange(10_000) % 10).tolist()
        (folder / name).write_bytes(python2_batch(pixels, labels[name]))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(cifar10.CLASSES)}, 2))
    cifar10._batch.cache_clear()
    yield root
    cifar10._batch.cache_clear()


def prepared(root, splits, seed=0, **params):
    made = cifar10.Params(root=str(root), **params)
    table, card = cifar10.prepare(made, splits, seed, lambda done, total: None)
    return table, card, made


def test_the_handwritten_pickle_is_one_that_numpy_reads():
    pixels = np.arange(6144, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
    read = pickle.loads(python2_batch(pixels, [3, 7]), encoding="bytes")
    np.testing.assert_array_equal(read[b"data"], pixels)
    assert read[b"labels"] == [3, 7]


def test_images_and_labels_are_those_that_torchvision_reads(archive, monkeypatch):
    from torchvision.datasets import cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)
    for train, split in ((True, "train"), (False, "test")):
        oracle = cifar.CIFAR10(str(archive), train=train)
        table, card, params = prepared(archive, [split])
        assert table.column("label").to_pylist() == oracle.targets
        assert list(card.class_names) == oracle.classes
        some = [0, 1, 9_999, 10_000 % len(table), 4_321, len(table) - 1]
        images = cifar10.read(params, table.take(some))
        for i, image in zip(some, images, strict=True):
            assert image.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(image), oracle.data[i])


def test_sizes_are_known_before_anything_is_read():
    params = cifar10.Params(root="/nowhere", val=5000, calibration=1000)
    assert cifar10.splits(params) == {
        "train": 44_000, "val": 5000, "calibration": 1000, "test": 10_000,
    }  # fmt: skip
    assert cifar10.splits(cifar10.Params(root="x")) == {"train": 50_000, "test": 10_000}


def test_holdouts_are_disjoint_stratified_and_keep_ids_and_indices(archive):
    table, _, params = prepared(archive, ["train", "val", "calibration"], val=500, calibration=250)
    rows = table.select(["item_id", "item_index", "split", "label"]).to_pylist()
    sizes = Counter(row["split"] for row in rows)
    assert sizes == {"train": 49_250, "val": 500, "calibration": 250}
    for name in ("val", "calibration"):
        counts = Counter(row["label"] for row in rows if row["split"] == name)
        assert all(abs(count - sizes[name] / 10) < 1 for count in counts.values())
    assert all(row["item_id"] == f"train/{row['item_index']:06d}" for row in rows)
    assert sorted(row["item_index"] for row in rows) == list(range(50_000))
    images = cifar10.read(params, table.take([0, 20_003, 49_999]))
    numbers = [int(np.asarray(image)[0, :2, 0].copy().view("<u2")[0]) for image in images]
    assert numbers == [0, 20_003, 49_999]
    alone, _, _ = prepared(archive, ["val"], val=500, calibration=250)
    assert alone.select(["item_id"]).to_pylist() == [
        {"item_id": row["item_id"]} for row in rows if row["split"] == "val"
    ]
    other, _, _ = prepared(archive, ["val"], seed=1, val=500, calibration=250)
    assert not other.equals(alone)


def test_the_folder_itself_may_be_named(archive):
    table, _, _ = prepared(archive / cifar10.FOLDER, ["test"])
    assert len(table) == 10_000


def test_a_limit_is_a_prefix_of_a_stratified_order(archive, prepare):
    params = {"root": str(archive)}
    code, said, path = prepare("cifar10", params, ["test"], {"test": 500})
    assert code == 0, said
    batch = Items(path, "test", "native32", cifar10, cifar10.Params(**params)).load(0, 500)
    assert np.bincount(batch.labels).tolist() == [50] * 10
    assert batch.images.shape == (500, 32, 32, 3)


@pytest.mark.data
def test_real_images_survive_the_batches(real_images, tmp_path):
    import pyarrow.parquet as pq

    rows = (
        pq.ParquetFile(real_images / "cifar10-jpeg" / "test.parquet").read_row_group(0).slice(0, 20)
    )
    expected = [
        np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB"))
        for row in rows.column("image").to_pylist()
    ]
    planes = np.stack([image.transpose(2, 0, 1).reshape(-1) for image in expected])
    labels = rows.column("label").to_pylist()
    (tmp_path / "test_batch").write_bytes(python2_batch(planes, labels))
    params = cifar10.Params(root=str(tmp_path))
    from certbench.datasets import index

    table = index.table([str(i) for i in range(20)], range(20), "test", labels,
                        path=["test_batch"] * 20, row=range(20))  # fmt: skip
    for image, pixels in zip(cifar10.read(params, table), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_batches_pickled_again_by_python_3_are_read(protocol):
    pixels = np.arange(6144, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
    for array in (pixels, np.asfortranarray(pixels)):
        content = {b"data": array, b"labels": [1, 2], b"filenames": [b"a", b"b"]}
        read = cifar10.load_pickle(io.BytesIO(pickle.dumps(content, protocol)), "x")
        np.testing.assert_array_equal(read[b"data"], pixels)
        assert read[b"labels"] == [1, 2] and read[b"filenames"] == [b"a", b"b"]


class Runs:
    def __init__(self, function, *arguments):
        self.made = (function, arguments)

    def __reduce__(self):
        return self.made


def hostile(mark):
    """Pickles that would make the file ``mark`` if anything in them ran, or hold something else."""
    command = f"touch {mark}"
    path = str(mark).encode()
    yield "os.system", pickle.dumps(Runs(os.system, command))
    yield "eval", pickle.dumps(Runs(eval, f"open({str(mark)!r}, 'w')"))
    yield "open", pickle.dumps(Runs(open, str(mark), "w"))
    yield "inside a batch", pickle.dumps({b"data": Runs(os.system, command), b"labels": []})
    yield "protocol 0", b"cos\nsystem\n(S'touch " + path + b"'\ntR."
    yield "INST", b"(S'touch " + path + b"'\nios\nsystem\n."
    yield "OBJ", b"(cos\nsystem\nS'touch " + path + b"'\no."
    yield "dotted name", b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile.\x93."
    yield "getattr", b"\x80\x02c__builtin__\ngetattr\n."
    yield "numpy runstring", b"\x80\x02cnumpy.testing._private.utils\nrunstring\n."
    yield "numpy load", b"\x80\x02cnumpy\nload\n."
    yield (
        "codec",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00idna\x00\x00\x86R.",
    )
    yield "outside object", b"\x80\x02Pname\n."
    yield "extension", b"\x80\x02\x82\x01."
    yield "object array", pickle.dumps({b"data": np.array([Runs(os.system, command)], object)})
    yield "class itself", b"\x80\x02cnumpy\nndarray\n."
    yield "state for a class", b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb."
    yield "set", pickle.dumps({1, 2})
    yield "itself", b"\x80\x02]q\x00h\x00a."
    yield "torn", pickle.dumps({b"data": 1})[:-3]
    yield "empty", b""
    yield (
        "wrong shape",
        python2_batch(BLACK, [1, 2]).replace(b"M\x02\x00M\x00\x0c", b"M\x03\x00M\x00\x0c"),
    )
    yield "other type", python2_batch(BLACK, [1, 2], dtype=b"i1")


@pytest.mark.parametrize("which", range(23))
def test_a_hostile_or_torn_pickle_is_refused_and_does_not_run(tmp_path, which):
    mark = tmp_path / "ran"
    cases = list(hostile(mark))
    assert len(cases) == 23
    name, data = cases[which]
    with pytest.raises(CertbenchError, match="batch: is refused"):
        cifar10.load_pickle(io.BytesIO(data), "batch")
    assert not mark.exists(), name


def test_the_hostile_pickles_do_run_with_an_ordinary_unpickler(tmp_path):
    mark = tmp_path / "ran"
    data = dict(hostile(mark))
    for name in ("os.system", "protocol 0", "INST", "OBJ", "object array"):
        pickle.loads(data[name])
        assert mark.exists(), name
        mark.unlink()


def test_a_hostile_batch_stops_the_prepare_job(prepare, tmp_path):
    mark = tmp_path / "ran"
    (tmp_path / "test_batch").write_bytes(dict(hostile(mark))["os.system"])
    code, said, _ = prepare("cifar10", {"root": str(tmp_path)}, ["test"])
    assert code == 2 and "it asks for posix.system, which no batch needs" in said
    assert "Traceback" not in said and not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({b"fine_labels": [1]}, "is no CIFAR-10 batch"),
        ([1, 2], "is no CIFAR-10 batch"),
        ({b"data": BLACK, b"labels": [1]}, "is no CIFAR-10 batch"),
        ({b"data": BLACK, b"labels": [1, 10]}, r"labels outside 0\.\.9: \[10\]"),
        ({b"data": BLACK, b"labels": [1, 9]}, "has 2 images, not 10000"),
    ],
)  # fmt: skip
def test_what_is_no_batch_is_refused(tmp_path, content, message):
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(CertbenchError, match=message):
        prepared(tmp_path, ["test"])


def test_a_missing_folder_or_batch_is_refused_with_the_archives_name(prepare, tmp_path):
    code, said, _ = prepare("cifar10", {"root": str(tmp_path / "no")}, ["test"])
    assert code == 2 and "config: datasets.mine.root: there is no folder" in said
    code, said, _ = prepare("cifar10", {"root": str(tmp_path)}, ["test"])
    assert code == 2 and "config: datasets.mine.root: there is no file" in said
    assert "cifar-10-python.tar.gz" in said


def test_holding_out_everything_is_refused():
    with pytest.raises(CertbenchError, match="leave nothing of 50000"):
        cifar10.Params(root="x", val=40_000, calibration=10_000)
