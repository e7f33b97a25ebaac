"""Digests of what passes while records are spooled: of each record's features, and of unit ids. As private as the records.

They tell whether two sources have records or units in common, whatever their order, their type or the rest of their columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.errors import UsageError
from distqexp.problem.unit_ids import canonical_id

Digests = NDArray[np.uint64]


@dataclass(frozen=True)
class Marks:
    """Of one source.

    Attributes:
        rows: A digest of each record's features.
        ids: The digests of the unit ids.
        nameless: The number of records without an id.
    """

    rows: Digests
    ids: Digests
    nameless: int

    @property
    def units(self) -> int:
        """The number of units as the stages count them: a record without an id takes the place of one. Private under add-remove."""
        return len(self.ids) + self.nameless

    def write(self, path: Path) -> None:
        """Write them to a new file of mode 0600."""
        path.touch(mode=0o600, exist_ok=False)
        with path.open("wb") as file:
            np.savez(file, rows=self.rows, ids=self.ids, nameless=self.nameless)

    @staticmethod
    def read(path: Path) -> Marks:
        """Read what ``write`` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return Marks(file["rows"], file["ids"], int(file["nameless"]))


NO_MARKS = Marks(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint64), 0)


class Marking:
    """Collects the marks of a source, some records at a time."""

    def __init__(self) -> None:
        self._rows: list[Digests] = []
        self._ids: set[bytes] = set()
        self._nameless = 0

    def add(self, features: NDArray[Any], ids: Iterable[str | None] | None) -> None:
        """Note records: features (n, ...), real numbers or what ``table_numbers`` gives, and canonical ids, (n,); None for none at all."""
        self._rows.append(_row_digests(features))
        if ids is None:
            self._nameless += len(features)
            return
        for name in ids:
            if name is None:
                self._nameless += 1
            else:
                self._ids.add(_digest(name.encode()))

    def marks(self) -> Marks:
        """Return the marks of all records so far."""
        ids = np.frombuffer(b"".join(sorted(self._ids)), dtype=np.uint64)
        return Marks(np.concatenate([*self._rows, np.zeros(0, dtype=np.uint64)]), ids, self._nameless)


def canonical_ids(ids: NDArray[Any], where: str) -> list[str | None]:
    """Return unit ids as the stages compare them, see ``unit_ids``; None for missing ones.

    Raises UsageError for what no id is made of, FileContentError for whole numbers that may have been rounded. No id is named.
    """
    if ids.ndim != 1:
        raise UsageError(f"{where}: unit ids of shape (n, ...); expected (n,), one id a record")
    if ids.dtype.kind not in "iufbOUSMT":
        raise UsageError(f"{where}: unit ids of type {ids.dtype}; expected numbers or texts")
    if ids.dtype.kind == "M":
        ids = np.where(np.isnat(ids), "", ids.astype(str))
    # Numbers keep their type: a whole number in a float32 column may be a rounded one.
    values = ids if ids.dtype.kind == "f" else ids.tolist()
    known: dict[Any, str | None] = {}
    names = []
    for value in values:
        if not isinstance(value, str | int | np.integer):
            names.append(canonical_id(_or_none(value), f"{where}: unit ids"))
            continue
        if (type(value), value) not in known:
            known[type(value), value] = canonical_id(value, f"{where}: unit ids")
        names.append(known[type(value), value])
    return names


def table_numbers(frame: Any) -> NDArray[np.uint64]:
    """Return the columns of a DataFrame, by their names' order, as numbers (n, columns) that are equal where entries are."""
    columns = [_column_numbers(frame[name]) for name in sorted(frame.columns)]
    return np.stack(columns, axis=1) if columns else np.zeros((len(frame), 0), dtype=np.uint64)


def _column_numbers(column: Any) -> NDArray[np.uint64]:
    kind = column.dtype.kind
    if kind in "biuf":
        return _bits(column.to_numpy(dtype=np.float64, na_value=np.nan)).astype(np.uint64)
    if kind == "M":
        texts: Iterable[Any] = column.astype(str)
    else:
        texts = (
            str(_bits(np.array([entry], dtype=np.float64))[0]) if isinstance(entry, float) else str(entry)
            for entry in column.tolist()
        )
    return np.frombuffer(b"".join(_digest(text.encode("utf-8", "surrogatepass")) for text in texts), dtype=np.uint64)


def _or_none(value: Any) -> Any:
    try:
        return None if value is None or bool(value != value) else value
    except TypeError:  # pandas.NA is neither equal to itself nor not
        return None
    except ValueError:
        return str(value)


def _bits(values: NDArray[Any]) -> NDArray[np.uint32]:
    """Return real numbers as bits that are equal where their float32 is; all missing ones are one, and so are both zeros."""
    with np.errstate(all="ignore"):
        single = values.astype(np.float32) + np.float32(0.0)
    single[np.isnan(single)] = np.nan
    return np.ascontiguousarray(single).view(np.uint32)


def _row_digests(features: NDArray[Any]) -> Digests:
    flat = features.reshape(len(features), int(np.prod(features.shape[1:])))
    bits = np.ascontiguousarray(flat) if flat.dtype == np.uint64 else _bits(flat)
    return np.frombuffer(b"".join(_digest(row.tobytes()) for row in bits), dtype=np.uint64)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()
