"""What every reader offers, and the checks they share."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.config import DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.readers.codings import Coding
from distqexp.problem.readers.dialect import Dialect
from distqexp.problem.readers.entries import is_missing
from distqexp.storage.confined.parent import check_confined
from distqexp.storage.content import Request

LABEL = "label"
"""The column that filters of images may name."""
PIXELS = "pixels"
"""The one name of the features of images, whatever file they come from."""

_FEATURE_WORD = re.compile(r"(?i)(?<![^\W_])(x|images?|features?|inputs?)(?![^\W_])")
_LABEL_WORDS = ("y", "Y", "label", "labels", "target", "targets")


class Reader(ABC):
    """One open source of records. Everything it returns from private files is private.

    Attributes:
        count: the number of rows in the file.
        shape: the shape of one record's raw features.
        names: the feature columns of a table, or the one name of an array.
        scale: the factor on raw features (pixels).
        image: whether records are images, which aren't standardised.
        target_shape: the shape of one record's target.
        class_names: what the classes are called, where labels are texts; a label's number is its place.
        tokenizer: the digest of the tokenizer that turns texts into tokens, if one does.
        private: whether the file plays a private role. In public files, entries that are no numbers and missing ids are refused with an
            error that helps. In private ones nothing of the kind is, since whoever sees an error learns of a record: such a number is
            UNREADABLE, any other such value None.
        dialect: how the fields of a CSV file are written.
        definition: how the features are made of a clinical database, if they are.
    """

    count: int
    shape: tuple[int, ...]
    names: tuple[str, ...]
    scale: float = 1.0
    image: bool = False
    target_shape: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    tokenizer: str | None = None
    private: bool = False
    dialect: Dialect | None = None
    definition: str | None = None

    @abstractmethod
    def read(self, rows: IntegerArray, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Read raw features (n, *shape), in the order of ``names``, and targets (n,) or (n, o) of these rows.

        They are numbers (uint8 or floating), NaN where missing; tokens are int64 (n, 2, L) with their mask.
        """

    def survey(self, rows: IntegerArray, record_shape: tuple[int, ...] | None, numbers: bool) -> None:
        """Learn from these public rows what single records may differ in: ``shape`` and ``class_names``.

        Args:
            rows: the rows of a public file.
            record_shape: the declared shape of a record, which goes first.
            numbers: whether labels are numbers, not classes.

        Raises:
            UsageError: the rows differ, and nothing is declared.
            FileContentError: a record can't be read.
        """
        return  # most files say it all by themselves

    def follow(self, shape: tuple[int, ...] | None, class_names: tuple[str, ...]) -> None:
        """Take over a plan's shape of a record and names of classes, where the file doesn't fix them by itself."""
        return

    def unreadable(self, rows: IntegerArray, names: Sequence[str]) -> BoolArray:
        """Return bool (n, len(names) + 1): which entries of ``names`` and of the target are no numbers.

        The result is only for people who may see the records.
        """
        return np.zeros((len(rows), len(names) + 1), dtype=np.bool_)

    def dirt(self) -> dict[str, int]:
        """Return how often each rule for faults of the source applied, in words; only for people who may see the records."""
        return {}

    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """Return the files behind the source."""

    def file_stats(self) -> tuple[os.stat_result, ...]:
        """Return the stat results of the open files, in the order of ``files``, whatever their paths name by now."""
        return ()

    def facts(self) -> tuple[tuple[int, int, int, int, int], ...]:
        """Return the facts (see ``facts_of``) of the open files, in the order of ``files``, whatever their paths name by now."""
        return tuple(facts_of(stat) for stat in self.file_stats())

    @abstractmethod
    def check_whole(self) -> None:
        """Raise FileContentError now for whatever could end a later ``read``.

        That is damage anywhere in the file, or a column of another type.
        """

    def coded(self, codings: Sequence[Coding]) -> Reader:
        """Return a reader of the same open file whose ``read`` gives the numbers of these codings.

        Filters and unit ids are as they were. Raises UsageError where there are codings and the format has none.
        """
        if codings:
            raise UsageError(
                f"data.*.columns: {', '.join(repr(coding.column) for coding in codings)}: coded columns need csv or parquet"
            )
        return self

    def identifiers(self, name: str, rows: IntegerArray) -> list[Any]:
        """Return the unit ids of these rows.

        A missing id is None in private files, and raises FileContentError in public ones.
        """
        raise UsageError(f"data.unit: found {name!r}, but this format has no id columns; use csv, parquet or hdf5")

    def numbers(self, name: str) -> FloatArray:
        """Return a column of numbers over all rows, for filters; NaN where missing."""
        raise UsageError(
            f"data.where: names {name!r}, but this format has no such column; images have label, others need csv, parquet or hdf5"
        )

    def texts(self, name: str) -> list[str | None]:
        """Return a column of texts over all rows, for filters; None where missing or not in UTF-8."""
        raise UsageError(
            f"data.where: compares {name!r} with a text, but this format has no texts; images have label, a number; others need "
            "csv, parquet or hdf5"
        )


def existing_file(path: str | None, key: str) -> Path:
    """Return the path if it is a readable file; else raise UsageError, which names the config key."""
    if path is None:
        raise UsageError(f"{key}: not given; expected the path of a file")
    file = Path(path)
    if not file.exists():
        raise UsageError(f"{key}: {path}: no such file; correct the path")
    if not file.is_file():
        raise UsageError(f"{key}: {path}: not a file; expected the path of a file")
    if not os.access(file, os.R_OK):
        raise UsageError(f"{key}: {path}: not readable; change its permissions")
    return file


def existing_folder(path: str | None, key: str) -> Path:
    """Return the path if it is a readable folder; else raise UsageError, which names the config key."""
    if path is None:
        raise UsageError(f"{key}: not given; expected the path of a folder")
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"{key}: {path}: {'not a folder' if folder.exists() else 'no such folder'}; correct the path")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UsageError(f"{key}: {path}: not readable; change its permissions")
    return folder


def label_file(data: DataConfig) -> str | None:
    """Return the path of the file of labels: of idx, of image folders that have one, and of npy.

    For npy it may be absent in the config, where just one file beside the features has their name with the word for features
    replaced by one for labels: x-train.npy and y-train.npy, images.npy and labels.npy. Raises UsageError where it can't be told.
    """
    if data.format in ("idx", "images"):
        return data.labels
    if data.format != "npy" or data.labels is not None or data.path is None:
        return data.labels if data.format == "npy" else None
    path = Path(data.path)
    words = list(_FEATURE_WORD.finditer(path.name.removesuffix(".npy")))
    names = [f"{path.name[: words[-1].start()]}{word}{path.name[words[-1].end() :]}" for word in _LABEL_WORDS if words]
    found = [name for name in names if path.with_name(name).is_file()]
    if len(found) != 1:
        raise UsageError(
            f"data.labels: not given, and {some(found)} beside {path.name} could be it; expected the .npy file of the labels"
        )
    return str(path.with_name(found[0]))


def feature_names(columns: Sequence[str], data: DataConfig, path: Path) -> tuple[str, ...]:
    """Return the feature columns of a table: the listed ones, or else all but target, unit and exclude.

    Raises FileContentError when a column with a role is not in the file, or a name stands twice.
    """
    roles = data.columns
    features = roles.features or ()
    role_columns = [name for name in (roles.target, data.unit, *features) if name is not None]
    absent = [name for name in role_columns if name not in columns]
    if absent:
        raise FileContentError(
            f"{path}: no column {some(absent)}; {_header_summary(columns)}; correct data.*.columns or the file"
        )
    duplicates = sorted({name for name in columns if list(columns).count(name) > 1})
    if duplicates:
        raise FileContentError(f"{path}: columns {some(duplicates)} stand twice; expected distinct names; rename them")
    if roles.features is not None:
        return tuple(roles.features)
    others = {roles.target, data.unit, *roles.exclude}
    return tuple(name for name in columns if name not in others)


def _header_summary(columns: Sequence[str]) -> str:
    """Name the columns, unless the names may be values.

    Where a header is missing or damaged, they may be those of the first record.
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
    """Return a short list of the first names for a message."""
    text = ", ".join(repr(name) for name in names[:most]) or "none"
    return text + (f" and {len(names) - most} more" if len(names) > most else "")


def facts_of(stat: os.stat_result) -> tuple[int, int, int, int, int]:
    """Return size, time, inode, time of the last change of any kind, and device of a file.

    They tell a file from others, and from what it was before.
    """
    return stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns, stat.st_dev


def changed_file_error(path: Path) -> FileContentError:
    """Return the error for a file that no longer is what it was when it was opened."""
    return FileContentError(f"{path}: damaged, or changed while it was read; expected it as it was opened; restore it")


_OWN: set[tuple[int, int, int, int]] = set()
"""Device, inode, size and time of the files that this process wrote itself, into folders that nobody else may open."""


def note_own_file(path: Path) -> None:
    """Note that this process has just written the file: as long as it stays as it is, no other process has to look at it first."""
    stat = path.stat()
    _OWN.add((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))


def check_first(path: Path, task: str, columns: tuple[str, ...] = ()) -> os.stat_result:
    """Have a process with limits look at a file before this one does, once as long as the file stays as it is.

    Args:
        path: the file.
        task: "structure" of HDF5, "texts" of Parquet, or "batches" of Arrow.
        columns: the columns that are looked at.

    Returns:
        The stat result of the file that was looked at.

    Raises:
        FileContentError: the file is refused, or the process died of it.
    """
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        if (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) in _OWN:
            return stat
        _check_once(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, task, columns)
    return stat


@lru_cache(maxsize=64)
def _check_once(path: Path, inode: int, size: int, modified: int, task: str, columns: tuple[str, ...]) -> None:
    with path.open("rb") as file:
        check_confined(file, Request(str(path), size, columns=columns), task)


def require_unchanged(path: Path, stat: os.stat_result) -> None:
    """Raise FileContentError unless the file at ``path`` is the one that ``stat`` describes."""
    now = path.stat()
    if (now.st_ino, now.st_size, now.st_mtime_ns) != (stat.st_ino, stat.st_size, stat.st_mtime_ns):
        raise changed_file_error(path)
