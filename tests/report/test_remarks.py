"""Remarks that a reader needs before believing a number."""

from pathlib import Path

from certbench.report import remarks

CONFIG = {
    "models": {
        "plain": {"builder": {"type": "small_cnn"}, "recipe": {"type": "standard"}},
        "quarter": {
            "builder": {"type": "small_cnn"},
            "recipe": {"type": "gaussian", "sigma": 0.25},
        },
        "half": {"builder": {"type": "small_cnn"}, "recipe": {"type": "macer", "sigma": 0.5}},
        "cleaned": {"builder": {"type": "denoised", "sigma": 0.5}, "recipe": {"type": "denoising"}},
        "file": {"source": "weights.safetensors"},
    },
    "defenses": {
        "half": {"type": "randomized_smoothing", "sigma": 0.5},
        "early": {"type": "sequential_smoothing", "sigma": 0.5},
        "split": {"type": "splitting", "half_width": 0.5},
    },
}


def test_a_model_that_learned_another_noise_than_it_is_smoothed_with_is_named():
    pairs = [
        (model, defense) for model in CONFIG["models"] for defense in ("none", "half", "split")
    ]
    made = remarks.unlike_noise(CONFIG, pairs)
    assert [text.split(":")[0] for text in made] == ["plain + half", "quarter + half"]
    assert "learned with no noise and is smoothed with \u03c3 = 0.5" in made[0]
    assert "noise of \u03c3 = 0.25" in made[1]
    assert remarks.unlike_noise(CONFIG, [("quarter", "early")])
    assert not remarks.unlike_noise(CONFIG, [("half", "early")])


def test_certificates_that_were_told_the_labels_are_named():
    told = {"defenses": {"oracle": {"type": "randomized_smoothing", "selection": "label"}}}
    (text,) = remarks.told_the_labels(told, [("plain", "none"), ("plain", "oracle")])
    assert text.startswith("oracle: the certificates were told the labels")
    assert not remarks.told_the_labels(CONFIG, [("plain", "none"), ("plain", "half")])


def test_the_page_names_the_mismatch(study):
    page = Path("results/report.html").read_text()
    assert "the model learned with no noise and is smoothed with" in page
