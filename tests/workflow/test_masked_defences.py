"""Masked and voting defences on real digits, end to end: certified, attacked, audited."""

import json
import textwrap

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

# A certificate that looks at round one only: it believes an image whose single masks agree.
UNSOUND = '''
    """Double masking whose certificate skips the pairs of masks: a planted defect."""
    import numpy as np

    from certbench.certify import double_masking as sound
    from certbench.certify.double_masking import *  # noqa: F403
    from certbench.certify.double_masking import (
        CollectParams, DecideParams, attack_params, attack_surface, collect, columns, merge,
        samples, stats_columns, threat,
    )

    kind = "certifier"
    version = 1

    def decide(stats, collect, decide, labels):
        made = sound.decide(stats, collect, decide, labels)
        first = np.diagonal(stats.labels, axis1=1, axis2=2)
        unanimous = (first == first[:, :1]).all(1)
        made["radius"] = np.where(unanimous, float(collect.patch_size), 0.0)
        return made
'''


def study(tiny):
    """The small study with masked defences in place of smoothing."""
    model = {
        "builder": {"type": "small_cnn", "width": 8},
        "recipe": {"type": "standard", "epochs": 12, "batch_size": 64, "flip": False},
        "train_on": {"dataset": "digits", "view": "squash32"},
    }
    tiny["models"] = {"plain": model, "other": {**model, "seed": 1}}
    tiny["defenses"] = {
        "masking": {"type": "double_masking", "patch_size": 5, "masks": 3},
        "bands": {"type": "derandomized_smoothing", "band": 8},
    }
    tiny["attacks"] = {
        "patch": {
            "type": "patch_pgd",
            "patch_size": 5,
            "positions": 4,
            "random_positions": 2,
            "steps": 20,
            "restarts": 1,
        },
        "surrogates": {
            "type": "adaptive",
            "epsilon": 8 / 255,
            "steps": 10,
            "restarts": 1,
            "queries": 40,
        },
        "checked": {
            "type": "pgd",
            "epsilon": 8 / 255,
            "steps": 5,
            "restarts": 1,
            "checks": 3,
            "surrogate": "other",
        },
    }
    # One image's arithmetic may depend on its company here, which saves padding every pass.
    tiny["numerics"] = "fast"
    tiny["variants"] = {}
    tiny["metrics"][1] = {"type": "certified", "radii": [0.0, 3.0, 5.0]}
    tiny["figures"] = {"audit": {"type": "audit_bars"}, "summary": {"type": "attack_summary"}}
    tiny["experiments"] = [
        {
            "name": "masked",
            "datasets": [{"name": "digits", "view": "squash32", "limit": 20}],
            "models": ["plain"],
            "defenses": ["none", "masking", "bands"],
            "attacks": ["patch", "surrogates", "checked"],
            "exclude": [{"defense": "bands", "attack": "checked"}],
            "threats": [{"kind": "patch", "norm": "square", "size": 5, "space": "pixels"}],
        }
    ]
    return tiny


def rows(project, pattern):
    found = sorted(project.folder.glob(pattern))
    assert found, pattern
    return pq.ParquetDataset([str(path) for path in found]).read().to_pandas()


def test_masked_defences_are_certified_attacked_and_audited(project, tiny):
    project.configure(study(tiny))
    project.run("results/report.html")
    table = pq.read_table(project.folder / "results/tables/masked.parquet").to_pandas()

    def number(metric, defense, attack=None, parameter=None):
        found = table[table["metric"].eq(metric) & table["defense"].eq(defense)]
        if attack is not None:
            found = found[found["attack"].eq(attack)]
        if parameter is not None:
            found = found[found["parameter"].eq(parameter)]
        (value,) = found["value"]
        return value

    for defense in ("masking", "bands"):
        certified = number("certified_accuracy", defense, parameter=5.0)
        robust = number("robust_accuracy", defense, "patch")
        clean = number("certified_accuracy", defense, parameter=0.0)
        assert certified <= robust <= clean
        assert number("violation", defense, "patch") == 0
        # A ball is outside the threat model of a patch: nothing is compared.
        assert number("outside_threat_model", defense, "surrogates") > 0
        compared = table[table["attack"].eq("surrogates") & table["defense"].eq(defense)]
        assert not set(compared["metric"]) & {"proven", "refuted", "unknown", "gap"}
    assert number("certified_accuracy", "masking", parameter=5.0) > 0.05
    assert number("certified_at:patch-square-5-pixels", "masking") == number(
        "certified_accuracy", "masking", parameter=5.0
    )
    attacked = table[table["metric"].eq("robust_accuracy")].set_index(["defense", "attack"])
    assert attacked.loc[("masking", "surrogates"), "attacked"] == (
        "base + expectation + unanimity + coherent + votes"
    )
    assert attacked.loc[("bands", "patch"), "attacked"] == "coherent"
    assert "double masking" in attacked.loc[("masking", "patch"), "judged_by"]
    assert attacked.loc[("none", "patch"), "knowledge"] == "gradients"
    # Check C10 was made with the surrogate's images, on the defended model too.
    transfer = table[table["metric"].str.startswith("check:C10")]
    assert set(transfer["defense"]) == {"none", "masking"}
    assert transfer["value"].notna().all()
    verdict = json.loads((project.folder / "results/audit/masked.json").read_text())
    assert verdict["sound"] and not verdict["violations"]
    groups = {(group["defense"], group["attack"]): group for group in verdict["groups"]}
    assert groups["masking", "surrogates"]["outside"] > 0
    assert groups["masking", "surrogates"]["certified"] == 0
    page = (project.folder / "results/report.html").read_text()
    assert "outside the threat model of the certificate" in page
    assert "What was attacked, and with how much knowledge" in page
    patches = rows(project, "results/attacks/*/clean/plain/masking/patch/*.parquet")
    assert set(patches["threat_space"]) == {"pixels"} and patches["geometry_ok"].all()
    # Another engine reads the same table: no model is called, only attacks on the rule.
    tiny["defenses"]["masking"]["certificate"] = "positions"
    project.configure(tiny)
    planned = project.planned("results/report.html")
    assert not {"collect", "attack", "train"} & set(planned) and planned["decide"] == 1


def test_a_certificate_that_skips_the_second_round_is_caught_by_a_patch(project, tiny):
    config = study(tiny)
    (project.folder / "plugins").mkdir()
    (project.folder / "plugins" / "one_round.py").write_text(textwrap.dedent(UNSOUND).lstrip())
    config["plugins"] = ["plugins/one_round.py"]
    # With finer masks more images agree in round one and not in round two.
    config["defenses"] = {"masking": {"type": "one_round", "patch_size": 5, "masks": 4}}
    config["attacks"] = {"patch": config["attacks"]["patch"]}
    config["experiments"][0] |= {"defenses": ["masking"], "attacks": ["patch"], "exclude": []}
    config["experiments"][0]["datasets"][0]["limit"] = 40
    project.configure(config)
    done = project.run("results/report.html", check=False)
    assert done.returncode == 1
    assert "certificates were broken inside their own region" in done.stdout
    assert "Traceback" not in done.stdout
    found = json.loads((project.folder / "results/audit/masked.json").read_text())
    assert found["violations"] and not found["sound"]
