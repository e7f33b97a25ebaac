"""Whether two sources take their records from one file or from copies of it, and whether their rows have the same numbers.

Unlike ``identity.are_linked``, which is all that a rehearsal may compare by, this reads the files. No field is parsed.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from enum import Enum
from functools import lru_cache
from pathlib import Path

from distqexp.config import DataConfig
from distqexp.problem.contents import MOST_LINES_BYTES, line_hash
from distqexp.problem.identity import are_linked, record_files, same_file
from distqexp.problem.readers import open_reader
from distqexp.problem.readers.base import facts_of
from distqexp.problem.readers.patterns import is_pattern
from distqexp.problem.readers.text_bytes import table_source


class Likeness(Enum):
    """How the records of two sources correspond."""

    OTHERS = "others"
    """Nothing shows that they are the same records."""
    SAME_ROWS = "same rows"
    """A row of the one is the row of the same number of the other."""
    SAME_LINES = "same lines"
    """The rows are the same in another order: which is which isn't known."""


def likeness(one: DataConfig, other: DataConfig) -> Likeness:
    """Tell how two sources correspond: by links, by equal bytes, packed or not, and by a table's lines, blank ones aside.

    For images the file of the images counts. Arrays of one HDF5 file that both sources name, and that differ in length, are not the
    same records. The answer is OTHERS where a file isn't here. Raises FileContentError for a damaged file.
    """
    if is_pattern(one.path) or is_pattern(other.path):
        return _likeness_of_several(one, other)
    packable = one.format == other.format and one.format in ("csv", "idx")
    if not packable or are_linked(one, other):
        return Likeness.OTHERS if not same_file(one, other) or _other_arrays(one, other) else Likeness.SAME_ROWS
    paths = [Path(data.path or "") for data in (one, other)]
    if not all(path.is_file() for path in paths):
        return Likeness.OTHERS
    (whole, ordered, lines), others = (
        _digests(path, facts_of(path.stat()), table=one.format == "csv") for path in paths
    )
    if whole == others[0] or (ordered is not None and ordered == others[1]):
        return Likeness.SAME_ROWS
    return Likeness.SAME_LINES if lines is not None and lines == others[2] else Likeness.OTHERS


def _likeness_of_several(one: DataConfig, other: DataConfig) -> Likeness:
    """Tell how two sources correspond of which one at least has several files."""
    ones, others = ([replace(data, path=str(path)) for path in record_files(data)] for data in (one, other))
    if len(ones) == len(others) and all(
        likeness(first, second) is Likeness.SAME_ROWS for first, second in zip(ones, others, strict=True)
    ):
        return Likeness.SAME_ROWS
    alike = any(likeness(first, second) is not Likeness.OTHERS for first in ones for second in others)
    return Likeness.SAME_LINES if alike else Likeness.OTHERS


def _other_arrays(one: DataConfig, other: DataConfig) -> bool:
    """Whether both name features of one HDF5 file that differ in length: other arrays, with other targets and ids."""
    if not (one.format == other.format == "hdf5" and one.columns.features and other.columns.features):
        return False
    return open_reader(one, private=True).count != open_reader(other, private=True).count


@lru_cache(maxsize=256)
def _digests(path: Path, facts: tuple[int, ...], table: bool) -> tuple[bytes, bytes | None, int | None]:
    """Return a digest of the unpacked bytes; for a table also one of its lines in order, and their sum, which has no order.

    Blank lines don't count. A file is read once, as long as its facts stay the same.
    """
    whole, ordered, total, rest, size = hashlib.sha256(), hashlib.sha256(), 0, b"", 0
    for block in table_source(path, table).blocks():
        whole.update(block)
        size += len(block)
        table = table and size <= MOST_LINES_BYTES
        if table:
            *complete, rest = (rest + block).split(b"\n")
            for line in complete:
                total += _add(line, ordered)
    if not table:
        return whole.digest(), None, None
    total += _add(rest, ordered)
    return whole.digest(), ordered.digest(), total


def _add(line: bytes, ordered: hashlib._Hash) -> int:
    """Add a line to the digest of the lines in order, and return its number."""
    number = line_hash(line)
    if number:
        ordered.update(number.to_bytes(32, "big"))
    return number
