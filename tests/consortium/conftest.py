"""Fixtures of studies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from run_harness import Commands
from studies import StudyFolders, begun_study

Begin = Callable[..., StudyFolders]


@pytest.fixture
def begin(tmp_path_factory: pytest.TempPathFactory, run: Commands, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """Begin a study, of the trust that is given, with so many rounds released."""
    return lambda trust="helper-masks", rounds_done=0: begun_study(
        tmp_path_factory, run, monkeypatch, trust, rounds_done=rounds_done
    )
