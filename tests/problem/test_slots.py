"""Slots and pieces: every slot once, no unit cut, units by first appearance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqexp.problem.slots import SlotMap, slot_map

IDS = st.lists(st.integers(0, 12), max_size=60)


@settings(max_examples=60, deadline=None)
@given(IDS, st.integers(1, 9))
def test_pieces_cover_every_slot_once_and_cut_no_unit(ids: list[int], micro_batch: int) -> None:
    slots = slot_map(np.arange(len(ids)) * 2, ids)
    pieces = slots.pieces(micro_batch)
    assert [slot for first, last in pieces for slot in range(first, last)] == list(range(len(ids)))
    for (first, last), following in zip(pieces, [*pieces[1:], None][: len(pieces)], strict=True):
        units = set(slots.unit[first:last].tolist())
        assert units.isdisjoint(slots.unit[:first].tolist())
        assert units.isdisjoint(slots.unit[last:].tolist())
        assert last - first <= micro_batch or len(units) == 1
        if following is not None:  # greedy: the next unit would not have fitted
            next_unit = int((slots.unit == slots.unit[following[0]]).sum())
            assert last - first + next_unit > micro_batch


@settings(max_examples=60, deadline=None)
@given(IDS)
def test_units_are_numbered_by_first_appearance_with_records_in_file_order(ids: list[int]) -> None:
    slots = slot_map(np.arange(len(ids)), ids)
    expected = [row for name in dict.fromkeys(ids) for row, other in enumerate(ids) if other == name]
    assert slots.rows.tolist() == expected
    assert [ids[row] for row in slots.rows.tolist()] == [list(dict.fromkeys(ids))[u] for u in slots.unit.tolist()]
    assert slots.units == len(set(ids))


def test_without_identifiers_every_record_is_a_unit() -> None:
    slots = slot_map(np.array([3, 5, 9]), None)
    assert slots.unit.tolist() == [0, 1, 2]
    assert slots.pieces(2) == [(0, 2), (2, 3)]


def test_a_large_unit_is_a_piece_of_its_own() -> None:
    slots = slot_map(np.arange(9), ["a", "b", "b", "b", "b", "b", "c", "d", "a"])
    assert slots.unit.tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 3]
    assert slots.pieces(3) == [(0, 2), (2, 7), (7, 9)]


def test_a_map_with_scattered_units_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        SlotMap(np.arange(3), np.array([0, 1, 0]))
