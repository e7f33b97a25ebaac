"""Progress in a notebook: one bar, which reaches its end with the run; elsewhere IPython changes nothing."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from distqexp.report.notebook import in_notebook
from distqexp.report.progress import Progress


class Display:
    """What a notebook shows, as IPython's display functions would."""

    def __init__(self, patch: pytest.MonkeyPatch, kernel: object) -> None:
        self.shown: list[list[str]] = []
        shell, display = ModuleType("IPython"), ModuleType("IPython.display")
        shell.get_ipython = lambda: SimpleNamespace(kernel=kernel)  # type: ignore[attr-defined]
        display.HTML, display.display = str, self.display  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "IPython", shell)
        patch.setitem(sys.modules, "IPython.display", display)

    def display(self, text: str, display_id: bool) -> Any:
        assert display_id
        self.shown.append([text])
        return SimpleNamespace(update=self.shown[-1].append)


def run_through(progress: Progress) -> None:
    with progress:
        progress.stage("plan")
        for round in range(2):
            for name in ("sketch", "pool", "release"):
                progress.stage(name, round)
        progress.say("a line")
        progress.stage("export")


def test_a_notebook_has_one_bar_for_the_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    display = Display(monkeypatch, object())
    assert in_notebook()
    run_through(Progress(tmp_path, rounds=2, counts_public=True))
    (states,) = display.shown
    shares = [float(re.findall(r'value="([0-9.]+)"', state)[0]) for state in states]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert "sketch, round 1/2" in states[2]
    assert capsys.readouterr().err == "a line\n"


def test_a_terminal_with_ipython_and_a_quiet_run_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not in_notebook()
    display = Display(monkeypatch, None)
    assert not in_notebook()
    run_through(Progress(tmp_path, rounds=2, counts_public=True))
    assert "distqexp: plan: started" in capsys.readouterr().err
    display = Display(monkeypatch, object())
    run_through(Progress(tmp_path, rounds=2, counts_public=True, stream=io.StringIO()))
    run_through(Progress(tmp_path, rounds=2, counts_public=True, silent=True))
    assert display.shown == []
    assert capsys.readouterr().err == ""
