"""Stand-ins of private records in rehearsals: bad ones contribute nothing there either."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bad_records import ROWS, csv_table, public_table

from distqexp.config import ColumnsConfig, DataConfig, TuneConfig
from distqexp.problem.faults import Fault
from distqexp.problem.schema import fit_schema
from distqexp.tuning.shift import hold


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
