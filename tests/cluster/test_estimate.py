from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from certbench.cluster import estimate

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "slurm" / "config.yaml"


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    estimate.add_parser(parser.add_subparsers())
    options = parser.parse_args(["estimate", "--profile", str(ROOT / "profiles/slurm"), *arguments])
    return options.command(options)


def test_a_study_beyond_the_long_limit_asks_for_the_flag(monkeypatch, capsys):
    monkeypatch.setattr(estimate, "LONG_GPU_HOURS", 0.001)
    monkeypatch.chdir(ROOT)
    assert run("--configfile", str(TINY)) == 3
    assert "say --long" in capsys.readouterr().out
    assert run("--configfile", str(TINY), "--long") == 0


@pytest.mark.slow
def test_the_probe_measures_a_rate_and_proposes_shards(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert run("--configfile", str(TINY), "--probe", "0.5") == 0
    said = capsys.readouterr().out
    assert "measured here: CPU" in said and "shards.items: " in said


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "5 s"), (600, "10 min"), (3700, "1 h 2 min"), (90000, "1 d 1 h")]
)
def test_durations_are_told_in_words(seconds, words):
    assert estimate.duration(seconds) == words
