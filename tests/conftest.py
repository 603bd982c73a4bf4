"""Fixtures that several areas share."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from study import TINY, Project


@pytest.fixture
def tiny() -> dict[str, Any]:
    """The configuration of a small study, to be changed at will."""
    return copy.deepcopy(TINY)


@pytest.fixture
def project(tmp_path, tiny) -> Project:
    """A workflow of its own with the small study."""
    return Project(tmp_path / "study", tiny)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images named by CERTBENCH_DATA."""
    folder = os.environ.get("CERTBENCH_DATA")
    if not folder:
        pytest.skip("CERTBENCH_DATA is not set: no real images here")
    return Path(folder)
