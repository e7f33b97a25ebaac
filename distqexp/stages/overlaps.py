"""Refuses records in two roles: public or evaluation records that are private too, and records that stand in two shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from distqexp.arrays import IntegerArray
from distqexp.config import AllDataConfig, DataConfig
from distqexp.errors import UsageError
from distqexp.problem.copies import Likeness, likeness
from distqexp.problem.selection import select_rows
from distqexp.problem.sources import Readers
from distqexp.problem.unit_ids import canonical_id, refuse_mixture


def refuse_overlaps(data: AllDataConfig, readers: Readers | None = None) -> None:
    """Refuse public records, or public evaluation records, that are private records too or belong to a private unit.

    Only sources of one file, by whatever name or copy (see ``likeness``), can be compared; filters and unit columns are
    read, features are not. Sources whose files are elsewhere are left out. ``readers`` are those of the process. Raises
    UsageError; the message names only config keys and files.
    """
    readers = readers or Readers()
    others = [("data.public", data.public)]
    others += [] if data.eval_private else [("data.eval", data.eval)]
    for where, other in others:
        for private in data.private if other is not None else ():
            if other is not None and _meet(other, private, readers):
                remedy = ", or set data.eval_private = true" if where == "data.eval" else ""
                raise UsageError(
                    f"{where}: records of {_place(other)} that are data.private's{_shard(private)} too, or of one of its units; "
                    f"expected others: give disjoint rows or filters of one file, or another file{remedy}"
                )


def refuse_common_units(shards: Sequence[DataConfig], presence: int, readers: Readers | None = None) -> None:
    """Refuse unit ids, or records of one file, that stand in more than ``presence`` shards; filters and unit columns are read.

    ``readers`` are those of the process. Raises UsageError, or FileContentError where unit ids can't be compared.
    """
    readers = readers or Readers()
    if len(shards) == 1:
        return
    present: Counter[str] = Counter()
    for data in shards:
        if data.unit is not None:
            reader = readers.of(data, private=True)
            names = reader.identifiers(data.unit, select_rows(data, reader, keep_blank=True))
            present.update({text for text in (canonical_id(name) for name in names) if text is not None})
    refuse_presence(present, presence)
    refuse_common_rows(shards, presence, readers)


def refuse_presence(present: Counter[str], presence: int) -> None:
    """Refuse canonical unit ids that stand in more than ``presence`` shards; ``present`` says in how many each one stands.

    Raises UsageError, or FileContentError where the ids can't be compared.
    """
    refuse_mixture(present, "data.private.unit")
    if max(present.values(), default=0) > presence:
        raise UsageError(
            f"data.private.unit: a unit id stands in more shards than privacy.presence = {presence}; expected each in so many at most: "
            "raise privacy.presence and plan again, or give different units different ids"
        )


def refuse_common_rows(shards: Sequence[DataConfig], presence: int, readers: Readers | None = None) -> None:
    """Refuse records of one file that stand in more than ``presence`` shards. Raises UsageError.

    ``readers`` are those of the process.
    """
    readers = readers or Readers()
    rest = list(shards)
    while rest:
        first = rest[0]
        alike = {i: likeness(first, other) for i, other in enumerate(rest) if i}
        same = [first, *(rest[i] for i, degree in alike.items() if degree is not Likeness.OTHERS)]
        rest = [other for other in rest if all(other is not one for one in same)]
        if len(same) <= presence:
            continue
        if Likeness.SAME_LINES not in alike.values():
            _, times = np.unique(np.concatenate([_rows(one, readers) for one in same]), return_counts=True)
        if Likeness.SAME_LINES in alike.values() or times.max(initial=0) > presence:
            raise UsageError(
                f"data.private: records of {_place(first)} stand in several of the shards {', '.join(one.shard or 'all' for one in same)}; "
                f"expected each in {presence} at most (privacy.presence): give disjoint rows or filters of one file"
            )


def _meet(other: DataConfig, private: DataConfig, readers: Readers) -> bool:
    """Return whether a record of ``other`` is a private record too, or of a unit that has one."""
    alike = likeness(other, private)
    if alike is not Likeness.SAME_ROWS:
        return alike is Likeness.SAME_LINES
    other_rows, private_rows = _rows(other, readers), _rows(private, readers)
    if np.isin(other_rows, private_rows).any():
        return True
    if private.unit is None:
        return False
    reader = readers.of(private, private=True)
    units = [
        {canonical_id(name) for name in reader.identifiers(private.unit, rows)} for rows in (other_rows, private_rows)
    ]
    return bool((units[0] & units[1]) - {None})


def _rows(data: DataConfig, readers: Readers) -> IntegerArray:
    """The selected rows, with the blank ones: which rows are blank is private."""
    return select_rows(data, readers.of(data, private=True), keep_blank=True)


def _place(data: DataConfig) -> str:
    return data.path or data.format


def _shard(data: DataConfig) -> str:
    return f" (shard {data.shard})" if data.shard else ""
