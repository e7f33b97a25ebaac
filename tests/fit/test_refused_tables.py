"""Tables that a run refuses, or takes as if the bad record were blank: one line, no value of a record, nothing charged where it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from run_harness import (
    Commands,
    charges,
    lines,
    rewrite,
    table_source,
    table_tree,
)


def refused_table(
    run: Commands, task: Path, text: str, *words: str, code: int = 3, name: str = "private.csv", **private: Any
) -> str:
    """The refusal of a run whose table holds ``text``; it is the same without and with --debug."""
    (task.parent / name).write_text(text, "utf-8")
    if private:
        rewrite(task, table_tree(data={"private": table_source("private.csv", **private)}))
    reason = run.fit(task, "--out", task.parent / "out").refused(code, *words)
    assert not [path for path in (task.parent / "out").iterdir() if path.name not in ("plan.h5", "progress.jsonl")]
    return reason


def as_if_blank(run: Commands, task: Path, rows: list[str], bad: int) -> None:
    """A private table whose line ``bad`` breaks a rule runs as the same table with that record blank: same words, same bytes."""
    (task.parent / "private.csv").write_text("\n".join(rows), "utf-8")
    np.save(task.parent / "blank.npy", np.arange(1, len(rows)) == bad)
    seeded = ["--insecure-noise-seed", "1", "--out"]
    outcome = run.fit(task, *seeded, task.parent / "bad")
    blank = run.fit(task, *seeded, task.parent / "blank", "--set", "data.private.blank=blank.npy")
    assert (outcome.code, blank.code) == (0, 0)
    assert outcome.reasons() == blank.reasons()
    one, other = ((task.parent / name / "release-000.h5").read_bytes() for name in ("bad", "blank"))
    assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("label", ["2", "-1", "0.5", "1e300"])
def test_labels_out_of_range(run: Commands, task: Path, own_ledger: Path, label: str) -> None:
    rows = lines(20)
    rows[7] = f"p6,0,0,0,{label}"
    as_if_blank(run, task, rows, 7)
    before = charges(own_ledger)
    reason = refused_table(
        run, task, "\n".join(rows), "public.csv", "'died'", "out of range", "0 or 1", name="public.csv"
    )
    assert label not in reason.replace("0 or 1", "").split("public.csv", 1)[1]
    assert charges(own_ledger) == before


def test_a_label_outside_the_classes(run: Commands, task: Path) -> None:
    tree = table_tree(model={"loss": "cross-entropy", "args": {"inputs": 3, "outputs": 2}})
    rewrite(task, tree)
    rows = [*lines(20), "p99,0,0,0,2"]
    as_if_blank(run, task, rows, 21)
    refused_table(run, task, "\n".join(rows), "'died'", "whole numbers from 0 to 1", name="public.csv")


def test_a_table_without_the_target(run: Commands, task: Path) -> None:
    text = "\n".join(lines(20, header="patient,age,dose,rate,outcome"))
    refused_table(run, task, text, "private.csv", "no column 'died'", "'outcome'")


def test_a_table_with_other_columns_than_the_plan(run: Commands, task: Path) -> None:
    text = "\n".join(lines(20, header="patient,age,dose,weight,died"))
    refused_table(run, task, text, "private.csv", "missing 'rate'", "unexpected 'weight'")


def test_a_unit_column_with_nulls(run: Commands, task: Path) -> None:
    rows = lines(20)
    rows[3] = ",0,0,0,1"
    rewrite(task, table_tree(data={name: table_source(f"{name}.csv", unit=True) for name in ("public", "private")}))
    as_if_blank(run, task, rows, 3)
    refused_table(run, task, "\n".join(rows), "unit column 'patient'", "an id is missing", name="public.csv")


def test_a_unit_column_that_is_not_there(run: Commands, task: Path) -> None:
    text = "\n".join(lines(20, header="person,age,dose,rate,died"))
    refused_table(run, task, text, "no column 'patient'", unit=True)


@pytest.mark.parametrize("cell", ["tall", "1_000", "0x1f"])
def test_a_cell_that_is_not_a_number(run: Commands, task: Path, cell: str) -> None:
    rows = lines(20)
    rows[5] = f"p4,{cell},0,0,1"
    as_if_blank(run, task, rows, 5)
    assert cell not in refused_table(run, task, "\n".join(rows), "column 'age'", "not a number", name="public.csv")


def test_a_table_cut_short(run: Commands, task: Path) -> None:
    refused_table(run, task, "\n".join([*lines(20), "p99,0"]), "private.csv")


def test_an_empty_table(run: Commands, task: Path) -> None:
    refused_table(run, task, "", "private.csv")


def test_a_truncated_hdf5_data_file(run: Commands, task: Path) -> None:
    folder = task.parent
    random = np.random.default_rng(5)
    for name in ("public.h5", "private.h5"):
        with h5py.File(folder / name, "w") as file:
            file["x"] = random.normal(size=(300, 3))
            file["y"] = random.integers(0, 2, 300)
    source = {"format": "hdf5", "columns": {"target": "y", "features": ["x"]}}
    both = {"public": source | {"path": "public.h5"}, "private": source | {"path": "private.h5"}}
    rewrite(task, table_tree(data=both))
    whole = (folder / "private.h5").read_bytes()
    (folder / "private.h5").write_bytes(whole[: len(whole) // 2])
    run.fit(task, "--out", folder / "out").refused(3, "private.h5")
    (folder / "private.h5").write_bytes(whole)
    assert run.fit(task, "--out", folder / "out", "--resume").code == 0
