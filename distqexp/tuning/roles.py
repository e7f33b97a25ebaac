"""Who plays whom in a rehearsal: public units play data.public (the reference), data.private (stand-ins) and the test records."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distqexp.arrays import BoolArray, IntegerArray
from distqexp.config import Config, DataConfig, TuneConfig
from distqexp.errors import UsageError
from distqexp.problem.filters import parse_filter
from distqexp.problem.identity import same_file
from distqexp.problem.readers import Reader, open_reader
from distqexp.problem.selection import select_rows
from distqexp.problem.slots import SlotMap, slot_map
from distqexp.problem.unit_ids import canonical_id
from distqexp.tuning.files import public_without_private, share_a_file


@dataclass(frozen=True)
class Roles:
    """Three sets of public records that share no unit, as sources of a config; a role may have several sources.

    A fixed angle of [tune] is in ``rotate`` of stand-ins and test records.

    Attributes:
        reference: The records for pretraining, schema, curvature and clip.
        stand_ins: The records that are clipped and noised like private ones.
        test: The records that metrics are computed on.
        units: The number of units among the stand-ins.
        test_units: The number of units among the test records.
    """

    reference: DataConfig
    stand_ins: tuple[DataConfig, ...]
    test: tuple[DataConfig, ...]
    units: int
    test_units: int


def assign_roles(config: Config) -> Roles:
    """Split the public records of a config as its [tune] says. Opens public files alone.

    Roles get whole units, in the order of a hash of (tune.seed, source, number of the unit). There are at most privacy.units
    stand-ins: the others are tested on.

    Raises:
        UsageError: A role would be empty, private records would be read, or records or units would be in two roles.
    """
    tune = config.tune or TuneConfig()
    reference, pool = _hold_out(public_without_private(config), tune)
    order = _hashed_order(pool, tune.seed)
    if tune.eval is not None:
        order = order[: config.privacy.units]
        test = [_Source.of(tune.eval)]
    else:
        count = max(1, round(tune.test_share * len(order)), len(order) - config.privacy.units)
        test = _select(pool, order[:count])
        order = order[count:]
    stand_ins = _select(pool, order)
    if not stand_ins or not test:
        raise UsageError(
            f"tune: {len(order)} public units to play the private ones, {sum(source.slots.units for source in test)} to test on; "
            "expected at least one of both: hold out more"
        )
    _refuse_overlap([reference, *stand_ins, *test])
    names = ["stand-ins"] if len(stand_ins) == 1 else [f"stand-ins-{i}" for i in range(len(stand_ins))]
    return Roles(
        reference=reference.data,
        stand_ins=tuple(
            dataclasses.replace(_with_angle(source.data, tune), shard=name)
            for source, name in zip(stand_ins, names, strict=True)
        ),
        test=tuple(_with_angle(source.data, tune) for source in test),
        units=len(order),
        test_units=sum(source.slots.units for source in test),
    )


@dataclass(frozen=True)
class _Source:
    """The records of one source, with their slots and the reader that they come from."""

    data: DataConfig
    slots: SlotMap
    reader: Reader

    @staticmethod
    def of(data: DataConfig, private: bool = False) -> _Source:
        """Open a source. Where ``private`` is true its records play private ones: those without an id are nobody's, in no role."""
        reader = open_reader(data, private)
        rows = select_rows(data, reader, keep_blank=True)
        if data.unit is None:
            return _Source(data, slot_map(rows, None), reader)
        names = [canonical_id(name) for name in reader.identifiers(data.unit, rows)]
        has_id = np.array([name is not None for name in names], dtype=np.bool_)
        return _Source(data, slot_map(rows[has_id], [name for name in names if name is not None]), reader)

    def only(self, keep: BoolArray) -> _Source:
        """Return the source with the units alone that ``keep``, bool (units,), marks."""
        slots = self.slots.only(keep)
        rows = np.sort(slots.rows)
        cuts = np.flatnonzero(np.diff(rows) != 1)
        firsts, lasts = rows[np.r_[0, cuts + 1]], rows[np.r_[cuts, len(rows) - 1]]
        ranges = tuple((int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True))
        return _Source(dataclasses.replace(self.data, rows=ranges), slots, self.reader)


def _hold_out(public: DataConfig, tune: TuneConfig) -> tuple[_Source, list[_Source]]:
    """Return the reference, and the sources that stand-ins and test records are taken from."""
    reference, stand_ins = _Source.of(public), [_Source.of(data, private=True) for data in tune.private]
    for source in [*stand_ins, *([_Source.of(tune.eval)] if tune.eval else [])]:
        shared = _shared_units(reference, source)  # records of data.public that [tune] names are held out
        if shared.all():
            raise UsageError("tune.private, tune.eval: all of data.public; expected some of it, or other records")
        reference = reference.only(~shared)
    if stand_ins:
        return reference, stand_ins
    held_out = np.zeros(reference.slots.units, dtype=np.bool_)
    if tune.where is not None:
        mask = np.ones(reference.reader.count, dtype=np.bool_)
        for comparison in parse_filter(tune.where):
            mask &= comparison.mask(reference.reader)
        held_out[reference.slots.unit[mask[reference.slots.rows]]] = True
    else:
        order = _hashed_order([reference], tune.seed)[:, 1]
        held_out[order[: round(tune.holdout * len(order))]] = True
    if held_out.all() or not held_out.any():
        raise UsageError(
            f"tune.{'where' if tune.where is not None else 'holdout'}: holds out {int(held_out.sum())} of {len(held_out)} public units; "
            "expected some of them, not all"
        )
    return reference.only(~held_out), [reference.only(held_out)]


def _hashed_order(sources: Sequence[_Source], seed: int) -> IntegerArray:
    """Source and unit, int64 (units, 2), of all units of all sources, in the order of their hashes."""
    pairs = [(i, unit) for i, source in enumerate(sources) for unit in range(source.slots.units)]
    pairs.sort(key=lambda pair: hashlib.sha256(f"tune/{seed}/{pair[0]}/{pair[1]}".encode()).digest())
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _select(sources: Sequence[_Source], pairs: IntegerArray) -> list[_Source]:
    """Return the sources with the units alone that are among ``pairs`` of source and unit; sources without any are left out."""
    selection = []
    for i, source in enumerate(sources):
        keep = np.zeros(source.slots.units, dtype=np.bool_)
        keep[pairs[pairs[:, 0] == i, 1]] = True
        if keep.any():
            selection.append(source.only(keep))
    return selection


def _with_angle(data: DataConfig, tune: TuneConfig) -> DataConfig:
    angle = tune.rotate if isinstance(tune.rotate, float) else 0.0
    return dataclasses.replace(data, rotate=data.rotate + angle)


def _shared_units(one: _Source, other: _Source) -> BoolArray:
    """Mark the units of ``one``, bool (units,), with a record, or an id, that the other has too. Different files share nothing."""
    units = np.zeros(one.slots.units, dtype=np.bool_)
    if not (share_a_file(one.data, other.data) or same_file(one.data, other.data)):
        return units
    shared = np.isin(one.slots.rows, other.slots.rows)
    if one.data.unit is not None and one.data.unit == other.data.unit:
        names = {canonical_id(name) for name in other.reader.identifiers(one.data.unit, other.slots.rows)}
        own = [canonical_id(name) for name in one.reader.identifiers(one.data.unit, one.slots.rows)]
        shared |= np.fromiter((name in names for name in own), np.bool_, len(own))
    units[one.slots.unit[shared]] = True
    return units


def _refuse_overlap(sources: Sequence[_Source]) -> None:
    """Raise UsageError where a record, or a unit of one file, is in two roles."""
    for i, one in enumerate(sources):
        if any(_shared_units(one, other).any() for other in sources[:i]):
            raise UsageError(
                "tune.private, tune.eval: the same records or units twice; expected different ones: correct rows or filters"
            )
