"""Published logs: every format that is known to exist, and the alpha they were made with."""

import math

import numpy as np
import pytest

from certbench.certify.attainable import ladder
from certbench.certify.intervals import cp_lower
from certbench.certify.radii import radius_one
from certbench.errors import CertbenchError
from certbench.metrics.certification import average_certified_radius, certified_accuracy
from certbench.results import rows
from certbench.results.published_logs import ladder_check, read_log, recertify, seconds

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime"


def write(folder, *lines, header=HEADER):
    path = folder / "sigma_0.50"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def read(path, **options):
    return read_log(path, sigma=0.5, dataset="cifar10", model="resnet110", **options)


def test_a_log_becomes_certificate_rows(tmp_path):
    path = write(
        tmp_path,
        "0\t3\t3\t0.378\t1\t15.4",
        "20\t7\t-1\t0.0\t0\t0:00:15.634601",
        "40\t4\t5\t1.9\t0\t1 day, 1:00:02",
    )
    table = read(path, split="test")
    made = table.to_pydict()
    assert made["item_index"] == [0, 20, 40] and made["item_id"] == ["0", "20", "40"]
    assert made["label"] == [3, 7, 4] and made["predict"] == [3, -1, 5]
    assert made["radius"] == [0.378, 0.0, 1.9] and made["sigma"] == [0.5] * 3
    assert made["correct"] == [True, False, False] and made["abstain"] == [False, True, False]
    assert made["time_s"] == pytest.approx([15.4, 15.634601, 90002.0])
    assert made["dataset"] == ["cifar10"] * 3 and made["split"] == ["test"] * 3
    for unknown in ("n", "n0", "n_top", "alpha", "threat_alpha", "p_lower", "radius_capped"):
        assert made[unknown] == [None] * 3
    assert set(rows.schema("certificates")) <= set(table.column_names)
    assert certified_accuracy(table, [0.0, 0.378, 0.5]).tolist() == [1 / 3, 1 / 3, 0.0]


def test_rows_of_a_log_can_be_written_and_read_back(tmp_path):
    table = read(write(tmp_path, "0\t3\t3\t0.378\t1\t15.4"))
    rows.write(tmp_path / "log.parquet", table, "certificates", {})
    back = rows.read(tmp_path / "log.parquet", "certificates")
    assert back.select(["label", "radius"]).to_pydict() == {"label": [3], "radius": [0.378]}


def test_a_running_total_in_the_correct_column_is_ignored(tmp_path):
    path = write(
        tmp_path,
        "0\t3\t3\t0.3\t1\t1.0",
        "1\t3\t2\t0.3\t1\t1.0",
        "2\t5\t5\t0.3\t2\t1.0",
        "3\t-1\t-1\t0.0\t3\t1.0",
    )
    assert read(path).to_pydict()["correct"] == [True, False, True, False]


def test_a_header_alone_gives_no_rows_and_null_metrics(tmp_path):
    table = read(write(tmp_path))
    assert table.num_rows == 0 and "radius" in table.column_names
    assert math.isnan(average_certified_radius(table))


def test_a_prediction_log_gives_prediction_rows(tmp_path):
    path = write(
        tmp_path, "0\t0\t0\t1\t0:00:01.737771", header="idx\tlabel\tpredict\tcorrect\ttime"
    )
    table = read(path)
    assert "radius" not in table.column_names
    assert table["time_s"].to_pylist() == pytest.approx([1.737771])
    assert table["correct"].to_pylist() == [True]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16.9", 16.9),
        ("16", 16.0),
        ("0:00:15", 15.0),
        ("0:02:30.123456", 150.123456),
        ("12:00:00", 43200.0),
        ("1 day, 0:00:01", 86401.0),
        ("2 days, 3:04:05.5", 183845.5),
    ],
)
def test_times_in_every_format(text, value):
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "fast", "-1", "nan", "0:1:2", "1 week, 0:00:01"])
def test_other_times_are_refused(text):
    with pytest.raises(ValueError):
        seconds(text)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0\t3\t3\t0.3\t1\t1.0", "20\t3\t3"], "line 3.* 3 fields"),
        (["0\t3\tthree\t0.3\t1\t1.0"], "'three' is no predict"),
        (["0\t3\t3\tnan\t1\t1.0"], "'nan' is no radius"),
        (["-20\t3\t3\t0.3\t1\t1.0"], "is no idx"),
        (["99999999999\t3\t3\t0.3\t1\t1.0"], "'99999999999' is no idx"),
        (["0\t99999999999\t3\t0.3\t1\t1.0"], "'99999999999' is no label"),
        (["0\t-2\t3\t0.3\t1\t1.0"], "'-2' is no label"),
        (["0\t3\t-2\t0.3\t1\t1.0"], "'-2' is no predict"),
        (["0\t3\t3\t0.3\t1\t1.0", "0\t3\t3\t0.3\t1\t1.0"], "item 0 appears more than once"),
    ],
)
def test_broken_logs_are_refused_with_file_and_line(tmp_path, lines, message):
    with pytest.raises(CertbenchError, match=message):
        read(write(tmp_path, *lines))


def test_marks_and_line_ends_of_windows_change_nothing(tmp_path):
    path = write(tmp_path, "0\t3\t3\t0.183\t1\t0:00:17.1", "20\t7\t-1\t0.0\t0\t16.9")
    plain = read(path)
    text = path.read_text()
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read(path).equals(plain)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "log"
    path.write_text("idx\tidx\tlabel\tpredict\n0\t1\t3\t3\n")
    with pytest.raises(CertbenchError, match="two columns idx"):
        read(path)


def test_files_that_are_no_logs_are_refused(tmp_path):
    with pytest.raises(CertbenchError, match="lacks idx, label, predict"):
        read(write(tmp_path, header="radius"))
    (tmp_path / "empty").write_text("")
    with pytest.raises(CertbenchError, match="no certification log"):
        read(tmp_path / "empty")
    with pytest.raises(CertbenchError, match="cannot be read"):
        read(tmp_path / "missing")
    with pytest.raises(CertbenchError, match="positive"):
        read_log(tmp_path / "empty", 0.0, "cifar10", "resnet110")


def logged(alpha, sigma=0.25, n=100000):
    """Radii as a log would print them, over many counts up to the cap."""
    generator = np.random.default_rng(5)
    p = np.concatenate([generator.uniform(0.5, 1.0, 300), 1 - 10 ** generator.uniform(-6, -1, 300)])
    counts = np.append(generator.binomial(n, p), n)
    radii = np.asarray(radius_one(cp_lower(counts, n, alpha), sigma))
    return counts, radii, np.array([float(f"{r:.3}") for r in radii.tolist()])


def test_the_check_finds_the_alpha_that_a_log_was_made_with():
    for alpha in (0.001, 0.01):
        matches = ladder_check(logged(alpha)[2], 0.25)
        assert (matches[0].n, matches[0].alpha, matches[0].share) == (100000, alpha, 1.0)
        assert all(match.share < 1.0 for match in matches[1:])
    cap = f"{ladder(100000, 0.01, 0.25)[-1]:.3}"
    assert cap == "0.978"


def test_the_check_of_a_log_without_certificates_says_nothing():
    matches = ladder_check([0.0, 0.0], 0.25, [(100, 0.001), (100, 0.01)])
    assert [math.isnan(match.share) for match in matches] == [True, True]


def test_a_log_can_be_recertified_at_the_alpha_it_claims():
    counts, _, printed = logged(0.01)
    exact = np.asarray(radius_one(cp_lower(counts, 100000, 0.001), 0.25))
    made = recertify(printed, 0.25, 100000, 0.01, 0.001)
    certified = printed > 0
    # Three digits leave the count open: the radius is right to the same relative precision.
    open_ = certified & (exact > 0.02)
    assert np.allclose(made[open_], exact[open_], rtol=0.01)
    assert made[counts == 100000] == pytest.approx(0.9528641408, abs=1e-9)
    assert np.all(made <= printed * 1.005)
