"""The quick task that whole runs share."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_harness import forbid_records, write_task


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A config and its tables."""
    return write_task(tmp_path)


@pytest.fixture
def no_records(monkeypatch: pytest.MonkeyPatch, task: Path) -> None:
    """Fails when a row of private.csv is read."""
    forbid_records(monkeypatch)
