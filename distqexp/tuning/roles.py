"""Who plays whom in a rehearsal: public units as reference (data.public), stand-ins (data.private) and test records."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distqexp.config import Config, DataConfig, TuneConfig
from distqexp.errors import UsageError
from distqexp.problem.filters import parse_filter
from distqexp.problem.identity import same_file
from distqexp.problem.readers import Reader, open_reader
from distqexp.problem.selection import select_rows
from distqexp.problem.slots import SlotMap, slot_map
from distqexp.problem.unit_ids import canonical_id
from distqexp.tuning.files import public_without_private, share_a_file

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Roles:
    """Three sets of public records that share no unit, as sources of a config; a role may have several sources.

    reference: pretraining, schema, curvature, clip. stand_ins: clipped and noised like private records; ``units``: how many
    units they are. test: metrics; ``tested`` units. A fixed angle of [tune] is in their ``rotate``.
    """

    reference: DataConfig
    stand_ins: tuple[DataConfig, ...]
    test: tuple[DataConfig, ...]
    units: int
    tested: int


def assign_roles(config: Config) -> Roles:
    """Split the public records of a config as its [tune] says. Opens public files alone. Raises UsageError.

    Whole units, in the order of a hash of (tune.seed, source, number of the unit). At most privacy.units stand-ins: the
    others are tested on.
    """
    tune = config.tune or TuneConfig()
    reference, held = _held_out(public_without_private(config), tune)
    order = _hashed_order(held, tune.seed)
    if tune.eval is not None:
        order = order[: config.privacy.units]
        test = [_Source.of(tune.eval)]
    else:
        count = max(1, round(tune.test_share * len(order)), len(order) - config.privacy.units)
        test = _chosen(held, order[:count])
        order = order[count:]
    stand_ins = _chosen(held, order)
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
            dataclasses.replace(_turned(source.data, tune), shard=name)
            for source, name in zip(stand_ins, names, strict=True)
        ),
        test=tuple(_turned(source.data, tune) for source in test),
        units=len(order),
        tested=sum(source.slots.units for source in test),
    )


@dataclass(frozen=True)
class _Source:
    """Records of one file, with their slots and their ids (None: a unit each)."""

    data: DataConfig
    slots: SlotMap
    reader: Reader

    @staticmethod
    def of(data: DataConfig, private: bool = False) -> _Source:
        """private: whether the records play private ones; those without an id are nobody's, and in no role then."""
        reader = open_reader(data, private)
        rows = select_rows(data, reader, keep_blank=True)
        if data.unit is None:
            return _Source(data, slot_map(rows, None), reader)
        names = [canonical_id(name) for name in reader.identifiers(data.unit, rows)]
        owned = np.array([name is not None for name in names], dtype=np.bool_)
        return _Source(data, slot_map(rows[owned], [name for name in names if name is not None]), reader)

    def only(self, keep: Mask) -> _Source:
        """The units that ``keep``, (units,), marks."""
        slots = self.slots.only(keep)
        rows = np.sort(slots.rows)
        cuts = np.flatnonzero(np.diff(rows) != 1)
        firsts, lasts = rows[np.r_[0, cuts + 1]], rows[np.r_[cuts, len(rows) - 1]]
        ranges = tuple((int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True))
        return _Source(dataclasses.replace(self.data, rows=ranges), slots, self.reader)


def _held_out(public: DataConfig, tune: TuneConfig) -> tuple[_Source, list[_Source]]:
    """The reference, and the sources that stand-ins and test records are taken from."""
    whole, private = _Source.of(public), [_Source.of(data, private=True) for data in tune.private]
    for named in [*private, *([_Source.of(tune.eval)] if tune.eval else [])]:
        meeting = _meeting(whole, named)  # records of data.public that [tune] names are held out
        if meeting.all():
            raise UsageError("tune.private, tune.eval: all of data.public; expected some of it, or other records")
        whole = whole.only(~meeting)
    if private:
        return whole, private
    keep = np.zeros(whole.slots.units, dtype=np.bool_)
    if tune.where is not None:
        marked = np.ones(whole.reader.count, dtype=np.bool_)
        for comparison in parse_filter(tune.where):
            marked &= comparison.mask(whole.reader)
        keep[whole.slots.unit[marked[whole.slots.rows]]] = True
    else:
        order = _hashed_order([whole], tune.seed)[:, 1]
        keep[order[: round(tune.holdout * len(order))]] = True
    if keep.all() or not keep.any():
        raise UsageError(
            f"tune.{'where' if tune.where is not None else 'holdout'}: holds out {int(keep.sum())} of {len(keep)} public units; "
            "expected some of them, not all"
        )
    return whole.only(~keep), [whole.only(keep)]


def _hashed_order(sources: Sequence[_Source], seed: int) -> NDArray[np.int64]:
    """(units, 2): source and unit, of all units of all sources, in the order of their hashes."""
    pairs = [(i, unit) for i, source in enumerate(sources) for unit in range(source.slots.units)]
    pairs.sort(key=lambda pair: hashlib.sha256(f"tune/{seed}/{pair[0]}/{pair[1]}".encode()).digest())
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _chosen(sources: Sequence[_Source], pairs: NDArray[np.int64]) -> list[_Source]:
    found = []
    for i, source in enumerate(sources):
        keep = np.zeros(source.slots.units, dtype=np.bool_)
        keep[pairs[pairs[:, 0] == i, 1]] = True
        if keep.any():
            found.append(source.only(keep))
    return found


def _turned(data: DataConfig, tune: TuneConfig) -> DataConfig:
    angle = tune.rotate if isinstance(tune.rotate, float) else 0.0
    return dataclasses.replace(data, rotate=data.rotate + angle)


def _meeting(one: _Source, other: _Source) -> Mask:
    """(units of one,): those with a record, or an id, that the other has too. Sources of different files share nothing."""
    found = np.zeros(one.slots.units, dtype=np.bool_)
    if not (share_a_file(one.data, other.data) or same_file(one.data, other.data)):
        return found
    shared = np.isin(one.slots.rows, other.slots.rows)
    if one.data.unit is not None and one.data.unit == other.data.unit:
        names = {canonical_id(name) for name in other.reader.identifiers(one.data.unit, other.slots.rows)}
        own = [canonical_id(name) for name in one.reader.identifiers(one.data.unit, one.slots.rows)]
        shared |= np.fromiter((name in names for name in own), np.bool_, len(own))
    found[one.slots.unit[shared]] = True
    return found


def _refuse_overlap(sources: Sequence[_Source]) -> None:
    """No record, and no unit of one file, in two roles."""
    for i, one in enumerate(sources):
        if any(_meeting(one, other).any() for other in sources[:i]):
            raise UsageError(
                "tune.private, tune.eval: the same records or units twice; expected different ones: correct rows or filters"
            )
