"""Which files records come from, and whether they still are the ones that a run began with."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distqexp.config import DataConfig
from distqexp.errors import FileContentError, RecordsChangedError
from distqexp.problem.filters import parse_filter
from distqexp.problem.readers import Reader
from distqexp.problem.readers.base import facts_of
from distqexp.problem.selection import open_blank, select_rows

Digest = Callable[..., bytes]
"""A digest of some byte strings; of private records a keyed one, see Ledger.keyed_digest."""

_CHUNK = 1 << 22


@dataclass(frozen=True)
class FileFacts:
    """What the file system says of the files of a source: see ``facts_of``.

    ``host``: where. Inodes, devices and times of another machine's copies say nothing; sizes do. Private, local.
    """

    host: str
    files: tuple[tuple[int, int, int, int, int], ...]

    def agree(self, other: FileFacts) -> bool:
        """Whether both can be of the same files."""
        if self.host == other.host:
            return self.files == other.files
        return [file[0] for file in self.files] == [file[0] for file in other.files]


def source_files(data: DataConfig) -> list[Path]:
    """The files behind a source: records, labels, blanks; none for the embedded digits."""
    records = [] if data.format == "digits" else [data.path, data.labels if data.format == "idx" else None]
    return [Path(path) for path in (*records, data.blank) if path is not None]


def file_facts(data: DataConfig) -> FileFacts:
    """The facts of now. Raises RecordsChangedError for a file that is gone."""
    files = []
    for path in source_files(data):
        try:
            files.append(facts_of(path.stat()))
        except OSError:
            raise another_file(data) from None
    return FileFacts(socket.gethostname(), tuple(files))


def require_opened(data: DataConfig, facts: FileFacts, opened: tuple[tuple[int, int, int, int, int], ...]) -> None:
    """Raise RecordsChangedError unless the files that this process has open, whose facts are ``opened``, are those of ``facts``."""
    if not facts.agree(FileFacts(socket.gethostname(), opened)):
        raise another_file(data)


def fingerprint(data: DataConfig, facts: FileFacts, open_reader: Callable[[], Reader], digest: Digest) -> str:
    """A digest of the facts, and of the selected rows with their unit ids, filter columns and blanks. Private, local."""
    parts = [
        data.format.encode(),
        repr(tuple(file[:4] for file in facts.files)).encode(),
    ]  # a device has another number after a restart
    if data.unit is not None or data.where is not None or data.blank is not None:
        reader = open_reader()
        blank, found = open_blank(data, reader.count)
        require_opened(data, facts, tuple(facts_of(stat) for stat in (*reader.opened(), *found)))
        rows = select_rows(data, reader, keep_blank=True)
        parts += [rows.tobytes(), blank[rows].tobytes(), *_columns(data, reader, rows)]
    return digest(*parts).hex()


def linked(one: DataConfig, other: DataConfig) -> bool:
    """Whether two sources have their records from one file, by one name or several (links). Opens nothing.

    Of images, the file of the images counts. False where a file isn't here.
    """
    if "digits" in (one.format, other.format):
        return one.format == other.format
    if one.path is None or other.path is None:
        return False
    if os.path.realpath(one.path) == os.path.realpath(other.path):
        return True
    try:
        return os.path.samefile(one.path, other.path)
    except OSError:
        return False


def same_file(one: DataConfig, other: DataConfig) -> bool:
    """As ``linked``, and whether the records are from copies of equal bytes. Compares bytes; parses nothing."""
    if linked(one, other):
        return True
    if "digits" in (one.format, other.format) or one.path is None or other.path is None:
        return False
    first, second = Path(one.path), Path(other.path)
    try:
        stats = [path.stat() for path in (first, second)]
    except OSError:
        return False
    if stats[0].st_size != stats[1].st_size or not all(path.is_file() for path in (first, second)):
        return False
    return file_digest(first) == file_digest(second)


def content_digest(data: DataConfig) -> str:
    """SHA-256 of the bytes of the record files, blanks aside: who stands in which row, where no column says so. Private."""
    whole = hashlib.sha256(data.format.encode())
    for path in source_files(DataConfig(format=data.format, path=data.path, labels=data.labels)):
        whole.update(file_digest(path))
    return whole.hexdigest()


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file. Raises FileContentError when it can't be read."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
    except OSError:
        raise FileContentError(f"{path}: can't be read to its end; expected a whole file; restore it") from None
    return found.digest()


def plain_digest(*parts: bytes) -> bytes:
    """SHA-256 of the parts, each with its length: for public records."""
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()


def another_file(data: DataConfig) -> RecordsChangedError:
    """The error for records that are not those of the rounds before."""
    names = ", ".join(str(path) for path in source_files(data)) or data.format
    return RecordsChangedError(
        f"{names}: changed since the run read it first; expected the same file, with the same size, time, unit ids and filter "
        "columns, to the end: its sums are thrown away and not charged; restore the file and run again (fit: with --resume)"
    )


def _columns(data: DataConfig, reader: Reader, rows: NDArray[np.int64]) -> list[bytes]:
    """Unit ids and filter columns at ``rows``."""
    found: list[bytes] = []
    if data.unit is not None:
        found += [repr(name).encode() for name in reader.identifiers(data.unit, rows)]
    for comparison in parse_filter(data.where) if data.where is not None else ():
        if isinstance(comparison.value, str):
            texts = reader.texts(comparison.column)
            found += [repr(texts[row]).encode() for row in rows.tolist()]
        else:
            found.append(reader.numbers(comparison.column)[rows].tobytes())
    return found
