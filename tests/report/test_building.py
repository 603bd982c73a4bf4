import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from certbench.errors import CertbenchError
from certbench.report import building, sources


class Page(HTMLParser):
    """Text, addresses and identifiers of a page; fails on tags that do not match."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.words, self.addresses, self.ids, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open
        self.text = " ".join(" ".join(self.words).replace("\u00a0", " ").split())

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("href", "src", "xlink:href"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)


@pytest.fixture
def text(study):
    return Path("results/report.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_no_identifier_occurs_twice(text):
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))


def test_the_page_asks_nothing_of_the_network(text):
    page = Page(text)
    assert all(a.startswith(("#", "data:")) for a in page.addresses), page.addresses
    assert not re.search(r"@import|url\((?!#)|<link(?![^>]*data:,)|fetch\(|XMLHttpRequest", text)


def test_every_link_within_the_page_leads_somewhere(text):
    page = Page(text)
    links = {a[1:] for a in page.addresses if a.startswith("#")}
    assert links <= set(page.ids), links - set(page.ids)


def test_all_sections_and_figures_are_there(text, study):
    ids = set(Page(text).ids)
    wanted = "answer table caveats certificates attacks shift gallery data models cost provenance"
    assert set(wanted.split()) <= ids
    for figure in study.config["figures"]:
        assert f"figure-{figure}" in ids
    assert "violations" not in ids and "missing" not in ids


def test_numbers_of_the_page_are_those_of_the_tables(text):
    table = pd.read_parquet("results/tables/attacked.parquet")
    page = Page(text).text
    for metric in ("accuracy", "certified_accuracy", "robust_accuracy", "abstain_rate"):
        rows = table[table["metric"].eq(metric) & table["variant_id"].eq("clean")]
        assert len(rows)
        for row in rows.itertuples():
            assert f"{100 * row.value:.1f}%" in page
            assert f"{100 * row.low:.1f}–{100 * row.high:.1f}" in page


def test_every_column_of_a_certificate_has_its_head(text):
    head, body = text.split("Certificates in detail", 1)[1].split("</tbody>", 1)[0].split("<tbody>")
    for row in body.split("</tr>")[:-1]:
        assert row.count("<td>") + 1 == head.count('<th scope="col">')
    # d = 3 x 32 x 32 values, so radius 0.5 holds 255 * 0.5 / sqrt(d) levels of every pixel.
    assert "2.30/255 at radius 0.5" in body


def test_models_are_compared_on_the_images_that_both_saw(text):
    table = pd.read_parquet("results/tables/attacked.parquet")
    rows = table[table["variant_id"].eq("clean")]
    differences = rows[rows["metric"].str.startswith("paired_difference:")]
    assert len(differences)
    page = Page(text).text
    for row in differences.itertuples():
        assert f"{100 * row.value:+.1f} points" in page and row.note in page
    for row in rows[rows["metric"].str.startswith("paired_p:")].itertuples():
        assert f"{row.value:.2g}" in page


def test_data_and_models_are_told_plainly(text):
    page = Page(text).text
    assert "real images" in page and "synthetic" not in page
    assert "CC BY 4.0" in page and "ab" * 32 in page
    assert "trained on 1,097 images of digits" in page


def test_provenance_states_device_versions_seed_and_configuration(text):
    page = Page(text).text
    for words in ("2.9.0", "cpu", "exact", "0123456789ab", "randomized_smoothing", "sigma: 0.5"):
        assert words in page, words


def test_warnings_name_the_size_the_budget_and_the_radius(text):
    page = Page(text).text
    assert "digits: 40 images only. The standard error of a share near one half is 7.9" in page
    assert "average certified radius grows with the number of samples" in page


def test_equal_inputs_give_the_same_page(study, fabricated, text):
    fabricated.run(study.jobs["report", ()])
    assert Path("results/report.html").read_text(encoding="utf-8") == text


def test_shared_results_of_two_experiments_are_counted_once(study):
    job = study.jobs["report", ()]
    found = sources.read({k: [Path(p) for p in v] for k, v in job.inputs.items()}, job.work)
    keys = ["variant_id", "model", "defense"]
    assert not found.certificates.duplicated(keys).any()
    assert set(found.certificates["n_forward"]) == {1100.0}


def _with_checks(path, alarm):
    """The table in a file with checks of an attack, as the table job writes them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    rows = table.to_pylist()
    attacked = next(row for row in rows if row["metric"] == "robust_accuracy")
    for name, value, alarms in (("C3 zero gradients", 0.25, int(alarm)), ("C1 passes", 0.0, 0)):
        check = {"metric": f"check:{name}", "value": value, "parameter": 0.1, "n": alarms}
        rows.append({**attacked, "threat_id": None, "low": None, "high": None, **check})
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


@pytest.mark.parametrize("alarm", [True, False])
def test_checks_of_an_attack_are_shown_and_alarms_are_warned_of(own_study, fabricated, alarm):
    before = Page(Path("results/report.html").read_text(encoding="utf-8")).text
    _with_checks("results/tables/attacked.parquet", alarm)
    fabricated.run(own_study.jobs["report", ()])
    text = Path("results/report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "zero gradients" in page.text and "0.25" in page.text
    assert ("1 of 2 raised an alarm" in page.text) is alarm
    assert ("likely too high" in page.text.split("What is certified")[0]) is alarm
    # Checks are no attacks: the cross table has the columns it had.
    cut = slice(before.index("Everything against"), before.index("Before you believe"))
    assert before[cut] in page.text


def test_violations_come_first_and_in_red(own_study, fabricated):
    plan = fabricated.study(fabricated.CONFIG, violations=3)
    fabricated.run(plan.jobs["report", ()])
    text = Path("results/report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert 'id="violations" class="alarm"' in text
    assert page.ids.index("violations") < page.ids.index("answer")
    verdict = json.loads(Path("results/audit/attacked.json").read_text())
    assert verdict["violations"] and not verdict["sound"]
    for violation in verdict["violations"]:
        assert violation["item_id"] in page.text
    assert "more than α explains" in page.text
    assert "No violation" not in page.text


def test_a_partial_page_lists_what_is_missing_and_leaves_the_report_alone(own_study):
    for path in ("results/tables/shifted.parquet", "results/audit/shifted.json"):
        Path(path).unlink()
    before = Path("results/report.html").read_bytes()
    path, missing = building.build(own_study, partial=True)
    assert path == building.PARTIAL
    assert missing == ["results/tables/shifted.parquet", "results/audit/shifted.json"]
    page = Page(path.read_text(encoding="utf-8"))
    assert "missing" in page.ids and "results/audit/shifted.json" in page.text
    assert Path("results/report.html").read_bytes() == before


def test_a_page_can_be_made_of_nothing(own_study):
    import shutil

    shutil.rmtree("results")
    path, missing = building.build(own_study, partial=True)
    page = Page(path.read_text(encoding="utf-8"))
    assert "no answer yet" in page.text and len(missing) > 20


@pytest.mark.parametrize("folder", ["certificates", "models"])
def test_a_page_can_be_made_without_any_one_stage(own_study, folder):
    import shutil

    shutil.rmtree(f"results/{folder}")
    path, missing = building.build(own_study, partial=True)
    assert any(f"results/{folder}" in one for one in missing)
    Page(path.read_text(encoding="utf-8"))


def test_an_incomplete_report_is_refused_unless_asked_for(own_study):
    Path("results/tables/shifted.parquet").unlink()
    with pytest.raises(CertbenchError, match=r"shifted.parquet[\s\S]*--partial"):
        building.build(own_study)


def test_a_complete_report_asked_for_partially_is_the_report(own_study):
    path, missing = building.build(own_study, partial=True)
    assert path == Path("results/report.html") and missing == []


def test_a_torn_verdict_is_refused_by_name(own_study):
    Path("results/audit/attacked.json").write_text("{")
    with pytest.raises(CertbenchError, match=r"attacked\.json.*torn"):
        building.build(own_study)


def test_titles_and_captions_cannot_inject_markup(own_study, fabricated):
    job = own_study.jobs["report", ()]
    work = json.loads(job.work_text)
    work["report"]["title"] = "<script>alert(1)</script>"
    work["figures"][0]["caption"] = '"><img src=x onerror=alert(1)>'
    found = sources.read({k: [Path(p) for p in v] for k, v in job.inputs.items()}, work)
    text = building.page(found)
    assert "<script>alert" not in text and "<img" not in text
    Page(text)


def test_no_gallery_is_embedded_where_no_images_are_wanted(own_study):
    job = own_study.jobs["report", ()]
    work = json.loads(job.work_text)
    work["config"]["report"]["embed_images"] = "none"
    found = sources.read({k: [Path(p) for p in v] for k, v in job.inputs.items()}, work)
    assert "data:image/png" not in building.page(found)
