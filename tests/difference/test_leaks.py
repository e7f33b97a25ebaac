"""Leaks planted into the code of a run, most of them of a hundredth: the audit by difference finds every one.

Each is a fault that somebody could make. It is planted for the whole run (plan, rounds, certificate), and the audit of
tests/difference/test_audit.py, which finds nothing without it, must name a unit that moved the sums by too much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from difference_cases import COUNT, Case, case
from difference_oracle import audit

from distqexp.artefacts import derived
from distqexp.gradients import autodiff as unit_gradients
from distqexp.gradients import by_layer as block_gradients
from distqexp.gradients.context import RoundContext
from distqexp.kinds import Adjacency
from distqexp.mechanism import grid as grids
from distqexp.mechanism.grid import Grid
from distqexp.mechanism.rounding_slack import BatchSums
from distqexp.problem.dataset import Dataset
from distqexp.problem.slots import partition_by_slot, slot_map
from distqexp.problem.sources import DataSource
from distqexp.sketching import curvature_sketcher, sketcher
from distqexp.sketching.curvature_sketcher import CurvatureSketcher
from distqexp.stages import export, shards, sketch

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Leak:
    """plant: puts the fault in. where: the cases in which it can show. cases: so many of those are tried, the first ones.

    each: it is found in every one of them; else in one at least.
    """

    plant: Callable[[Patch], None]
    where: Callable[[Case], bool]
    cases: int = 2
    each: bool = True

    def tried(self) -> list[int]:
        """The numbers of the cases."""
        return list(islice((number for number in range(COUNT) if self.where(case(number))), self.cases))


def axes(**wanted: str | tuple[str, ...]) -> Callable[[Case], bool]:
    """Cases with these values, or one of them, on their axes."""

    def fits(candidate: Case) -> bool:
        options = {name: (value,) if isinstance(value, str) else value for name, value in wanted.items()}
        return all(candidate.axes[name] in values for name, values in options.items())

    return fits


def longer_clip(patch: Patch) -> None:
    """The clip, and with it the check on integers, a hundredth too long."""
    make = sketch.sketcher_of

    def longer_sketcher(context: RoundContext, state: Any) -> Any:
        longer = replace(state.grid, clip_integer=int(1.01 * state.grid.clip_integer))
        return make(context, replace(state, clip=1.01 * state.clip, grid=longer))

    patch.setattr(sketch, "sketcher_of", longer_sketcher)


def understated_sensitivity(patch: Patch) -> None:
    """The noise, and the certificate, made for a hundredth less than units can move."""
    patch.setattr(Grid, "sensitivity", property(lambda grid: int(0.99 * grid.clip_integer * grid.sensitivity_factor)))


def clipped_by_record(patch: Patch) -> None:
    """A unit's records are clipped one by one, not their sum."""
    patch.setattr(Dataset, "slot_map", lambda dataset: slot_map(np.arange(dataset._reader.count), None))


def in_two_parts(patch: Patch) -> None:
    """Every unit takes part in the rounds of the next part too."""

    def of_part(source: DataSource, number: int, parts: int) -> DataSource:
        if source.partition is None:
            return source
        return DataSource(source.data, source.slots.only((source.partition.part - number) % parts < 2))

    patch.setattr(DataSource, "of_part", of_part)


def parts_by_place(patch: Patch) -> None:
    """Under add-remove a unit's part is its place: one that goes moves the others."""

    def partition(plan: Any, dataset: Any, slots: Any, *more: Any) -> Any:
        found = partition_by_slot(slots, plan.config.mechanism.parts, dataset.identifiers(slots.rows), "")
        return replace(found, basis=b"")

    patch.setattr(shards, "_partition", partition)


def no_slack(patch: Patch) -> None:
    """Sums of micro-batches are rounded, and what that adds is forgotten."""
    patch.setattr(BatchSums, "slack", lambda sums, clip, exponent, factor: 0)


def replaced_at_half_price(patch: Patch) -> None:
    """Replacing a unit is taken for removing one."""
    patch.setattr(Adjacency, "sensitivity_factor", property(lambda _: 1))


def presence_forgotten(patch: Patch) -> None:
    """A unit in several shards pays as if it were in one."""
    choose = derived.choose_grid

    def chosen(clip: Any, mu: Any, sigma: Any, adjacency: Any, options: Any) -> Grid:
        return choose(clip, mu, sigma, adjacency, options._replace(presence=1))

    patch.setattr(derived, "choose_grid", chosen)


def coupled_batch(patch: Patch) -> None:
    """A hundredth of the micro-batch's mean is taken off every record, as a normalisation of the batch would."""
    pad = unit_gradients.pad_records

    def padded(records: Any, micro_batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inputs, targets, present = pad(records, micro_batch)
        return inputs - 0.01 * inputs.mean(dim=0, keepdim=True), targets, present

    for module in (unit_gradients, block_gradients):
        patch.setattr(module, "pad_records", padded)


def counts_unpaid(patch: Patch) -> None:
    """What is told about the units is left out of a unit's length."""
    patch.setattr(grids, "unit_length", lambda clip_integer, counter: clip_integer)


def curvature_unclipped(patch: Patch) -> None:
    """A unit's curvature counts neither in the joint clip nor in the check on integers."""

    def norms(vectors: Any, rows: Any, unit: Any, radius: float) -> Any:
        return np.sqrt(np.square(vectors).sum(axis=1))

    patch.setattr(curvature_sketcher, "lipschitz_sizes", norms)
    patch.setattr(CurvatureSketcher, "_within", lambda self, linear, rows, unit: np.ones(len(linear), dtype=np.bool_))


def unchecked_rounding(patch: Patch) -> None:
    """Vectors are rounded to the nearest grid point, and nobody looks how long they are then."""
    patch.setattr(sketcher, "round_to_grid", lambda vectors, step, limit: np.rint(vectors / step).astype(np.int64))


def forgotten_round(patch: Patch) -> None:
    """The certificate adds up all rounds but the last."""
    whole = export.guarantee_of

    def guarantee(plan: Any, releases: Any, charged: Any = None, *more: Any) -> Any:
        return whole(plan, releases[:-1], None if charged is None else charged[:-1], *more)

    patch.setattr(export, "guarantee_of", guarantee)


FREE = ("discrete", "gaussian")
CURVED = ("curvature", "pure curvature")
SEVERAL = ("2", "3")
COMING_AND_GOING = ("zero-out", "add-remove")


def tight(**more: str | tuple[str, ...]) -> Callable[[Case], bool]:
    """Cases in which some unit uses up what is allowed: its vector alone counts, and it comes or goes."""
    wanted = {"diagnostics": "False", "mechanism": (*FREE, "ball", "pure"), "adjacency": COMING_AND_GOING}
    return axes(**(wanted | more))


LEAKS: dict[str, Leak] = {
    "longer clip, zero-out": Leak(longer_clip, tight(adjacency="zero-out", rounding="unit")),
    "longer clip, add-remove": Leak(longer_clip, tight(adjacency="add-remove")),
    "longer clip, replace-one": Leak(
        longer_clip, tight(adjacency="replace-one", rounding="unit", model=("logistic", "line"))
    ),
    "longer clip, sums of batches": Leak(longer_clip, tight(adjacency="zero-out", rounding="batch")),
    "longer clip, curvature": Leak(longer_clip, axes(mechanism=CURVED, adjacency="zero-out")),
    "longer clip, views": Leak(longer_clip, tight(views="True")),
    "longer clip, presence": Leak(longer_clip, tight(presence=SEVERAL)),
    "longer clip, parts": Leak(longer_clip, tight(parts=SEVERAL)),
    "understated sensitivity": Leak(understated_sensitivity, tight(rounding="unit")),
    "clipped by record": Leak(clipped_by_record, axes(units="column", parts="1", presence="1"), cases=4, each=False),
    "in two parts": Leak(in_two_parts, tight(parts=SEVERAL)),
    "parts by place": Leak(parts_by_place, axes(adjacency="add-remove", parts=SEVERAL)),
    "no slack": Leak(no_slack, axes(rounding="batch", diagnostics="False"), cases=3, each=False),
    "replaced at half price": Leak(replaced_at_half_price, axes(adjacency="replace-one")),
    "presence forgotten": Leak(presence_forgotten, axes(presence=SEVERAL)),
    "coupled batch": Leak(
        coupled_batch, tight(micro_batch=("5", "16"), model=("softmax", "logistic", "line")), cases=4, each=False
    ),
    "counts unpaid": Leak(counts_unpaid, axes(diagnostics="True", adjacency=COMING_AND_GOING)),
    "curvature unclipped": Leak(curvature_unclipped, axes(mechanism=CURVED)),
    "unchecked rounding": Leak(unchecked_rounding, tight(rounding="unit"), cases=4, each=False),
    "forgotten round": Leak(forgotten_round, tight(rounds=("2", "3", "4"), parts="1", mechanism=FREE)),
}


QUICK = ("longer clip, zero-out", "forgotten round")
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LEAKS if name not in QUICK)]


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_leak_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leak = LEAKS[name]
    numbers = leak.tried()
    assert len(numbers) == leak.cases
    leak.plant(monkeypatch)
    found = {number: audit(case(number), tmp_path / f"{number}").violations for number in numbers}
    missed = [number for number, violations in found.items() if not violations]
    assert (not missed) if leak.each else len(missed) < len(numbers), (name, missed, found)
