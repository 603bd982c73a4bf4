"""A small study of the real digits, and a folder in which the workflow runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]

# One small study of the real digits: every stage, a few seconds of model time.
TINY: dict[str, Any] = {
    "seed": 0,
    "device": "cpu",
    "numerics": "exact",
    "noise_backend": "eager",
    "batch_size": 64,
    "shards": {"items": 20, "samples": 100},
    "datasets": {"digits": {"type": "digits"}},
    "models": {
        "plain": {
            "builder": {"type": "small_cnn", "width": 4},
            "recipe": {"type": "standard", "epochs": 2, "batch_size": 64, "flip": False},
            "train_on": {"dataset": "digits", "view": "squash32", "limit": 300},
        },
    },
    "defenses": {
        "smoothing": {
            "type": "randomized_smoothing",
            "sigma": 0.25,
            "n0": 20,
            "n": 200,
            "alpha": 0.01,
            "predict_n": 50,
        }
    },
    "attacks": {"pgd": {"type": "pgd", "norm": "l2", "epsilon": 0.5, "steps": 3, "restarts": 1}},
    "variants": {
        "dark": {
            "type": "corruption",
            "corruption": "contrast",
            "severity": 3,
            "severity_table": "cifar32",
        }
    },
    "metrics": [{"type": "accuracy"}, {"type": "certified"}, {"type": "attacked"}, {"type": "gap"}],
    "figures": {"curves": {"type": "certified_curve"}},
    "experiments": [
        {
            "name": "clean",
            "datasets": [{"name": "digits", "view": "squash32", "limit": 20}],
            "models": ["plain"],
            "defenses": ["none", "smoothing"],
            "attacks": ["pgd"],
        },
        {
            "name": "shifted",
            "datasets": [{"name": "digits", "view": "squash32", "limit": 20}],
            "variants": ["dark"],
            "models": ["plain"],
        },
    ],
}


class Project:
    """A copy of the workflow in a folder of its own, with its own configuration."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("Snakefile", "environment.yml"):
            shutil.copy(ROOT / name, folder / name)
        for name in ("workflow", "profiles"):
            shutil.copytree(ROOT / name, folder / name)
        (folder / "config").mkdir()
        shutil.copy(ROOT / "config" / "schema.yaml", folder / "config" / "schema.yaml")
        self.configure(config)

    def configure(self, config: dict[str, Any]) -> None:
        """Write ``config/config.yaml``."""
        text = yaml.safe_dump(config, sort_keys=False)
        (self.folder / "config" / "config.yaml").write_text(text)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run snakemake with the local profile; returns output with both streams in stdout."""
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "--profile", "profiles/local", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        if check and done.returncode:
            raise AssertionError(f"snakemake failed ({done.returncode}):\n{done.stdout[-6000:]}")
        return done

    def planned(self, *arguments: str) -> dict[str, int]:
        """Jobs by rule that a dry run would do."""
        text = self.run("--dry-run", *arguments).stdout
        counts: dict[str, int] = {}
        reading = False
        for line in text.splitlines():
            words = line.split()
            if words[:2] == ["job", "count"]:
                reading = True
            elif reading and len(words) == 2 and words[1].isdigit():
                counts[words[0]] = int(words[1])
            elif reading and counts and not words:
                break
        counts.pop("total", None)
        counts.pop("all", None)
        return counts

    def stamps(self, pattern: str) -> dict[str, int]:
        """Modification times of result files."""
        return {
            str(path.relative_to(self.folder)): path.stat().st_mtime_ns
            for path in sorted(self.folder.glob(pattern))
        }
