"""Lock files, environment and project metadata tell the same story."""

import re
import tomllib

import yaml

from study import ROOT


def locked(name):
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_lock_files_pin_everything_and_name_no_index():
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        assert not re.search(r"https?://|--index|--find-links|@", text)
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        assert lines and all(re.fullmatch(r"[a-z0-9-]+==[\w.+!]+", line) for line in lines)
    assert not set(locked("requirements.lock")) & set(locked("requirements-dev.lock"))


def test_the_lock_holds_every_dependency_and_one_headless_opencv():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=!~ ]", d)[0].replace("_", "-").lower() for d in project["dependencies"]}
    lock = locked("requirements.lock")
    assert names <= set(lock)
    assert [name for name in lock if name.startswith("opencv")] == ["opencv-python-headless"]
    assert lock["imagecorruptions"] == "1.1.2"


def test_the_conda_environment_installs_the_same_lock_on_the_same_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (python,) = [d for d in environment["dependencies"] if d.startswith("python=")]
    assert python == "python=" + project["requires-python"].removeprefix(">=")
    script = (ROOT / "environment.post-deploy.sh").read_text()
    assert "--no-deps -r" in script and "requirements.lock" in script
    makefile = (ROOT / "Makefile").read_text()
    assert "--no-deps -r requirements.lock" in makefile


def test_the_package_never_imports_snakemake():
    for path in (ROOT / "src" / "certbench").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) snakemake", path.read_text(), re.M), path


def test_scripts_are_short_and_hold_no_logic():
    from certbench import job

    scripts = sorted((ROOT / "workflow" / "scripts").glob("*.py"))
    assert {path.stem for path in scripts} == set(job.RUNNERS)
    for path in scripts:
        assert len(path.read_text().splitlines()) <= 40
        assert f'run_rule("{path.stem}", snakemake)' in path.read_text()
