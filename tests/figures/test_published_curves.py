"""A reproduction beside published numbers: the comparison, the page, and the figure's notes."""

import numpy as np
import pytest
from scipy import stats

from certbench.errors import CertbenchError
from certbench.figures import published_curves, style
from certbench.figures.data import FigureData
from certbench.figures.published_curves import Params
from certbench.results import rows
from certbench.threat import Threat

PUBLISHED = """name,sigma,n,images,radius,certified_accuracy,source
Paper,0.25,100000,500,0.0,0.75,table 1
Paper,0.25,100000,500,0.25,0.60,table 1
Paper,0.5,100000,500,0.25,0.55,table 2
"""


@pytest.fixture
def published(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text(PUBLISHED)
    return path


@pytest.fixture
def certificates(tmp_path):
    """Forty images, of which 30 are right and 20 are certified at 0.25."""
    radius = np.array([0.3] * 20 + [0.1] * 10 + [0.4] * 5 + [0.0] * 5)
    predict = np.array([1] * 30 + [0] * 5 + [-1] * 5)
    size = len(radius)
    columns = {
        "label": np.ones(size, int), "predict": predict, "radius": radius,
        "abstain": predict < 0, "correct": predict == 1, "sigma": np.full(size, 0.25),
        "n": np.full(size, 1000), "alpha": np.full(size, 0.001), "bound": ["one"] * size,
        "radius_capped": np.zeros(size, bool), "n_forward": np.full(size, 1100),
        "item_id": [f"test/{i}" for i in range(size)], "item_index": np.arange(size),
    }  # fmt: skip
    declared = {"sigma": "float64", "n": "int64", "alpha": "float64", "bound": "label",
                "radius_capped": "bool"}  # fmt: skip
    keys = {
        "task": "classification", "dataset": "cifar10", "split": "test", "view": "native32",
        "variant_id": "clean", "model": "net", "defense": "rs", "seed": 0,
        **Threat("lp", "l2", guarantee="probabilistic", alpha=0.001).row(),
    }  # fmt: skip
    path = tmp_path / "certificates.parquet"
    work = {
        "dataset": {"id": "cifar10", "plugin": "parquet", "split": "test",
                    "params": {"title": "JPEG copies"}},
        "model": "net",
        "defense": {"name": "randomized_smoothing", "version": 2, "collect": {"n": 1000},
                    "decide": {"alpha": 0.001}},
    }  # fmt: skip
    footer = {"work": work, "certbench": "0", "commit": "c0ffee", "work_hash": "h",
              # The job that decided ran without the accelerator that collected.
              "device": "cpu", "collected": {"jobs": 2, "device_time_s": 7.0,
              "devices": ["NVIDIA A100"], "identity": {"numerics": "fast"}}}  # fmt: skip
    rows.write(path, rows.table("certificates", columns, keys, declared), "certificates", footer)
    return path


def test_both_sides_are_compared_at_the_published_radii_of_the_same_sigma(published, certificates):
    frame = rows.read(certificates, "certificates").to_pandas()
    made = published_curves.compare(frame, published_curves.read_published(published), 0.95)
    assert made["radius"].tolist() == [0.0, 0.25]
    assert made["ours"].tolist() == [0.75, 0.5]
    assert made["published"].tolist() == [0.75, 0.60]
    assert made["difference"].tolist() == pytest.approx([0.0, -0.1])
    # 20 of 40: the exact 95 % interval is 0.338 to 0.662 and holds 0.6.
    assert made["ours_low"][1] == pytest.approx(0.338, abs=5e-4)
    assert made["ours_high"][1] == pytest.approx(0.662, abs=5e-4)
    # Fisher's test by hand: as many or fewer of 40 among 320 of 540, both sides.
    table = stats.hypergeom(540, 320, 40)
    share = table.pmf(np.arange(41))
    assert made["p_value"][1] == pytest.approx(share[share <= share[20] * (1 + 1e-7)].sum())
    assert made["p_value"][0] == pytest.approx(1.0)
    assert made["ours_n"].tolist() == [1000, 1000]


def test_the_page_names_images_parameters_commit_and_sources(published, certificates, tmp_path):
    made = published_curves.write_comparison(
        certificates, published, tmp_path / "page", preface="# Ours\n"
    )
    text = (tmp_path / "page.md").read_text()
    for part in ("JPEG copies", "c0ffee", "'alpha': 0.001", "| 0.25 | 0.500", "table 2", "-0.100"):
        assert part in text
    assert text.startswith("# Ours\n\n| radius")
    assert "44,000 forward passes" in text
    assert "7 s on NVIDIA A100 in 2 jobs" in text
    assert "numerics fast" in text
    assert len((tmp_path / "page.csv").read_text().splitlines()) == 1 + len(made)


def test_the_figure_says_which_images_stand_in_and_what_differs(published, certificates):
    work = {"experiments": ["e"], "order": {"models": ["net"], "defenses": ["rs"]}}
    data = FigureData({"certificates": [certificates]}, work, lambda kind, name: None)
    with style.applied():
        figure = published_curves.draw(data, Params(str(published), note="six epochs"))
        text = " ".join(
            entry.get_text().replace("\n", " ") for entry in figure.legends[0].get_texts()
        )
    assert "JPEG copies (parquet)" in text
    assert "six epochs" in text
    assert "published: Paper: 500 images, n = 100,000" in text
    (axes,) = figure.axes
    points = {tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "o"}
    assert points == {(0.0, 0.75), (0.25, 0.6), (0.25, 0.55)}


def test_no_certificates_yet_is_said(published):
    data = FigureData({"certificates": []}, {}, lambda kind, name: None)
    with style.applied():
        figure = published_curves.draw(data, Params(str(published)))
    assert figure.axes[0].texts[0].get_text() == "No certificates yet"


@pytest.mark.parametrize(
    "text, match",
    [
        (None, "does not exist"),
        ("name,sigma\nPaper,0.25\n", "lacks the columns n, images"),
        (PUBLISHED.replace("0.60", "60"), "must lie in"),
    ],
)
def test_files_without_published_shares_are_refused(tmp_path, text, match):
    path = tmp_path / "p.csv"
    if text:
        path.write_text(text)
    with pytest.raises(CertbenchError, match=match):
        published_curves.read_published(path)
