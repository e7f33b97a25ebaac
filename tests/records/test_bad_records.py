"""A private record that breaks a rule is as good as blank: the same integers to the last bit, and not a word about it.

Every kind of bad value in every format. In the old code most of them ended a run in the middle, with exit code 3.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_records import CELLS, FORMATS, ROWS, Spoiled, bad_task
from small_runs import plan_of, sums_of, unit_integers, with_blank

from distqexp.config import Config, config_from_tree
from distqexp.engines.serial import SerialEngine
from distqexp.errors import FileContentError
from distqexp.problem.dataset import open_dataset
from distqexp.problem.faults import Fault
from distqexp.stages.shards import open_shards


def made(folder: Path, name: str, **sections: Any) -> tuple[Config, Spoiled]:
    """A config on bad private records and good public ones."""
    defaults = {"mechanism": {"clip": 0.05}, "engine": {"micro_batch": 8, "kind": "serial"}}
    tree, spoiled = bad_task(folder, name, defaults, sections)
    return config_from_tree(tree), spoiled


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_sums_are_those_of_blank_records_and_nothing_is_said(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config, spoiled = made(tmp_path, name)
    plan = plan_of(config)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # files that are closed when they are collected
        found = sums_of(config, plan, tmp_path / "bad")
    assert capfd.readouterr() == ("", "")
    blanked = with_blank(config, Path(spoiled.blank(tmp_path)))
    assert np.array_equal(found, sums_of(blanked, plan, tmp_path / "blank"))
    assert found.any()
    assert np.array_equal(unit_integers(config, plan).sum(axis=0), unit_integers(blanked, plan).sum(axis=0))


@pytest.mark.parametrize("name", FORMATS)
def test_each_bad_record_is_found_for_its_own_rule_and_no_other_is(tmp_path: Path, name: str) -> None:
    """So that no kind hides behind another in the sums; what is found good is present."""
    config, spoiled = made(tmp_path, name)
    plan = plan_of(config)
    dataset = open_dataset(config.data.private[0], plan.schema, private=True)
    slots = dataset.slot_map()
    expected = [spoiled.faults.get(row, Fault.NONE) for row in range(ROWS)]
    # Ids are distinct, so that slots are in the order of the rows; regression has two records a unit, in that order too.
    assert [Fault(fault) for fault in dataset.faults(slots.rows)] == expected
    present = [fault == Fault.NONE for fault in expected]
    records = dataset.read(slots.rows)
    assert records.present.tolist() == present
    away = ~records.present
    assert not records.targets[away].any()
    assert int(records.inputs[away].sum()) == (int(away.sum()) if plan.schema.tokens else 0)
    assert slots.slots == ROWS


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_bad_record_changes_no_other_s_bits(tmp_path: Path, name: str) -> None:
    config, spoiled = made(tmp_path, name)
    plan = plan_of(config)
    integers = unit_integers(config, plan)
    blanked = unit_integers(with_blank(config, Path(spoiled.blank(tmp_path))), plan)
    assert np.array_equal(integers, blanked)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "hdf5 regression"])  # any number is a target
def test_public_records_stay_strict(tmp_path: Path, name: str) -> None:
    """Their errors help, and tell nothing of anybody."""
    config, _ = made(tmp_path, name)
    plan = plan_of(config)
    dataset = open_dataset(config.data.private[0], plan.schema)
    with pytest.raises(FileContentError, match="expected"):
        dataset.read(dataset.slot_map().rows)


def test_filters_leave_out_what_they_cannot_compare(tmp_path: Path) -> None:
    """As a missing value is left out today."""
    config, spoiled = made(tmp_path, "csv")
    plan = plan_of(config)
    selected = dataclasses.replace(config.data.private[0], where="age > -100 and died >= 0")
    dataset = open_dataset(selected, plan.schema, private=True)
    unselected = {row for row, fault in spoiled.faults.items() if fault in (Fault.UNREADABLE, Fault.LABEL_MISSING)}
    left = set(range(ROWS)) - set(dataset.slot_map().rows.tolist())
    assert unselected <= left
    by_text = dataclasses.replace(config.data.private[0], where="ward != 'south'")
    content = Path(str(by_text.path)).read_bytes().replace(b"north", b"nor\xff", 3)
    Path(str(by_text.path)).write_bytes(content)
    rows = open_dataset(dataclasses.replace(by_text, unit=None, columns=dataclasses.replace(
        by_text.columns, exclude=("ward", "patient"))), plan.schema, private=True).slot_map().rows  # fmt: skip
    assert not set(rows.tolist()) & {0, 1, 2}
    assert 3 in rows


def test_parts_stand_where_they_stood(tmp_path: Path) -> None:
    """A row that is nobody's keeps its place: no other unit changes its part."""
    config, spoiled = made(tmp_path, "csv", mechanism={"parts": 4, "rounds": 4})
    plan = plan_of(config)
    sources, _ = open_shards(plan, config.data.private, SerialEngine())
    nobody = [row for row, fault in spoiled.faults.items() if fault == Fault.NO_UNIT]
    assert len(nobody) > sum(fault == Fault.NO_UNIT for _, _, fault in CELLS) > 0
    assert sources[0].partition is not None
    assert sources[0].partition.part.tolist() == [row % 4 for row in range(ROWS)]
