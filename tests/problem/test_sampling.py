"""The slots of a sample: who was drawn is in them, and their number and shape tell nothing of it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from distqexp.problem.sampling import SampleRoom, room_for_sample, sampled_slots
from distqexp.problem.slots import NO_ROW, SlotMap, slot_map

FAILURE = 1e-9
MICRO_BATCH = 16


def of_sizes(sizes: list[int]) -> SlotMap:
    return slot_map(np.arange(sum(sizes)), [f"p{unit}" for unit, size in enumerate(sizes) for _ in range(size)])


RANDOM = np.random.default_rng(5)
MAPS = {
    "single": slot_map(np.arange(3000), None),
    "patients": of_sizes(RANDOM.integers(1, 9, 400).tolist()),
    "some long": of_sizes([*RANDOM.integers(1, 17, 300).tolist(), *[17, 90, 40] * 5]),
    "long alone": of_sizes([33, 20, 100]),
    "one": of_sizes([1]),
    "interleaved": slot_map(np.arange(900), [f"p{row % 300}" for row in range(900)]),
}


def drawn_units(slots: SlotMap, sampling: float, seed: int) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(slots.units) < sampling


@pytest.mark.parametrize("sampling", [0.03, 0.25, 0.9])
@pytest.mark.parametrize("name", MAPS)
def test_every_sample_has_the_same_pieces_and_exactly_the_drawn_units(name: str, sampling: float) -> None:
    slots = MAPS[name]
    room = room_for_sample(slots, MICRO_BATCH, sampling, FAILURE)
    large = np.diff(slots.bounds()) > MICRO_BATCH
    shapes = set()
    for seed in range(40):
        drawn = drawn_units(slots, sampling, seed)
        sample = sampled_slots(slots, drawn, MICRO_BATCH, room)
        pieces = sample.pieces(MICRO_BATCH)
        shapes.add((tuple(pieces), len(sample.rows)))
        expected = [slots.rows[slots.unit == unit].tolist() for unit in np.flatnonzero(drawn)]
        # A unit's rows stay together and in order; slots of nobody fill the rest.
        members = [sample.rows[sample.unit == unit] for unit in range(sample.units)]
        found = [rows[rows != NO_ROW].tolist() for rows in members if (rows != NO_ROW).any()]
        assert sorted(found) == sorted(expected)
        assert all(len(rows) == room.large_batches * MICRO_BATCH for rows in members if len(rows) > MICRO_BATCH)
        assert large[drawn].sum() <= room.large_units
    assert len(shapes) == 1
    [(pieces, count)] = shapes
    assert len(pieces) == room.batches + room.large_units
    assert count == MICRO_BATCH * (room.batches + room.large_units * room.large_batches)


def test_everybody_and_nobody() -> None:
    slots = MAPS["some long"]
    for sampling, drawn in ((0.1, np.zeros(slots.units, dtype=bool)), (1.0, np.ones(slots.units, dtype=bool))):
        room = room_for_sample(slots, MICRO_BATCH, sampling, FAILURE)
        rows = sampled_slots(slots, drawn, MICRO_BATCH, room).rows
        assert sorted(rows[rows != NO_ROW].tolist()) == (sorted(slots.rows.tolist()) if drawn.all() else [])


def test_a_sample_beyond_its_room_gets_more_pieces_and_loses_nobody() -> None:
    """This is the event whose probability the guarantee counts as a failure."""
    slots = MAPS["some long"]
    drawn = np.ones(slots.units, dtype=bool)
    sample = sampled_slots(slots, drawn, MICRO_BATCH, SampleRoom(batches=2, large_units=1, large_batches=6))
    assert sorted(sample.rows[sample.rows != NO_ROW].tolist()) == sorted(slots.rows.tolist())


@pytest.mark.parametrize(("count", "sampling"), [(5000, 1 / 8), (60_000, 1 / 20), (300, 0.5)])
def test_room_for_single_records_is_the_binomial_quantile(count: int, sampling: float) -> None:
    room = room_for_sample(slot_map(np.arange(count), None), 1, sampling, FAILURE)
    assert room.large_units == 0
    assert binom.sf(room.batches, count, sampling) <= FAILURE / 2 < binom.sf(room.batches - 1, count, sampling)


@pytest.mark.parametrize("name", ["single", "patients", "some long", "interleaved"])
def test_room_is_exceeded_no_more_often_than_stated(name: str) -> None:
    """At a failure probability where it shows. More than 100 of 1,000 at 0.02 has a probability below 1e-30."""
    slots, failure, times = MAPS[name], 0.02, 1000
    room = room_for_sample(slots, MICRO_BATCH, 0.2, failure)
    needed = []
    for seed in range(times):
        sample = sampled_slots(slots, drawn_units(slots, 0.2, seed), MICRO_BATCH, SampleRoom(0, 0, room.large_batches))
        needed.append(len(sample.pieces(MICRO_BATCH)) > room.batches + room.large_units)
    assert np.mean(needed) <= 0.1


def test_the_room_is_close_to_the_mean() -> None:
    """What it costs on the way: 60,000 records at 1/8 take 8,128 slots, 0.135 of a pass."""
    room = room_for_sample(slot_map(np.arange(60_000), None), 64, 1 / 8, 1e-12)
    assert room.batches * 64 <= 0.137 * 60_000
