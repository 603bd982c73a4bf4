"""Planning of models that tell the class of every pixel."""

import copy

import pytest

from certbench import plan
from certbench.errors import CertbenchError

CONFIG = {
    "datasets": {"streets": {"type": "streets"}, "digits": {"type": "digits"}},
    "models": {
        "segmenter": {
            "task": "segmentation",
            "builder": {"type": "small_unet"},
            "recipe": {"type": "standard", "epochs": 1},
            "train_on": {"dataset": "streets", "view": "native"},
        },
        "weather": {
            "builder": {"type": "small_cnn"},
            "recipe": {"type": "standard", "epochs": 1},
            "train_on": {"dataset": "streets", "view": "native"},
        },
    },
    "defenses": {"smoothing": {"type": "randomized_smoothing", "sigma": 0.25}},
    "attacks": {"pgd": {"type": "pgd", "norm": "l2", "epsilon": 0.5}},
    "variants": {"attacked": {"type": "adversarial", "model": "segmenter", "attack": "pgd"}},
    "metrics": [{"type": "accuracy"}, {"type": "segmentation"}],
    "figures": {"maps": {"type": "label_maps"}, "images": {"type": "gallery"}},
    "experiments": [
        {
            "name": "pixels",
            "task": "segmentation",
            "datasets": [{"name": "streets", "view": "native", "limit": 20}],
            "models": ["segmenter"],
        },
        {
            "name": "weather",
            "datasets": [{"name": "streets", "view": "native", "limit": 20}],
            "models": ["weather"],
        },
    ],
}


def changed(path, value):
    config = copy.deepcopy(CONFIG)
    *keys, last = path
    place = config
    for key in keys:
        place = place[key]
    place[last] = value
    return config


def test_answers_of_each_task_go_where_their_kind_of_rows_is_read():
    made = plan.make(CONFIG)
    assert made.counts()["predict"] == 2 and made.counts()["train"] == 2
    tables = {key[0]: job.inputs for (rule, key), job in made.jobs.items() if rule == "table"}
    assert len(tables["pixels"]["segmentation"]) == 1 and not tables["pixels"]["predictions"]
    assert len(tables["weather"]["predictions"]) == 1 and not tables["weather"]["segmentation"]
    figures = {key[0]: job.inputs for (rule, key), job in made.jobs.items() if rule == "figure"}
    assert figures["maps"]["segmentation"] == tables["pixels"]["segmentation"]
    assert figures["images"]["predictions"] == tables["weather"]["predictions"]


FIRST = ("experiments", 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            (*FIRST, "defenses"),
            ["none", "smoothing"],
            "'segmenter' does segmentation, which is not",
        ),
        ((*FIRST, "attacks"), ["pgd"], "'segmenter' does segmentation, which is not certified or"),
        (("experiments", 1, "variants"), ["attacked"], "'segmenter' does segmentation, which is"),
        ((*FIRST, "task"), "classification", "does segmentation, the experiment is about classif"),
        ((*FIRST, "models"), ["weather"], "'weather' does classification, the experiment is about"),
        (
            (*FIRST, "datasets"),
            [{"name": "digits", "view": "squash32", "limit": 20}],
            r"experiments\[0\].*dataset 'digits' \(type digits\) has no label maps",
        ),
        (
            ("models", "segmenter", "train_on"),
            {"dataset": "digits", "view": "squash32"},
            "train_on.dataset: dataset 'digits'",
        ),
        (
            ("models", "segmenter", "builder"),
            {"type": "small_cnn"},
            "models.segmenter: builder 'small_cnn' does not do segmentation",
        ),
        (("models", "segmenter", "task"), "classification", "builder 'small_unet' does not do cl"),
        (
            ("models", "segmenter", "recipe"),
            {"type": "smoothadv", "sigma": 0.25},
            "recipe 'smoothadv' does not do segmentation",
        ),
    ],
)
def test_what_does_not_fit_the_task_is_refused_in_one_message(path, value, message):
    with pytest.raises(CertbenchError, match=message) as caught:
        plan.make(changed(path, value))
    assert caught.value.remedy


def test_parquet_has_label_maps_only_where_a_column_is_named(tmp_path):
    parquet = {"type": "parquet", "root": str(tmp_path), "sizes": {"test": 5}, "num_classes": 2}
    entry = [{"name": "mine", "view": "native", "limit": 5}]
    config = changed((*FIRST, "datasets"), entry)
    config["datasets"]["mine"] = parquet
    with pytest.raises(CertbenchError, match=r"'mine' \(type parquet\) has no label maps"):
        plan.make(config)
    config["datasets"]["mine"] = {**parquet, "mask": "mask", "num_mask_classes": 10}
    assert plan.make(config).experiments["pixels"]["predict"]
