"""The measurements of studies run at a small size, by the commands that they measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pages import script


@pytest.mark.process
@pytest.mark.slow
def test_visits_of_a_few_sites(capfd: pytest.CaptureFixture[str]) -> None:
    figures = script("consortium_visits").main(["--sites", "3", "--missing", "1", "--k", "20"])
    assert json.loads(capfd.readouterr().out) == figures
    assert {"close (s)", "helper0 answers (s)", "helper1 answers (s)", "release (s)"} < set(figures)


@pytest.mark.slow
def test_four_hospitals_of_stays(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each site makes one visit to accept and one a round: the script ends otherwise."""
    for name in ("DISTQEXP_HOME", "DISTQEXP_LEDGER"):
        monkeypatch.setenv(name, "put back after the test")
    program = script("consortium_icu")
    data = data_folder.resolve() / "icu2012" / "set-b.csv.gz"
    assert 0.82 < program.study(tmp_path / "study", program.SHARED, data, 2)["auroc"] < 0.87
