"""Fixtures of consortia."""

from __future__ import annotations

from pathlib import Path

import pytest
from consortium import ROUNDS, Consortium, four_sites
from run_harness import Commands


@pytest.fixture
def consortium(tmp_path: Path, run: Commands, monkeypatch: pytest.MonkeyPatch) -> Consortium:
    """Four sites of generated patients with one to four records each."""
    return four_sites(tmp_path, run, monkeypatch, {"rounds": ROUNDS})
