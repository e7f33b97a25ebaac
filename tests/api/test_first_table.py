"""The README's way from a table of one's own to predictions: init, fit, report, predict, by the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from cohorts import write_cohorts
from run_harness import run_process

from distqexp.config import load_config


@pytest.mark.process
@pytest.mark.slow
def test_from_a_table_to_predictions(tmp_path: Path, own_ledger: Path) -> None:
    new = write_cohorts(tmp_path, 5000)
    for words in (
        "init public.csv --target died --unit patient_id --private patients.csv --test test.csv",
        "fit config.toml --out runs/first --set privacy.units=3000 --set mechanism.rounds=2",
        "report runs/first",
        "predict runs/first new.csv --out predictions.csv",
    ):
        done = run_process("distqexp.cli", *words.split(), folder=tmp_path)
        assert done.code == 0, (words, done.err)
    columns = load_config(tmp_path / "config.toml").data.private[0].columns
    assert (columns.categorical, columns.booleans, columns.exclude) == (("ward",), ("smoker",), ())
    certificate = json.loads((tmp_path / "runs" / "first" / "certificate.json").read_text())
    assert certificate["epsilon"] <= 1
    assert certificate["unit_column"] == "patient_id"
    assert "<!doctype html>" in (tmp_path / "runs" / "first" / "report.html").read_text().lower()
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open(newline="")))
    assert len(rows) == len(new)
    assert {row["prediction"] for row in rows} <= {"0", "1"}
    assert all(0 < float(row["probability_1"]) < 1 for row in rows)
