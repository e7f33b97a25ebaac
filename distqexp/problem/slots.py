"""Slots: the fixed places of records, grouped by privacy unit.

The slot map is public under zero-out and replace-one adjacency: it doesn't say which records are blank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distqexp.arrays import BoolArray, IntegerArray
from distqexp.problem.unit_ids import canonical_id, refuse_mixture

NO_ROW = -1
"""The row of a slot that belongs to nobody: absent in every round, as if it were blank."""


@dataclass(frozen=True)
class SlotMap:
    """Which row of the file sits in each slot, and to which unit each slot belongs.

    Units are numbered by first appearance, and the records of a unit stand in file order, so that the slots of one unit are contiguous.

    Attributes:
        rows: int64 (n_slots,), the row of the file in each slot; NO_ROW for a slot that belongs to nobody.
        unit: int64 (n_slots,), the 0-based number of each slot's unit, non-decreasing.
    """

    rows: IntegerArray
    unit: IntegerArray

    def __post_init__(self) -> None:
        if self.rows.shape != self.unit.shape or self.rows.ndim != 1:
            raise ValueError(f"slot map: rows {self.rows.shape} and unit {self.unit.shape} must be equal vectors")
        steps = np.diff(self.unit, prepend=np.int64(-1))
        if not np.all((steps == 0) | (steps == 1)):
            raise ValueError("slot map: units must be numbered 0, 1, 2, ... with the slots of a unit contiguous")

    @property
    def slots(self) -> int:
        """The number of slots."""
        return len(self.rows)

    @property
    def units(self) -> int:
        """The number of privacy units."""
        return int(self.unit[-1]) + 1 if len(self.unit) else 0

    def bounds(self) -> IntegerArray:
        """Return int64 (units + 1,): unit u owns the slots bounds[u] .. bounds[u + 1] - 1."""
        return np.searchsorted(self.unit, np.arange(self.units + 1)).astype(np.int64)

    def only(self, keep: BoolArray) -> SlotMap:
        """Return the slots of the units that ``keep``, bool (units,), marks, numbered anew in their order."""
        slots = keep[self.unit]
        numbers = np.cumsum(keep) - 1
        return SlotMap(self.rows[slots], numbers[self.unit[slots]].astype(np.int64))

    def pieces(self, micro_batch: int) -> list[tuple[int, int]]:
        """Return half-open slot ranges, in order, that cover every slot once and never cut a unit.

        Whole units are packed greedily into at most ``micro_batch`` slots; a unit with more records than that is a piece of its own.
        The pieces depend on the slot map alone, not on ranks or engines.
        """
        if micro_batch < 1:
            raise ValueError(f"micro_batch {micro_batch}: expected 1 or more")
        bounds = self.bounds()
        ranges: list[tuple[int, int]] = []
        at = 0
        while at < self.units:
            first = int(bounds[at])
            after = int(np.searchsorted(bounds, first + micro_batch, side="right")) - 1
            after = max(after, at + 1)
            ranges.append((first, int(bounds[after])))
            at = after
        return ranges


BASIS_BYTES = 32
"""The length of a partition's basis where it has one."""


@dataclass(frozen=True)
class Partition:
    """The part of each unit of a source, and what that assignment rests on.

    Parts of two rounds may be taken together only where their bases are equal.

    Attributes:
        part: int64 (units,), the part of each unit.
        basis: a digest, BASIS_BYTES long, of everything outside the plan that a unit's part depends on besides the unit itself;
            empty when there is nothing of the kind. Private.
    """

    part: IntegerArray
    basis: bytes


def partition_by_slot(slots: SlotMap, parts: int, identifiers: Sequence[Any] | None, fingerprint: str) -> Partition:
    """Put unit u, by the order of the slots, in part u mod ``parts``, so that parts are of equal size.

    Which unit is unit u then rests on all ids; without ids it rests on the file.

    Args:
        slots: the slots of the source.
        parts: the number of parts.
        identifiers: the unit id of every row of ``slots.rows``; None where a row is a unit.
        fingerprint: a digest of the file's bytes, which stands for the file where there are no ids.
    """
    names = [] if identifiers is None else [id_bytes(name) for name in identifiers]
    basis = hashlib.sha256(fingerprint.encode() if identifiers is None else b"")
    for content in [slots.rows.tobytes() if identifiers is None else b"", slots.unit.tobytes(), *names]:
        basis.update(len(content).to_bytes(8, "big") + content)
    return Partition(np.arange(slots.units, dtype=np.int64) % parts, basis.digest())


def partition_by_id(slots: SlotMap, parts: int, identifiers: Sequence[Any], key: bytes) -> Partition:
    """Put each unit in a part by a public keyed hash (BLAKE2b) of its id: no unit that comes or goes moves another.

    Args:
        slots: the slots of the source.
        parts: the number of parts.
        identifiers: the unit id of every row of ``slots.rows``.
        key: the key of the hash, at most 64 bytes. Public.
    """
    firsts = [id_bytes(identifiers[at]) for at in slots.bounds()[:-1]]
    hashes = [int.from_bytes(hashlib.blake2b(name, key=key, digest_size=16).digest(), "big") for name in firsts]
    return Partition(np.array([value % parts for value in hashes], dtype=np.int64), b"")


def id_bytes(identifier: Any) -> bytes:
    """Return an id's canonical text in bytes, the same from a table and from an array; empty for a missing id."""
    return (canonical_id(identifier) or "").encode()


def slot_map(rows: IntegerArray, identifiers: Iterable[Any] | None, where: str = "unit ids") -> SlotMap:
    """Make the slots of selected rows of a file.

    Ids are compared after ``canonical_id``. A row whose id is None then belongs to nobody: its slot, a unit of its own, holds
    NO_ROW. It keeps its place, so that the units around it keep theirs.

    Args:
        rows: the selected rows of the file, ascending.
        identifiers: one unit id a row; None where a row is a unit.
        where: file and column, for error messages.

    Raises:
        FileContentError: the ids can't be compared, see ``refuse_mixture``.
    """
    rows = np.asarray(rows, dtype=np.int64)
    if identifiers is None:
        return SlotMap(rows, np.arange(len(rows), dtype=np.int64))
    numbers: dict[Any, int] = {}
    nobody = object
    texts = [canonical_id(name, where) for name in identifiers]
    refuse_mixture({text for text in texts if text is not None}, where)
    names = [nobody() if text is None else text for text in texts]
    codes = np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
    order = np.argsort(codes, kind="stable")
    has_unit = np.array([type(name) is not nobody for name in names], dtype=np.bool_)
    return SlotMap(np.where(has_unit, rows, NO_ROW)[order], codes[order])
