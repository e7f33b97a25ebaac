"""Public or evaluation records that are private ones too: refused by the object, by unit ids, and by what records hold.

Some rows of two sources may be equal by chance: tables of a few categories, blank images. So it is asked whether more values stand in
both sources than chance would put there, if the rows of both were shuffled and dealt out anew. Under that, for each value of c rows
(c >= 2) in both sources together, one row in each is a matter of chance alone, and the chance of as many such values as there are is
bounded (Chernoff; N + 1 for the fixed number of rows on each side). Below ``_FALSE_ALARM``, the two have records in common.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distqexp.arrays import FloatArray
from distqexp.errors import UsageError
from distqexp.live.marks import Digests, Marks

_FALSE_ALARM = 1e-9
_SHARE = 0.01
"""Below this share of the public values nothing is refused: two corpora without duplicates may have a few short texts in common."""


def refuse_same_objects(private: Any, others: Mapping[str, Any]) -> None:
    """Raise UsageError where records were passed in two roles, by one object."""
    own = {id(part) for part in _parts(private)}
    for where, other in others.items():
        if any(id(part) in own for part in _parts(other)):
            raise UsageError(f"{where}: the same object as private; expected other records{_way_out(where)}")


def refuse_common_records(private: Sequence[Marks], others: Mapping[str, Marks]) -> None:
    """Refuse public or public evaluation records that are private too, or of a private unit.

    Where all records on both sides have ids, these decide. Otherwise features do.

    Args:
        private: The marks of all private records, one a rank.
        others: The marks of the others, by argument.

    Raises:
        UsageError: With the argument alone: neither which records nor how many.
    """
    rows, ids = (np.concatenate([getattr(marks, name) for marks in private]) for name in ("rows", "ids"))
    identified = all(marks.nameless == 0 for marks in private)
    for where, marks in others.items():
        if np.isin(marks.ids, ids).any():
            raise UsageError(
                f"{where}: has unit ids that private has too; expected those of other people: leave theirs out, or where sites number "
                f"people alike, write ids in another way, such as 'b-17'{_way_out(where)}"
            )
        if not (identified and marks.nameless == 0) and _beyond_chance(rows, marks.rows):
            raise UsageError(
                f"{where}: has records in common with private, more than chance allows; expected others: leave those out, or give the unit "
                f"ids of both, which decide{_way_out(where)}"
            )


def _way_out(where: str) -> str:
    return "; or evaluation_private=True" if where == "evaluation" else ""


def _parts(records: Any) -> list[Any]:
    """Return the objects that hold the records: what was passed, the dataset of a loader, the features of a pair or a mapping."""
    if records is None:
        return []
    inner = [getattr(records, "dataset", None)]
    if isinstance(records, tuple | list):
        inner = list(records[:1])
    elif isinstance(records, Mapping):
        inner = [value for name, value in records.items() if name not in ("attention_mask", "labels", "target", "y")]
    held = [part for part in inner if part is not None and not isinstance(part, str | int | float | bool)]
    return [records, *held]


def _beyond_chance(private: Digests, public: Digests) -> bool:
    """Whether more values are in both than rows that were dealt out by chance would show, with a false alarm of at most _FALSE_ALARM."""
    if len(private) == 0 or len(public) == 0:
        return False
    values, counts = np.unique(np.concatenate([private, public]), return_counts=True)
    in_both = np.isin(values, private, assume_unique=False) & np.isin(values, public)
    found = int(in_both.sum())
    if found < max(1.0, _SHARE * len(np.unique(public))):
        return False
    total, share = len(private) + len(public), len(private) / (len(private) + len(public))
    sizes, numbers = np.unique(counts[counts >= 2], return_counts=True)
    chances = 1 - share**sizes - (1 - share) ** sizes
    return _log_tail(found, chances, numbers) + math.log(total + 1) < math.log(_FALSE_ALARM)


def _log_tail(found: int, chances: FloatArray, numbers: Any) -> float:
    """Return a bound of the log of the probability that at least ``found`` of independent events happen, ``numbers`` of each chance."""
    tilts = np.concatenate([[0.0], np.geomspace(1e-3, 60.0, 400)])
    moments = np.log1p(chances[None, :] * np.expm1(tilts)[:, None]) @ numbers
    return float((moments - tilts * found).min())
