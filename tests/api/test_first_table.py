"""The README's way from a table of one's own to predictions: init, fit, report, predict, by the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas
import pytest
from run_harness import run_process

from distqexp.config import load_config


def cohort(name: str, rows: int, seed: int) -> pandas.DataFrame:
    """A hospital's table: ids that come again, categories, dates, yes and no, gaps, a label of 0 and 1."""
    random = np.random.default_rng(seed)
    age, crp = random.normal(64, 12, rows).round(), np.exp(random.normal(3, 1, rows)).round(1)
    ward, smoker = random.choice(["cardiology", "icu", "surgery"], rows), random.choice(["yes", "no"], rows)
    days = pandas.Timestamp("2021-01-01") + pandas.to_timedelta(random.integers(0, 900, rows), unit="D")
    score = -1.5 + 0.05 * (age - 64) + np.log(crp / 20) + (ward == "icu")
    table = pandas.DataFrame({
        "patient_id": [f"{name}{number:05d}" for number in np.sort(random.integers(0, 2 * rows // 3, rows))],
        "age": age, "ward": ward, "admitted": days.strftime("%Y-%m-%d"), "smoker": smoker, "crp": crp,
        "died": (random.random(rows) < 1 / (1 + np.exp(-score))).astype(int),
    })  # fmt: skip
    for column, share in (("age", 0.02), ("ward", 0.03), ("crp", 0.15), ("smoker", 0.05)):
        table.loc[random.random(rows) < share, column] = np.nan
    return table


@pytest.mark.process
@pytest.mark.slow
def test_from_a_table_to_predictions(tmp_path: Path, own_ledger: Path) -> None:
    for name, rows, seed in (("public", 300, 1), ("patients", 5000, 2), ("test", 300, 3)):
        cohort(name[0], rows, seed).to_csv(tmp_path / f"{name}.csv", index=False)
    new = cohort("n", 20, 4).drop(columns="died")
    new.to_csv(tmp_path / "new.csv", index=False)
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
