"""Slots: the fixed places of records, grouped by privacy unit.

The slot map is public under zero-out and replace-one adjacency: which record blanks its slot is not in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.problem.unit_ids import canonical_id, refuse_mixture

NO_ROW = -1
"""The row of a slot that no unit owns: absent in every round, as if it were blank."""


@dataclass(frozen=True)
class SlotMap:
    """Which row of the file sits in each slot, and to which unit each slot belongs.

    ``rows``: int64 (n_slots,), row of the file; NO_ROW for a slot that is nobody's.
    ``unit``: int64 (n_slots,), 0-based, non-decreasing: units by first
    appearance, then the records of a unit in file order, so that the slots of one unit are contiguous.
    """

    rows: NDArray[np.int64]
    unit: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.rows.shape != self.unit.shape or self.rows.ndim != 1:
            raise ValueError(f"slot map: rows {self.rows.shape} and unit {self.unit.shape} must be equal vectors")
        steps = np.diff(self.unit, prepend=np.int64(-1))
        if not np.all((steps == 0) | (steps == 1)):
            raise ValueError("slot map: units must be numbered 0, 1, 2, ... with the slots of a unit contiguous")

    @property
    def slots(self) -> int:
        """Number of slots."""
        return len(self.rows)

    @property
    def units(self) -> int:
        """Number of privacy units."""
        return int(self.unit[-1]) + 1 if len(self.unit) else 0

    def bounds(self) -> NDArray[np.int64]:
        """int64 (units + 1,): unit u owns the slots bounds[u] .. bounds[u + 1] - 1."""
        return np.searchsorted(self.unit, np.arange(self.units + 1)).astype(np.int64)

    def only(self, keep: NDArray[np.bool_]) -> SlotMap:
        """The slots of the units that ``keep``, bool (units,), marks; the units are numbered anew, in their order."""
        slots = keep[self.unit]
        numbers = np.cumsum(keep) - 1
        return SlotMap(self.rows[slots], numbers[self.unit[slots]].astype(np.int64))

    def pieces(self, micro_batch: int) -> list[tuple[int, int]]:
        """Half-open slot ranges, in order, that cover every slot once and never cut a unit.

        Whole units are packed greedily into at most ``micro_batch`` slots; a unit with more records than that
        is a piece of its own. A function of the slot map alone: ranks and engines don't enter.
        """
        if micro_batch < 1:
            raise ValueError(f"micro_batch {micro_batch}: expected 1 or more")
        bounds = self.bounds()
        found: list[tuple[int, int]] = []
        at = 0
        while at < self.units:
            first = int(bounds[at])
            after = int(np.searchsorted(bounds, first + micro_batch, side="right")) - 1
            after = max(after, at + 1)
            found.append((first, int(bounds[after])))
            at = after
        return found


BASIS_BYTES = 32


@dataclass(frozen=True)
class Partition:
    """The part of each unit of a source, and what it rests on.

    ``part``: int64 (units,). ``basis``: a digest of everything outside the plan that a unit's part depends on besides
    the unit itself, BASIS_BYTES long; private, empty when there is nothing of the kind. Parts of two rounds go together only where the
    bases are equal.
    """

    part: NDArray[np.int64]
    basis: bytes


def partition_by_slot(slots: SlotMap, parts: int, identifiers: Sequence[Any] | None, fingerprint: str) -> Partition:
    """Unit u, by the order of the slots, is in part u mod ``parts``: parts of equal size.

    ``identifiers``: the unit id of every row of ``slots.rows``. Who is unit u then rests on all ids; without ids on the
    file, for which ``fingerprint``, a digest of its bytes, stands.
    """
    names = [] if identifiers is None else [id_bytes(name) for name in identifiers]
    basis = hashlib.sha256(fingerprint.encode() if identifiers is None else b"")
    for content in [slots.rows.tobytes() if identifiers is None else b"", slots.unit.tobytes(), *names]:
        basis.update(len(content).to_bytes(8, "big") + content)
    return Partition(np.arange(slots.units, dtype=np.int64) % parts, basis.digest())


def partition_by_id(slots: SlotMap, parts: int, identifiers: Sequence[Any], key: bytes) -> Partition:
    """A unit's part is a public keyed hash (BLAKE2b) of its id: no unit that comes or goes moves another.

    ``identifiers``: the unit id of every row of ``slots.rows``. key: at most 64 bytes, public.
    """
    firsts = [id_bytes(identifiers[at]) for at in slots.bounds()[:-1]]
    hashes = [int.from_bytes(hashlib.blake2b(name, key=key, digest_size=16).digest(), "big") for name in firsts]
    return Partition(np.array([value % parts for value in hashes], dtype=np.int64), b"")


def id_bytes(identifier: Any) -> bytes:
    """The text of an id, see ``canonical_id``: the same from a table and from an array; empty for a missing one."""
    return (canonical_id(identifier) or "").encode()


def slot_map(rows: NDArray[np.int64], identifiers: Iterable[Any] | None, where: str = "unit ids") -> SlotMap:
    """Slots of the chosen file ``rows`` (ascending); ``identifiers`` holds one unit id a row, None: a unit a row.

    Ids are compared after ``canonical_id``. A row whose id is None then belongs to nobody: its slot, a unit of its own, holds
    NO_ROW. It keeps its place, so that the units around it keep theirs. ``where``: file and column, for messages. Raises
    FileContentError for ids that can't be compared, see ``refuse_mixture``.
    """
    rows = np.asarray(rows, dtype=np.int64)
    if identifiers is None:
        return SlotMap(rows, np.arange(len(rows), dtype=np.int64))
    seen: dict[Any, int] = {}
    nobody = object
    texts = [canonical_id(name, where) for name in identifiers]
    refuse_mixture({text for text in texts if text is not None}, where)
    names = [nobody() if text is None else text for text in texts]
    codes = np.array([seen.setdefault(name, len(seen)) for name in names], dtype=np.int64)
    order = np.argsort(codes, kind="stable")
    owned = np.array([type(name) is not nobody for name in names], dtype=np.bool_)
    return SlotMap(np.where(owned, rows, NO_ROW)[order], codes[order])
