"""`distqexp check` tells the owner of private records which are left out and why; no other command tells anything of it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from bad_records import CELLS, FORMATS, ROWS
from bad_runs import task, two_shards
from run_harness import Commands, overrides

from distqexp import api
from distqexp.errors import FileContentError, UsageError
from distqexp.privacy.ledger import Ledger
from distqexp.problem.faults import WORDS, Fault
from distqexp.stages.check import WARNING


@pytest.mark.parametrize("name", FORMATS)
def test_the_counts_are_those_of_the_rules(tmp_path: Path, run: Commands, name: str) -> None:
    config, spoiled = task(tmp_path, name)
    before = sorted(path.name for path in tmp_path.iterdir())
    lines = run.done("check", config).out.splitlines()
    assert lines[0] == WARNING
    assert "PRIVATE" in lines[0]
    for fault, count in Counter(spoiled.faults.values()).items():
        assert f"  left out: {count} records: {WORDS[fault]}" in lines
    assert sum("left out" in line for line in lines) == len(set(spoiled.faults.values()))
    usable = next(line for line in lines if line.startswith("  usable: "))
    assert usable.startswith(f"  usable: {ROWS - len(spoiled.faults)} records")
    assert f"  rows: {ROWS} in the file, {ROWS} selected by rows and where" in lines
    if name != "hdf5 regression":
        labels = next(line for line in lines if line.startswith("  labels: "))
        assert sum(int(count) for count in re.findall(r": (\d+)", labels.removeprefix("  labels"))) == ROWS - len(
            spoiled.faults
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert Ledger.open().rows() == []


def test_columns_are_named_with_what_is_missing_or_no_number_in_them(tmp_path: Path, run: Commands) -> None:
    config, _ = task(tmp_path, "csv")
    content = (tmp_path / "private.csv").read_bytes().split(b"\n")
    fields = content[1].split(b",")
    content[1] = b",".join([*fields[:3], b"", fields[4]])  # the first row's dose is missing: imputed, not left out
    (tmp_path / "private.csv").write_bytes(b"\n".join(content))
    lines = run.done("check", config).out.splitlines()
    assert "  missing values, which become public medians, in dose: 1" in lines
    no_number = sum(column == 2 and fault == Fault.UNREADABLE for column, _, fault in CELLS)
    assert f"  entries that are no number, in age: {no_number}" in lines
    infinite = sum(fault == Fault.NOT_FINITE for _, _, fault in CELLS)
    assert f"  entries that are infinite or beyond float32, in age: {infinite}" in lines
    nobody = sum(fault == Fault.NO_UNIT for _, _, fault in CELLS) + 5
    assert any(line.endswith(f"; {ROWS - nobody} units have an id") for line in lines)


def test_a_plan_at_a_site_and_one_shard_of_several(tmp_path: Path, run: Commands) -> None:
    config, spoiled = task(tmp_path, "csv")
    run.done("plan", config, "--out", tmp_path / "plan.h5")
    site = run.done("check", tmp_path / "plan.h5", "--data", tmp_path / "private.csv")
    assert site.out == run.done("check", config).out
    (tmp_path / "south.csv").write_bytes((tmp_path / "private.csv").read_bytes())
    several = two_shards(tmp_path, "csv", tmp_path / "south.csv")
    shards = [line for line in run.done("check", several).out.splitlines() if line.startswith("shard ")]
    assert [line.split(":")[0] for line in shards] == ["shard north", "shard south"]
    one = run.done("check", several, "--shard", "south").out
    assert "shard south" in one
    assert "shard north" not in one
    run.distqexp("check", several, "--shard", "west").refused(2, "west", "north, south")
    run.distqexp("check", config, "--data", tmp_path / "private.csv").refused(2, "with a plan")
    run.distqexp("check", tmp_path / "plan.h5", *overrides("privacy.epsilon=2")).refused(2, "--set")
    assert spoiled.faults


def test_a_file_that_cannot_be_used_at_all(tmp_path: Path, run: Commands) -> None:
    config, _ = task(tmp_path, "csv")
    with (tmp_path / "private.csv").open("ab") as file:
        file.write(b"p1,2\n")
    run.distqexp("check", config).refused(3, "private.csv", "fields")
    with pytest.raises(FileContentError):
        api.check(api.load_config(config))
    with pytest.raises(UsageError, match="no such file"):
        api.check(tmp_path / "plan.h5")


def test_no_other_command_tells_a_count_a_rule_or_the_warning(tmp_path: Path, run: Commands) -> None:
    """Nor does any file that a run leaves: the numbers of the good file and of the bad one are the same (test_bad_records_runs)."""
    config, spoiled = task(tmp_path, "csv", diagnostics={"share": 0.1})
    Ledger.open().set_cap("somebody", 5.0, 1e-5)
    out, plan, sketch = tmp_path / "run", tmp_path / "plan.h5", tmp_path / "all.h5"
    outcomes: list[Any] = [
        run.fit(config, "--out", out, "--debug", "--json"),
        run.done("plan", config, "--out", plan),
        run.done("sketch", plan, "--data", tmp_path / "private.csv", "--out", sketch),
        run.done("pool", plan, sketch, "--out", tmp_path / "quadratic.h5"),
        run.done("inspect", sketch),
        run.done("inspect", tmp_path / "quadratic.h5"),
        run.done("verify", out),
        run.done("ledger", "show"),
        run.done("count", config, "--epsilon", "0.5"),
    ]
    assert outcomes[0].code == 0
    told = "\n".join(outcome.out + outcome.err for outcome in outcomes)
    told += "\n".join((out / name).read_text("utf-8") for name in ("progress.jsonl", "certificate.json"))
    for words in (WARNING, "left out", "usable", *WORDS.values(), "private.csv"):
        assert words not in told, words
    assert spoiled.faults
