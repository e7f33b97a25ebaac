"""The parts of the units: disjoint, whole, balanced, and a function of the right things alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from distqexp.problem.slots import Partition, SlotMap, partition_by_id, partition_by_slot, slot_map

KEY = bytes(range(32))


@st.composite
def files(draw: st.DrawFn) -> tuple[NDArray[np.int64], list[int]]:
    """Rows of a file and the unit id of each, in mixed order."""
    sizes = draw(st.lists(st.integers(1, 5), max_size=20))
    names = draw(st.permutations([unit * 7 for unit, size in enumerate(sizes) for _ in range(size)]))
    return np.arange(len(names), dtype=np.int64) * 2 + 1, list(names)


def ids_of(slots: SlotMap, rows: NDArray[np.int64], names: list[Any]) -> list[Any]:
    """The ids in the order of the slots."""
    by_row = dict(zip(rows.tolist(), names, strict=True))
    return [by_row[row] for row in slots.rows.tolist()]


@given(file=files(), parts=st.integers(1, 7), micro_batch=st.integers(1, 9), by_id=st.booleans())
def test_parts_cover_every_slot_once_and_never_cut_a_unit(
    file: tuple[NDArray[np.int64], list[int]], parts: int, micro_batch: int, by_id: bool
) -> None:
    rows, names = file
    slots = slot_map(rows, names)
    ids = ids_of(slots, rows, names)
    found = partition_by_id(slots, parts, ids, KEY) if by_id else partition_by_slot(slots, parts, ids, "file")
    assert found.part.shape == (slots.units,)
    assert ((found.part >= 0) & (found.part < parts)).all()
    whose = dict(zip(rows.tolist(), names, strict=True))
    seen: list[int] = []
    for number in range(parts):
        part = slots.only(found.part == number)
        mine = part.rows.tolist()
        seen += mine
        assert {whose[row] for row in mine}.isdisjoint({whose[row] for row in set(rows.tolist()) - set(mine)})
        # The units keep their order and their slots, and the pieces of a part hold slots of it alone.
        assert [whose[row] for row in mine] == [ids[at] for at in range(slots.slots) if slots.rows[at] in mine]
        pieces = part.pieces(micro_batch)
        assert [slot for first, last in pieces for slot in range(first, last)] == list(range(part.slots))
        if not by_id:
            assert part.units == len(range(number, slots.units, parts))
    assert sorted(seen) == rows.tolist()


@given(file=files(), parts=st.integers(2, 7), data=st.data())
def test_a_unit_that_comes_or_goes_moves_no_other_by_id(
    file: tuple[NDArray[np.int64], list[int]], parts: int, data: st.DataObject
) -> None:
    rows, names = file
    slots = slot_map(rows, names)
    whole = partition_by_id(slots, parts, ids_of(slots, rows, names), KEY)
    leaver = data.draw(st.sampled_from([*names, -1]))
    keep = np.array([name != leaver for name in names], dtype=bool)
    rest = [name for name in names if name != leaver]
    fewer = slot_map(rows[keep], rest)
    without = partition_by_id(fewer, parts, ids_of(fewer, rows[keep], rest), KEY)

    def parts_by_unit(slots: SlotMap, found: Partition, rows: NDArray[np.int64], names: list[int]) -> dict[int, int]:
        return {
            name: int(found.part[unit])
            for name, unit in zip(ids_of(slots, rows, names), slots.unit.tolist(), strict=True)
        }

    expected = parts_by_unit(slots, whole, rows, names)
    expected.pop(leaver, None)
    assert parts_by_unit(fewer, without, rows[keep], rest) == expected
    assert whole.basis == without.basis == b""


def test_a_slot_would_move_the_others() -> None:
    """Why add-remove needs the hash: by slot, every later unit changes its part."""
    slots, fewer = slot_map(np.arange(6), None), slot_map(np.arange(1, 6), None)
    before = dict(zip(slots.rows.tolist(), partition_by_slot(slots, 2, None, "").part.tolist(), strict=True))
    after = dict(zip(fewer.rows.tolist(), partition_by_slot(fewer, 2, None, "").part.tolist(), strict=True))
    assert all(before[row] != after[row] for row in after)


def test_hashed_parts_are_about_equal_and_differ_between_keys() -> None:
    """4,000 units in 8 parts: each part within 6 deviations of 500. Fixed ids and keys: no false alarm later."""
    slots = slot_map(np.arange(4000), [f"patient {n}" for n in range(4000)])
    ids = [f"patient {n}" for n in range(4000)]
    first, second = (partition_by_id(slots, 8, ids, key).part for key in (KEY, KEY[::-1]))
    for part in (first, second):
        assert np.abs(np.bincount(part, minlength=8) - 500).max() < 6 * (500 * 7 / 8) ** 0.5
    assert 400 < (first == second).sum() < 600


def test_an_id_is_the_same_from_every_format() -> None:
    slots = slot_map(np.arange(2), ["12", "13"])
    tables = [["12", "13"], [12, 13], [b"12", b"13"]]
    parts = [partition_by_id(slots, 1000, ids, KEY).part.tolist() for ids in tables]
    assert parts[0] == parts[1] == parts[2]


def test_the_basis_changes_with_whatever_may_move_a_unit() -> None:
    rows = np.arange(4)

    def basis(names: list[Any] | None, fingerprint: str = "f", kept: NDArray[np.int64] = rows) -> bytes:
        slots = slot_map(kept, names)
        return partition_by_slot(slots, 2, names and ids_of(slots, kept, names), fingerprint).basis

    named = basis(["a", "a", "b", "c"])
    assert named == basis(["a", "a", "b", "c"], "another time of the same file")
    assert named == basis(["a", "a", "b", "c"], kept=rows + 5)
    assert named != basis(["b", "b", "a", "c"])
    assert named != basis(["a", "b", "b", "c"])
    assert named != basis(["aa", "aa", "b", "c"])
    unnamed = basis(None)
    assert unnamed == basis(None)
    assert len({named, unnamed, basis(None, "g"), basis(None, kept=rows + 5), basis(None, kept=rows[:3])}) == 5


def test_only_refuses_nothing_and_keeps_no_gap() -> None:
    slots = slot_map(np.arange(6), ["a", "a", "b", "c", "c", "c"])
    part = slots.only(np.array([True, False, True]))
    assert (part.rows.tolist(), part.unit.tolist()) == ([0, 1, 3, 4, 5], [0, 0, 1, 1, 1])
    nobody = slots.only(np.zeros(3, dtype=bool))
    assert (nobody.slots, nobody.units, nobody.pieces(4)) == (0, 0, [])


@pytest.mark.parametrize("parts", [1, 3])
def test_no_units_have_no_parts(parts: int) -> None:
    slots = slot_map(np.arange(0), [])
    assert (
        partition_by_slot(slots, parts, [], "").part.shape == partition_by_id(slots, parts, [], KEY).part.shape == (0,)
    )
