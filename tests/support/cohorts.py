"""Tables such as a hospital has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas


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


def write_cohorts(folder: Path, private: int) -> pandas.DataFrame:
    """Write public.csv, patients.csv, test.csv, and new.csv without labels, which is returned."""
    for name, rows, seed in (("public", 300, 1), ("patients", private, 2), ("test", 300, 3)):
        cohort(name[0], rows, seed).to_csv(folder / f"{name}.csv", index=False)
    new = cohort("n", 20, 4).drop(columns="died")
    new.to_csv(folder / "new.csv", index=False)
    return new
