"""What every reader offers, and the checks they share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.config import DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.readers.entries import is_missing
from distqexp.storage.confined.parent import check_confined
from distqexp.storage.content import Request


class Reader(ABC):
    """One open source of records. Everything it returns from private files is private.

    ``count``: rows of the file. ``shape``: shape of one record's raw features. ``names``: names of the feature
    columns of a table, or the one name of an array. ``scale``: factor on raw features (pixels). ``image``:
    whether records are images, which aren't standardised. ``target_shape``: of one record's target.

    ``private``: entries of public files that are no numbers, and ids that are missing, are refused with an error that helps;
    of private ones none is, since whoever sees an error learns of a record: numbers are UNREADABLE then, other values None.
    """

    count: int
    shape: tuple[int, ...]
    names: tuple[str, ...]
    scale: float = 1.0
    image: bool = False
    target_shape: tuple[int, ...] = ()
    private: bool = False

    @abstractmethod
    def read(self, rows: NDArray[np.int64], names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Raw features (n, *shape) in the order of ``names`` and targets (n,) or (n, o) of these rows.

        Numbers (uint8 or floating), NaN for missing ones; of tokens, int64 (n, 2, L) with their mask.
        """

    def unreadable(self, rows: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.bool_]:
        """(n, len(names) + 1): which entries of ``names`` and of the target are no numbers. For whoever may see the records."""
        return np.zeros((len(rows), len(names) + 1), dtype=np.bool_)

    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files behind it."""

    def opened(self) -> tuple[os.stat_result, ...]:
        """What the system says of the files that are open, in the order of ``files``: whatever their paths name by now."""
        return ()

    @abstractmethod
    def check_whole(self) -> None:
        """Raise FileContentError now for whatever could end a later ``read``: damage anywhere in the file, a column of another type."""

    def identifiers(self, name: str, rows: NDArray[np.int64]) -> list[Any]:
        """Unit ids of these rows; FileContentError when one is missing, or None for it in private files."""
        raise UsageError(f"data.unit: found {name!r}, but this format has no id columns; use csv, parquet or hdf5")

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column of numbers over all rows, for filters; NaN where missing."""
        raise UsageError(f"data.where: names {name!r}, but this format has no columns; use csv, parquet or hdf5")

    def texts(self, name: str) -> list[str | None]:
        """A column of texts over all rows, for filters; None where missing or no UTF-8."""
        raise UsageError(f"data.where: names {name!r}, but this format has no columns; use csv, parquet or hdf5")


def existing_file(path: str | None, key: str) -> Path:
    """The path, if it is a readable file; else UsageError naming the config key."""
    if path is None:
        raise UsageError(f"{key}: not given; expected the path of a file")
    found = Path(path)
    if not found.exists():
        raise UsageError(f"{key}: {path}: no such file; correct the path")
    if not found.is_file():
        raise UsageError(f"{key}: {path}: not a file; expected the path of a file")
    if not os.access(found, os.R_OK):
        raise UsageError(f"{key}: {path}: not readable; change its permissions")
    return found


def feature_names(columns: Sequence[str], data: DataConfig, path: Path) -> tuple[str, ...]:
    """The feature columns of a table: the listed ones, else all but target, unit and exclude.

    FileContentError when a column with a role is not in the file, or a name stands twice.
    """
    roles = data.columns
    listed = roles.features or ()
    needed = [name for name in (roles.target, data.unit, *listed) if name is not None]
    absent = [name for name in needed if name not in columns]
    if absent:
        raise FileContentError(
            f"{path}: no column {some(absent)}; {_what_stands(columns)}; correct data.*.columns or the file"
        )
    twice = sorted({name for name in columns if list(columns).count(name) > 1})
    if twice:
        raise FileContentError(f"{path}: columns {some(twice)} stand twice; expected distinct names; rename them")
    if roles.features is not None:
        return tuple(roles.features)
    others = {roles.target, data.unit, *roles.exclude}
    return tuple(name for name in columns if name not in others)


def _what_stands(columns: Sequence[str]) -> str:
    """The names of the columns, unless they may be values: without a header, or with a damaged one, the first record's.

    Every record has a number or a blank in it: its label at least.
    """
    if all(_is_name(column) for column in columns):
        return f"the file has {some(columns)}"
    return f"its first line isn't the names of its {len(columns)} columns but has numbers, blanks or long texts in it: expected a header"


def _is_name(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return 0 < len(text) <= 100 and text.isprintable() and not is_missing(text)
    return False


def some(names: Sequence[str], most: int = 6) -> str:
    """A short list for a message."""
    shown = ", ".join(repr(name) for name in names[:most]) or "none"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def facts_of(found: os.stat_result) -> tuple[int, int, int, int, int]:
    """Size, time, inode, time of the last change of any kind, device: what tells a file from others, and from what it was."""
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns, found.st_dev


def changed(path: Path) -> FileContentError:
    """The error for a file that no longer is what it was when it was opened."""
    return FileContentError(f"{path}: damaged, or changed while it was read; expected it as it was opened; restore it")


def check_first(path: Path, task: str, columns: tuple[str, ...] = ()) -> os.stat_result:
    """Have a process with limits look at a file, once as long as it stays as it is: "structure" of HDF5, "texts" of Parquet.

    What ``path.stat()`` gave then. Raises FileContentError for a file that is refused, or that the process died of.
    """
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        _check_once(path, found.st_ino, found.st_size, found.st_mtime_ns, task, columns)
    return found


@lru_cache(maxsize=64)
def _check_once(path: Path, inode: int, size: int, modified: int, task: str, columns: tuple[str, ...]) -> None:
    with path.open("rb") as file:
        check_confined(file, Request(str(path), size, columns=columns), task)


def require_unchanged(path: Path, found: os.stat_result) -> None:
    """Raise FileContentError unless the file is the one that was found."""
    now = path.stat()
    if (now.st_ino, now.st_size, now.st_mtime_ns) != (found.st_ino, found.st_size, found.st_mtime_ns):
        raise changed(path)
