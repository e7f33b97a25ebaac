"""Fixtures of FLARE's adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
from flare_parties import by_files


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run by files, and the plan."""
    return by_files(tmp_path_factory.mktemp("files") / "run")
