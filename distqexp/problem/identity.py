"""Which files records come from, and whether these still are the ones that a run began with."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distqexp.arrays import IntegerArray
from distqexp.config import DataConfig
from distqexp.errors import FileContentError, RecordsChangedError
from distqexp.problem.filters import parse_filter
from distqexp.problem.readers import Reader
from distqexp.problem.readers.base import facts_of, label_file
from distqexp.problem.readers.folders import Folder, path_facts
from distqexp.problem.readers.patterns import matching_files
from distqexp.problem.selection import open_blank, select_rows

Digest = Callable[..., bytes]
"""A digest of some byte strings; for private records it is a keyed one, see Ledger.keyed_digest."""

_CHUNK = 1 << 22


@dataclass(frozen=True)
class FileFacts:
    """What the file system says of the files of a source, see ``facts_of``. Private, local.

    Attributes:
        host: the machine that said so. Inodes, devices and times of copies on another machine mean nothing; sizes do.
        files: the facts of each file, in the order of ``source_files``.
    """

    host: str
    files: tuple[tuple[int, int, int, int, int], ...]

    def agree(self, other: FileFacts) -> bool:
        """Return whether both can be about the same files."""
        if self.host == other.host:
            return self.files == other.files
        return [file[0] for file in self.files] == [file[0] for file in other.files]


def source_files(data: DataConfig) -> list[Path]:
    """Return the files behind a source: records, labels, blanks. The embedded digits have none.

    A pattern stands for the files that it names now, or for itself where it names none.
    """
    others = [label_file(data), data.blank]
    return [*record_files(data), *(Path(path) for path in others if path is not None)]


def record_files(data: DataConfig) -> list[Path]:
    """Return the files of a source's records, as ``source_files`` does, without labels and blanks."""
    if data.format == "digits" or data.path is None:
        return []
    return matching_files(data.path) or [Path(data.path)]


def file_facts(data: DataConfig) -> FileFacts:
    """Return the facts of the files as they are now. Raises RecordsChangedError for a file that is gone."""
    files = []
    for path in source_files(data):
        try:
            files.append(path_facts(path))
        except OSError:
            raise another_file(data) from None
    return FileFacts(socket.gethostname(), tuple(files))


def require_opened(
    data: DataConfig, facts: FileFacts, opened_facts: tuple[tuple[int, int, int, int, int], ...]
) -> None:
    """Raise RecordsChangedError unless this process has the right files open.

    Args:
        data: the source.
        facts: the facts of the right files.
        opened_facts: the facts of the files that are open.
    """
    if not facts.agree(FileFacts(socket.gethostname(), opened_facts)):
        raise another_file(data)


def fingerprint(data: DataConfig, facts: FileFacts, open_reader: Callable[[], Reader], digest: Digest) -> str:
    """Return a digest of the facts, and of the selected rows with their unit ids, filter columns and blanks. Private, local.

    Args:
        data: the source.
        facts: the facts of its files.
        open_reader: opens a reader of the source, where columns or blanks must be read.
        digest: how parts are digested.

    Raises:
        RecordsChangedError: other files are open than those of ``facts``.
    """
    lasting = tuple(file[:4] for file in facts.files)  # a device has another number after a restart
    parts = [data.format.encode(), repr(lasting).encode()]
    if data.unit is not None or data.where is not None or data.blank is not None:
        reader = open_reader()
        blank, blank_stats = open_blank(data, reader.count)
        require_opened(data, facts, (*reader.facts(), *map(facts_of, blank_stats)))
        rows = select_rows(data, reader, keep_blank=True)
        parts += [rows.tobytes(), blank[rows].tobytes(), *_columns(data, reader, rows)]
    return digest(*parts).hex()


def are_linked(one: DataConfig, other: DataConfig) -> bool:
    """Return whether two sources take their records from one file, by one name or several (links). Opens nothing.

    For images the file of the images counts. The answer is no where a file isn't here.
    """
    if "digits" in (one.format, other.format):
        return one.format == other.format
    return any(_linked(first, second) for first in record_files(one) for second in record_files(other))


def _linked(one: Path, other: Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def same_file(one: DataConfig, other: DataConfig) -> bool:
    """Return whether two sources are linked, or take their records from copies of equal bytes. Nothing is parsed."""
    if are_linked(one, other):
        return True
    if "digits" in (one.format, other.format) or one.path is None or other.path is None:
        return False
    first, second = Path(one.path), Path(other.path)
    try:
        sizes = [path_facts(path)[0] for path in (first, second)]
    except OSError:
        return False
    if sizes[0] != sizes[1] or [path.is_file() or path.is_dir() for path in (first, second)] != [True, True]:
        return False
    return file_digest(first) == file_digest(second)


def content_digest(data: DataConfig) -> str:
    """Return the SHA-256 of the bytes of the record files, blanks aside. Private.

    It stands for who is in which row, where no column says so.
    """
    whole = hashlib.sha256(data.format.encode())
    for path in source_files(DataConfig(format=data.format, path=data.path, labels=data.labels)):
        whole.update(file_digest(path))
    return whole.hexdigest()


def file_digest(path: Path) -> bytes:
    """Return the SHA-256 of a file, or of the names and bytes of a folder. Raises FileContentError when it can't be read."""
    digest = hashlib.sha256()
    try:
        if path.is_dir():
            for block in Folder(path).blocks():
                digest.update(block)
            return digest.digest()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        raise FileContentError(f"{path}: can't be read to its end; expected a whole file; restore it") from None
    return digest.digest()


def plain_digest(*parts: bytes) -> bytes:
    """Return the SHA-256 of the parts, each with its length: the Digest of public records."""
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()


def another_file(data: DataConfig) -> RecordsChangedError:
    """Return the error for records that are not those of the rounds before."""
    names = ", ".join(str(path) for path in source_files(data)) or data.format
    return RecordsChangedError(
        f"{names}: changed since the run read it first; expected the same file, with the same size, time, unit ids and filter "
        "columns, to the end: its sums are thrown away and not charged; restore the file and run again (fit: with --resume)"
    )


def _columns(data: DataConfig, reader: Reader, rows: IntegerArray) -> list[bytes]:
    """Return the unit ids and the filter columns at ``rows``."""
    contents: list[bytes] = []
    if data.unit is not None:
        contents += [repr(name).encode() for name in reader.identifiers(data.unit, rows)]
    for comparison in parse_filter(data.where) if data.where is not None else ():
        if isinstance(comparison.value, str):
            texts = reader.texts(comparison.column)
            contents += [repr(texts[row]).encode() for row in rows.tolist()]
        else:
            contents.append(reader.numbers(comparison.column)[rows].tobytes())
    return contents
