import importlib.util
import sys
from pathlib import Path

import pytest

_PATH = Path(__file__).resolve().parent.parent / "report" / "fabricated.py"


def _fabricated():
    """The fabricated study of the report's tests, loaded once for all test folders."""
    if "fabricated" not in sys.modules:
        spec = importlib.util.spec_from_file_location("fabricated", _PATH)
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
def data(study):
    """What a figure that needs everything would read."""
    from certbench import plugins
    from certbench.figures.data import FigureData

    drawn = [job for (rule, _), job in study.jobs.items() if rule == "figure"]
    inputs = {need: paths for job in drawn for need, paths in job.inputs.items()}
    work = next(job.work for job in drawn if "selections" in job.work)
    return FigureData(inputs, work, plugins.load)
