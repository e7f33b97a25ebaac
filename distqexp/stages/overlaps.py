"""Records in two roles: public ones, or records to evaluate on, that are private ones of the same file; one file as two shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distqexp.config import AllDataConfig, DataConfig
from distqexp.errors import UsageError
from distqexp.problem.copies import Likeness, likeness
from distqexp.problem.selection import select_rows
from distqexp.problem.sources import Readers
from distqexp.problem.unit_ids import canonical_id, refuse_mixture


def refuse_overlaps(data: AllDataConfig, readers: Readers | None = None) -> None:
    """Refuse public records, or ones to evaluate on that aren't private, which are private records or of a private unit.

    Only sources of one file, by whatever name or copy (see ``likeness``), can be compared; filters and unit columns are
    read, no features. Sources whose files are elsewhere are left out. readers: of the process. Raises UsageError; the
    message names config keys and files alone.
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
    """Refuse unit ids, and records of one file, in more shards than are declared; reads filters and unit columns.

    readers: of the process.
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
    """Refuse canonical unit ids that stand in more shards than ``presence``; ``present``: in how many each one does.

    Raises FileContentError where they can't be compared, UsageError.
    """
    refuse_mixture(present, "data.private.unit")
    if max(present.values(), default=0) > presence:
        raise UsageError(
            f"data.private.unit: a unit id stands in more shards than privacy.presence = {presence}; expected each in so many at most: "
            "raise privacy.presence and plan again, or give different units different ids"
        )


def refuse_common_rows(shards: Sequence[DataConfig], presence: int, readers: Readers | None = None) -> None:
    """Refuse records of one file that stand in more shards than a unit is declared for. readers: of the process. Raises UsageError."""
    readers = readers or Readers()
    left = list(shards)
    while left:
        first = left[0]
        alike = {i: likeness(first, other) for i, other in enumerate(left) if i}
        same = [first, *(left[i] for i, found in alike.items() if found is not Likeness.OTHERS)]
        left = [other for other in left if all(other is not one for one in same)]
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
    """Whether a record of ``other`` is a private one, or of a unit that has a private one."""
    alike = likeness(other, private)
    if alike is not Likeness.SAME_ROWS:
        return alike is Likeness.SAME_LINES
    rows, own = _rows(other, readers), _rows(private, readers)
    if np.isin(rows, own).any():
        return True
    if private.unit is None:
        return False
    reader = readers.of(private, private=True)
    units = [{canonical_id(name) for name in reader.identifiers(private.unit, found)} for found in (rows, own)]
    return bool((units[0] & units[1]) - {None})


def _rows(data: DataConfig, readers: Readers) -> NDArray[np.int64]:
    """The selected rows, blank ones too: which are blank is private."""
    return select_rows(data, readers.of(data, private=True), keep_blank=True)


def _place(data: DataConfig) -> str:
    return data.path or data.format


def _shard(data: DataConfig) -> str:
    return f" (shard {data.shard})" if data.shard else ""
