import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def _fabricated():
    """The module beside this file, loaded once for all test folders that use it."""
    if "fabricated" not in sys.modules:
        spec = importlib.util.spec_from_file_location("fabricated", HERE / "fabricated.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["fabricated"] = module
        spec.loader.exec_module(module)
    return sys.modules["fabricated"]


@pytest.fixture(scope="session")
def fabricated():
    return _fabricated()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Folder and plan of a finished study, figures and report included. Read only."""
    return _fabricated().shared(tmp_path_factory)


@pytest.fixture
def study(finished, monkeypatch):
    """The plan of the finished study, with its folder as working folder. Read only."""
    folder, plan = finished
    monkeypatch.chdir(folder)
    return plan


@pytest.fixture
def own_study(finished, monkeypatch, tmp_path):
    """The same in a copy that the test may change."""
    import shutil

    folder, plan = finished
    shutil.copytree(folder, tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    return plan
