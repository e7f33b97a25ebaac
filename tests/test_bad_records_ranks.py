"""Two ranks with bad private records: the bytes of the serial run with blank ones. And stand-ins of rehearsals keep the same rule."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from bad_records import ROWS, csv_table, public_table
from mpi_harness import find_mpirun, run_environ
from test_bad_records_runs import public_bytes, task

from distqexp import fit
from distqexp.config import ColumnsConfig, DataConfig, TuneConfig
from distqexp.problem.faults import Fault
from distqexp.problem.schema import fit_schema
from distqexp.tuning.shift import hold


@pytest.mark.alone
def test_two_ranks_are_one_rank_and_bad_records_are_blank_ones(tmp_path: Path) -> None:
    import subprocess

    config, spoiled = task(tmp_path, "csv", mechanism={"rounds": 2, "parts": 2})
    seeded = ["--insecure-noise-seed", "5", "--out"]
    blank = f"data.private.blank={spoiled.blank(tmp_path)}"
    assert fit.main([str(config), *seeded, str(tmp_path / "serial"), "--set", blank]) == 0
    ranks = [find_mpirun(), "--oversubscribe", "-n", "2", sys.executable, "-m", "distqexp.fit", str(config), *seeded]
    environ = run_environ({"DISTQEXP_LEDGER": str(tmp_path / "ranks.sqlite")})
    done = subprocess.run(
        [*ranks, str(tmp_path / "ranks")], env=environ, capture_output=True, timeout=240, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr.decode()
    one, two = public_bytes(tmp_path / "serial"), public_bytes(tmp_path / "ranks")
    assert {name: two[name] for name in two if name.startswith("release-")} == {
        name: one[name] for name in one if name.startswith("release-")
    }
    assert one["weights"] == two["weights"]


def test_stand_ins_of_a_rehearsal_contribute_nothing_where_they_are_bad(tmp_path: Path) -> None:
    spoiled, public = csv_table(tmp_path), public_table(tmp_path)
    roles = ColumnsConfig(target="died", exclude=("ward",))
    schema = fit_schema(
        DataConfig("csv", path=public["path"], unit="patient", columns=roles), loss="binary-cross-entropy"
    )
    private = DataConfig("csv", path=spoiled.source["path"], unit="patient", columns=roles)
    held = hold(private, schema, TuneConfig(noise=0.1), private=True)
    slots = held.slot_map()
    present = [spoiled.faults.get(row, Fault.NONE) == Fault.NONE for row in range(ROWS)]
    records = held.read(slots.rows)
    assert records.present.tolist() == present
    assert not records.inputs[~records.present].any()
    assert np.flatnonzero(slots.rows < 0).tolist() == [
        row for row, fault in sorted(spoiled.faults.items()) if fault == Fault.NO_UNIT
    ]
