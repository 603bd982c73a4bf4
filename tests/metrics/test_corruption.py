"""Means over corruptions and mCE against plain sums over the same rows."""

import numpy as np
import pandas as pd
import pytest

from certbench.corruptions.severity import BENCHMARK_15
from certbench.errors import CertbenchError
from certbench.metrics import corruption, tabulating
from certbench.metrics.corruption_errors import REFERENCES
from certbench.params import build

ITEMS = 40
ALL = {(name, s): 0.02 * i + 0.1 * s for i, name in enumerate(BENCHMARK_15) for s in range(1, 6)}
KEYS = {"task": "classification", "dataset": "d", "split": "test", "view": "v"}


def block(name, severity, table="imagenet", step="corruption", **params):
    params |= {"corruption": name, "severity": severity}
    params |= {"severity_table": table} if table else {}
    steps = [{"name": step, "version": 1, "params": params}]
    return {"variant_id": f"v{len(str(params))}-{name}-{severity}-{table}-{step}", "steps": steps}


class Study:
    """Random rows of two bare models and one smoothed one on some variants."""

    def __init__(self, levels=ALL, table="imagenet", clean=True, step="corruption"):
        self.blocks = [block(*key, table, step) for key in levels]
        self.generator = np.random.default_rng(7)
        ids = {b["variant_id"]: rate for b, rate in zip(self.blocks, levels.values(), strict=True)}
        self.names = dict(zip(levels, ids, strict=True))
        if clean:
            ids["clean"] = 0.05
        frames = []
        for variant, rate in ids.items():
            for model, more in (("plain", 0.1), ("noisy", 0.0)):
                frames.append(self._rows("predictions", variant, model, None, rate + more))
            frames.append(self._rows("certificates", variant, "noisy", "smoothing", rate))
        self.frame = pd.concat(frames, ignore_index=True)

    def _rows(self, kind, variant, model, defense, error):
        label = self.generator.integers(0, 10, ITEMS)
        wrong = self.generator.random(ITEMS) < min(error, 0.95)
        predict = np.where(wrong, (label + 1) % 10, label)
        rows = {**KEYS, "variant_id": variant, "model": model, "defense": defense, "kind": kind}
        rows |= {"attack": None, "threat_id": None, "label": label, "predict": predict}
        if kind == "certificates":
            abstain = self.generator.random(ITEMS) < 0.1
            radius = np.where(abstain, 0, self.generator.random(ITEMS))
            rows |= {"predict": np.where(abstain, -1, predict), "radius": radius}
        return pd.DataFrame(rows)

    def table(self, **params):
        """The metric's rows as the table job makes them."""
        made = tabulating.tabulate(
            self.frame,
            corruption,
            build(corruption.Params, params, "metrics"),
            tabulating.Context((), None, tabulating.corruptions(self.blocks)),
        )
        return pd.DataFrame(made, columns=tabulating.COLUMNS[1:])

    def score(self, model, defense, key, radius=None):
        """Share of right answers of one variant, counted anew."""
        variant = self.names.get(key, "clean")
        rows = self.frame[self.frame["variant_id"].eq(variant) & self.frame["model"].eq(model)]
        rows = rows[rows["defense"].isna() if defense is None else rows["defense"].eq(defense)]
        right = (rows["predict"] == rows["label"]) & (rows["predict"] != -1)
        if radius is not None:
            right &= rows["radius"] >= radius
        return right.sum() / ITEMS


def one(table, metric, model="plain", defense=None, **wanted):
    """The only row of a metric; keys that are not asked for must be null."""
    rows = table[table["metric"].eq(metric) & table["model"].eq(model)]
    rows = rows[rows["defense"].isna() if defense is None else rows["defense"].eq(defense)]
    for name in ("corruption", "severity", "parameter"):
        asked = wanted.get(name)
        if asked is not any:
            rows = rows[rows[name].isna() if asked is None else rows[name].eq(asked)]
    assert len(rows) == 1, (metric, len(rows))
    return rows.iloc[0]


@pytest.fixture(scope="module")
def study():
    return Study()


@pytest.fixture(scope="module")
def table(study):
    return study.table(references=["alexnet_imagenet_c", "plain"])


def test_means_are_over_severities_over_types_and_over_both(study, table):
    def mean(keys):
        return np.mean([study.score("noisy", "smoothing", key, 0.5) for key in keys])

    at = {"model": "noisy", "defense": "smoothing", "parameter": 0.5}
    name = "mean_certified_accuracy"
    fog = one(table, name, **at, corruption="fog")
    assert fog["value"] == pytest.approx(mean([("fog", s) for s in range(1, 6)]))
    third = one(table, name, **at, severity=3)
    assert third["value"] == pytest.approx(mean([(kind, 3) for kind in BENCHMARK_15]))
    both = one(table, name, **at)
    assert both["value"] == pytest.approx(mean(ALL))
    assert both["note"] == "15 types, severities 1 to 5" and both["n"] == ITEMS
    assert both["low"] < both["value"] < both["high"]
    assert both["severity_table"] == "imagenet" and pd.isna(both["variant_id"])


def test_abstention_and_average_radius_are_averaged_too(study, table):
    rows = study.frame[study.frame["kind"].eq("certificates")]
    rows = rows[rows["variant_id"].ne("clean")]
    ok = rows["predict"].eq(rows["label"])
    at = {"model": "noisy", "defense": "smoothing"}
    assert one(table, "mean_acr", **at)["value"] == pytest.approx((rows["radius"] * ok).mean())
    abstains = one(table, "mean_abstain_rate", **at)["value"]
    assert abstains == pytest.approx(rows["predict"].eq(-1).mean()) and abstains > 0


def test_rpc_is_the_share_of_the_clean_value_that_is_left(study, table):
    mean = np.mean([study.score("plain", None, key) for key in ALL])
    clean = study.score("plain", None, "clean")
    assert one(table, "rpc")["value"] == pytest.approx(mean / clean)


def test_mce_holds_errors_against_the_published_constants(study, table):
    errors = REFERENCES["alexnet_imagenet_c"].errors
    ratios = {
        kind: sum(1 - study.score("plain", None, (kind, s)) for s in range(1, 6)) / 5 / errors[kind]
        for kind in BENCHMARK_15
    }
    mce = one(table, "mce:alexnet_imagenet_c")["value"]
    assert mce == pytest.approx(100 * np.mean(list(ratios.values())))
    note = one(table, "mce:alexnet_imagenet_c")["note"]
    assert note == "15 types, severities 1 to 5; computed anew, not the published files"
    snow = one(table, "ce:alexnet_imagenet_c", corruption="snow")["value"]
    assert snow == pytest.approx(100 * ratios["snow"])


def test_a_model_is_its_own_reference_at_one_hundred(table):
    assert one(table, "mce:plain")["value"] == pytest.approx(100)
    assert one(table, "relative_mce:plain")["value"] == pytest.approx(100)
    assert one(table, "mce:plain", "noisy")["value"] < 100


def test_certified_errors_are_held_against_the_bare_reference(study, table):
    def lost(model, defense, kind, radius=None):
        return sum(1 - study.score(model, defense, (kind, s), radius) for s in range(1, 6))

    expected = np.mean(
        [lost("noisy", "smoothing", kind, 0.5) / lost("plain", None, kind) for kind in BENCHMARK_15]
    )
    found = one(table, "certified_mce:plain", "noisy", "smoothing", parameter=0.5)
    assert found["value"] == pytest.approx(100 * expected)
    clean = 5 * (1 - study.score("plain", None, "clean"))
    own = 5 * (1 - study.score("noisy", "smoothing", "clean", 0.5))
    expected = np.mean(
        [
            (lost("noisy", "smoothing", kind, 0.5) - own) / (lost("plain", None, kind) - clean)
            for kind in BENCHMARK_15
        ]
    )
    found = one(table, "certified_relative_mce:plain", "noisy", "smoothing", parameter=0.5)
    assert found["value"] == pytest.approx(100 * expected)


def test_the_worst_type_is_named_and_counts_what_was_measured(study, table):
    by_type = {
        kind: np.mean([study.score("plain", None, (kind, s)) for s in range(1, 6)])
        for kind in BENCHMARK_15
    }
    row = one(table, "worst_accuracy", corruption=any)
    assert row["corruption"] == min(by_type, key=by_type.get)
    assert row["value"] == pytest.approx(min(by_type.values()))
    assert row["note"] == "of 15 types, severities 1, 2, 3, 4, 5"


def test_the_order_of_the_variants_changes_nothing(study, table):
    other = Study.__new__(Study)
    other.frame = study.frame.sample(frac=1, random_state=1)
    other.blocks, other.names = study.blocks[::-1], study.names
    again = other.table(references=["alexnet_imagenet_c", "plain"])
    order = ["model", "defense", "metric", "parameter", "corruption", "severity"]
    pd.testing.assert_frame_equal(
        *(t.sort_values(order, ignore_index=True) for t in (table, again)), check_exact=False
    )


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        ([("fog", s) for s in range(1, 6)], "lacks fog of 15 types"),
        ([("fog", 2)], "lacks severity 2"),
    ],
)
def test_an_incomplete_set_has_no_mean_and_says_why(gone, reason):
    table = Study({key: rate for key, rate in ALL.items() if key not in gone}).table(
        references=["plain"]
    )
    for metric in ("mean_accuracy", "rpc", "mce:plain", "relative_mce:plain"):
        row = one(table, metric)
        assert pd.isna(row["value"]) and row["note"] == reason
    assert one(table, "mean_accuracy", corruption="snow")["value"] > 0
    if len(gone) == 1:
        row = one(table, "mean_accuracy", corruption="fog")
        assert pd.isna(row["value"]) and row["note"] == "not measured at severity 2"


def test_published_constants_are_refused_for_another_table_of_severities():
    row = one(
        Study(table="cifar32").table(references=["alexnet_imagenet_c"]), "mce:alexnet_imagenet_c"
    )
    assert pd.isna(row["value"])
    assert row["note"] == (
        "'alexnet_imagenet_c' was measured with severity table imagenet_c or imagenet, not cifar32"
    )


def test_the_published_files_are_known_by_their_step_and_need_no_remark():
    table = Study(table=None, step="imagenet_c").table(references=["alexnet_imagenet_c"])
    row = one(table, "mce:alexnet_imagenet_c")
    assert row["value"] > 0 and row["note"] == "15 types, severities 1 to 5"
    assert row["severity_table"] == "imagenet_c"


def test_an_unknown_reference_says_so(study):
    row = one(study.table(references=["plane"]), "mce:plane")
    assert pd.isna(row["value"]) and "neither a published reference nor" in row["note"]


def test_without_clean_images_there_is_no_relative_number():
    table = Study(clean=False).table(references=["alexnet_imagenet_c"])
    assert one(table, "mce:alexnet_imagenet_c")["value"] > 0
    for metric in ("rpc", "relative_mce:alexnet_imagenet_c"):
        assert one(table, metric)["note"] == "no clean images in the experiment"


def test_a_set_of_ones_own_has_a_mean_but_no_published_reference():
    levels = {("fog", 3): 0.2, ("contrast", 3): 0.4, ("snow", 3): 0.5}
    own = Study(levels)
    table = own.table(types=["fog", "contrast"], severities=[3], references=["alexnet_imagenet_c"])
    mean = one(table, "mean_accuracy")
    assert mean["value"] == pytest.approx(
        np.mean([own.score("plain", None, (kind, 3)) for kind in ("fog", "contrast")])
    )
    assert mean["note"] == "2 types, severity 3"
    assert one(table, "mce:alexnet_imagenet_c")["note"].startswith(
        "'alexnet_imagenet_c' is about 15 types"
    )


def test_the_other_elastic_recipe_fills_the_slot():
    other = "elastic_transform_imagenet_c"
    levels = {(other if n == "elastic_transform" else n, s): r for (n, s), r in ALL.items()}
    table = Study(levels).table(references=["alexnet_imagenet_c"])
    assert one(table, "mce:alexnet_imagenet_c")["value"] > 0
    assert one(table, "mean_accuracy", corruption=other)["value"] > 0


def test_a_type_that_costs_nothing_has_no_relative_error_and_says_which():
    levels = dict.fromkeys(ALL, -0.1)
    table = Study(levels).table(references=["plain"])
    row = one(table, "mce:plain")
    assert pd.isna(row["value"]) and "makes no error on" in row["note"]


def test_severities_and_types_must_make_sense():
    for values in ({"severities": [3, 1]}, {"severities": []}, {"types": ["fog", "fog"]}):
        with pytest.raises(CertbenchError):
            build(corruption.Params, values, "metrics")


def test_a_variant_is_known_by_its_steps():
    fog, again = block("fog", 3, "cifar32"), block("fog", 4, "cifar32")
    both = {
        "variant_id": "adv-fog",
        "steps": [{"name": "adversarial", "params": {}}, *fog["steps"]],
    }
    scene = block("fog_3d", 3, None, "corruption_3d", depth_root="a")
    found = tabulating.corruptions([{"variant_id": "clean", "steps": []}, fog, again, both, scene])
    assert found == {
        fog["variant_id"]: tabulating.Corruption("fog", 3, "cifar32"),
        again["variant_id"]: tabulating.Corruption("fog", 4, "cifar32"),
        scene["variant_id"]: tabulating.Corruption("fog_3d", 3, "corruption_3d"),
    }


def test_one_type_made_in_two_ways_belongs_to_two_tables():
    blocks = [
        block(name, 3, None, "corruption_3d", depth_root=root)
        for name in ("fog_3d", "near_focus")
        for root in ("a", "bb")
    ]
    found = tabulating.corruptions(blocks)
    tables = {found[b["variant_id"]].severity_table for b in blocks}
    assert len(found) == 4 and len(tables) == 2
    assert all(table.startswith("corruption_3d-") for table in tables)


def test_the_same_corruption_with_the_artefacts_of_jpeg_belongs_to_a_table_of_its_own():
    plain, coded = block("fog", 3, "imagenet"), block("fog", 3, "imagenet")
    coded = {**coded, "variant_id": "coded", "encoding": "jpeg85"}
    found = tabulating.corruptions([plain, coded])
    assert found[plain["variant_id"]].severity_table != found["coded"].severity_table


def test_segmentation_is_measured_by_miou_and_its_errors_are_corruption_degradation():
    """Four images of three classes; mIoU counted from the sums by hand."""
    levels = {("fog", 1): 3, ("fog", 3): 6, ("snow", 1): 2, ("snow", 3): 9}
    blocks = [block(*key, "tiny64") for key in levels]
    ids = {b["variant_id"]: w for b, w in zip(blocks, levels.values(), strict=True)} | {"clean": 1}
    rows, miou = [], {}
    for model, more in (("unet", 0), ("other", 4)):
        for variant, wrong in ids.items():
            # Every image: 20 pixels of each class; of each, `wrong` are called the next class.
            w = wrong + more
            for item in range(4):
                for k in range(3):
                    rows.append(
                        KEYS
                        | {"variant_id": variant, "model": model, "item_id": str(item)}
                        | {"class_id": k, "class_name": str(k), "intersection": 20 - w}
                        | {"predicted_pixels": 20, "label_pixels": 20}
                    )
            miou[model, variant] = (20 - w) / (20 + w)
    frame = pd.DataFrame(rows).assign(defense=None, attack=None, threat_id=None)
    frame["kind"] = "segmentation"
    params = {"types": ["fog", "snow"], "severities": [1, 3], "references": ["other"]}
    made = tabulating.tabulate(
        frame,
        corruption,
        build(corruption.Params, params, "metrics"),
        tabulating.Context((), None, tabulating.corruptions(blocks)),
    )
    table = pd.DataFrame(made, columns=tabulating.COLUMNS[1:])
    own = {b["variant_id"]: miou["unet", b["variant_id"]] for b in blocks}
    mean = np.mean(list(own.values()))
    assert one(table, "mean_miou", "unet")["value"] == pytest.approx(mean)
    rpc = one(table, "miou_rpc", "unet")["value"]
    assert rpc == pytest.approx(mean / miou["unet", "clean"])
    names = [b["variant_id"] for b in blocks]
    cd = [
        sum(1 - miou["unet", v] for v in pair) / sum(1 - miou["other", v] for v in pair)
        for pair in (names[:2], names[2:])
    ]
    assert one(table, "cd:other", "unet", corruption="fog")["value"] == pytest.approx(100 * cd[0])
    assert one(table, "mean_cd:other", "unet")["value"] == pytest.approx(100 * np.mean(cd))
    assert one(table, "mean_cd:other", "other")["value"] == pytest.approx(100)
    assert one(table, "worst_miou", "unet", corruption=any)["corruption"] == "snow"
    assert not table["metric"].str.contains("accuracy").any()
