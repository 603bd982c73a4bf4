import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from certbench.report import verdict


def _plan(tmp_path, violations, sound):
    one = {
        "model": "m",
        "defense": "d",
        "dataset": "digits",
        "variant_id": "clean",
        "item_id": "digits/7",
        "certified_size": 0.61,
        "attack": "pgd",
        "attack_size": 0.5,
    }
    path = tmp_path / "audit.json"
    path.write_text(json.dumps({"violations": [one] * violations, "sound": sound}))
    return SimpleNamespace(verdicts=lambda: [str(path), str(tmp_path / "absent.json")], config={})


def test_no_violation_is_no_word(tmp_path, capsys):
    verdict.judge(_plan(tmp_path, 0, True))
    assert capsys.readouterr().err == ""


def test_unexplained_violations_end_the_workflow_with_code_one(tmp_path, capsys):
    with pytest.raises(verdict.ViolationsFound) as error:
        verdict.judge(_plan(tmp_path, 2, False))
    assert error.value.code == 1
    assert "digits/7: certified to 0.61, broken by pgd at 0.5" in capsys.readouterr().err


def test_explained_violations_are_told_and_pass(tmp_path, capsys):
    verdict.judge(_plan(tmp_path, 1, True))
    assert "as often as their alpha allows" in capsys.readouterr().err


def test_a_long_list_is_cut_and_says_so(tmp_path, capsys):
    verdict.judge(_plan(tmp_path, 50, True))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 + 20 + 1 and "30 more" in lines[-1]


def test_a_failed_run_gets_a_partial_page_and_its_path(tmp_path, monkeypatch, capsys):
    seen = {}

    def run(command, **options):
        seen.update(command=command, **options)
        return SimpleNamespace(returncode=0, stdout="results/report-partial.html\n")

    monkeypatch.setattr(subprocess, "run", run)
    verdict.report_partly(SimpleNamespace(config={"seed": 3}))
    assert seen["command"][:3] == [sys.executable, "-m", "certbench"]
    assert {"report", "--partial", "--config-stdin"} <= set(seen["command"])
    assert json.loads(seen["input"]) == {"seed": 3}
    assert "results/report-partial.html" in capsys.readouterr().err


def test_the_snakefile_gets_its_verdict_without_heavy_imports():
    code = (
        "import sys, certbench.report.verdict; "
        "print({'numpy', 'pandas', 'jinja2', 'torch', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
