"""The probe behind ``distqexp cost``: no private file, no ledger, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from run_harness import Commands, table_source, table_tree, write_task


def test_the_probe_opens_no_private_file_and_no_ledger(
    run: Commands, tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = table_tree(data={"eval": table_source("eval.csv"), "eval_private": True})
    task = write_task(tmp_path, tree)
    for name in ("private.csv", "eval.csv"):
        (tmp_path / name).unlink()  # nobody can have opened what isn't there
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    before = sorted(tmp_path.rglob("*"))
    outcome = run.done("cost", task, "--ranks", "1,2,64", "--json")
    assert sorted(tmp_path.rglob("*")) == before
    assert not own_ledger.exists()
    assert not own_ledger.with_name(own_ledger.name + ".files").exists()
    tree = json.loads(outcome.out.splitlines()[-1])
    found = tree["calibration"]
    assert (found["d"], found["k"], found["evaluations"]) == (4, 4, 0)
    assert any("private records were not opened" in note for note in found["notes"])
    positive = ("imports", "plan", "files", "draw", "export", "bytes_imports", "bytes_plan", "operations_record")
    assert [name for name in positive if not found[name] > 0] == []
    assert found["batch_fixed"] + found["batch_record"] > 0
    assert [row["ranks"] for row in tree["forecasts"]] == [1, 2, 64]


@pytest.mark.parametrize("in_public", [True, False], ids=["ids in both tables", "ids in the private table"])
def test_public_records_stand_in_for_private_ones_with_or_without_ids(
    in_public: bool, run: Commands, tmp_path: Path
) -> None:
    columns = {"target": "died"}  # the column of ids is left out by its role, not by name
    with_ids = table_source("private.csv", unit=True, columns=columns)
    public = table_source("public.csv", unit=in_public, columns=columns)
    task = write_task(tmp_path, table_tree(data={"public": public, "private": with_ids}))
    if not in_public:
        table = (tmp_path / "public.csv").read_text("utf-8").splitlines()
        (tmp_path / "public.csv").write_text("".join(line.split(",", 1)[1] + "\n" for line in table), "utf-8")
    found = json.loads(run.done("cost", task, "--ranks", "1", "--json").out.splitlines()[-1])["calibration"]
    assert found["read_record"] > 0
    assert not [note for note in found["notes"] if note.startswith("reading")]


@pytest.mark.slow
def test_the_digits_task(run: Commands, own_ledger: Path) -> None:
    outcome = run.done("cost", "--set", "mechanism.rounds=2", "--ranks", "1,2")
    assert "d = 650, k = 650; 800 records in micro-batches of 64, 2 round(s), 2 passes" in outcome.out
    assert "where the time goes on 1 rank(s)" in outcome.out
    assert not own_ledger.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_of_gpus_that_are_not_there_the_memory_is_stated(run: Commands, tmp_path: Path) -> None:
    outcome = run.done("cost", write_task(tmp_path), "--gpus", "--json")
    assert "stated by shapes alone, nothing measured" in outcome.out
    tree = json.loads(outcome.out.splitlines()[-1])["stated"]
    assert (tree["d"], tree["k"], tree["parameters"]) == (4, 4, 4)
