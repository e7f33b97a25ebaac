"""Where the records of a CSV file begin and end: one pass over its bytes, in which no field is parsed."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

import numpy as np

from distqexp.arrays import BoolArray, IntegerArray
from distqexp.errors import FileContentError
from distqexp.problem.readers.bytes import BLOCK, ByteSource

_NEWLINE, _RETURN, _QUOTE = 10, 13, 34


@dataclass(frozen=True)
class LineIndex:
    """The places of a CSV file's records.

    Attributes:
        header: the byte range of the first record.
        starts: int64 (n,), where the others begin.
        ends: int64 (n,), the places behind their last bytes.
    """

    header: tuple[int, int]
    starts: IntegerArray
    ends: IntegerArray


def first_record(source: ByteSource, quotes: bool = True) -> tuple[int, int]:
    """Return where the first record that isn't blank begins, and its length: the header.

    Raises FileContentError for an empty file, or a header that is longer than a block.
    """
    head = source.read(0, BLOCK, short=True)
    pattern = rb'(?:[^\n"]|"[^"]*(?:"|$))+' if quotes else rb"[^\n]+"
    for match in re.finditer(pattern, head):
        if match[0].strip():
            if match.end() == BLOCK:
                raise FileContentError(
                    f"{source.path}: no end of a first line within {BLOCK >> 20} MiB; expected a header and one record a line"
                )
            return match.start(), len(match[0])
    raise FileContentError(f"{source.path}: empty; expected a CSV file with a header")


def index_lines(source: ByteSource, separator: bytes = b",", quotes: bool = True) -> LineIndex:
    """Index the records of a CSV file. Line ends and separators inside quotes don't count, and empty lines are skipped.

    Args:
        source: the bytes of the file.
        separator: the byte between two fields.
        quotes: whether quotation marks enclose fields; else they are text.

    Raises:
        FileContentError: an empty file, quotes that leave the borders of records in doubt, or a record with another number of fields
            than the header.
    """
    start_parts: list[IntegerArray] = []
    end_parts: list[IntegerArray] = []
    folded: list[tuple[int, int]] = []  # records with a line end inside
    at, comma_count, newline_count, inside, last = 0, 0, 0, 0, 0
    start, commas_before, newlines_before, width, uneven = 0, 0, 0, 0, False

    def keep(ends: IntegerArray, commas: IntegerArray, newlines: IntegerArray, returns: BoolArray) -> None:
        """Keep the records that end at ``ends``, unless empty, with the separators, line ends and carriage returns up to there."""
        nonlocal start, commas_before, newlines_before, width, uneven
        if len(ends) == 0:
            return
        starts = np.concatenate([[start], ends[:-1] + 1]).astype(np.int64)
        fields = np.diff(commas, prepend=commas_before) + 1
        nonempty = ends - starts - returns > 0
        if nonempty.any():
            width = width or int(fields[nonempty][0])
            uneven = uneven or bool((fields[nonempty] != width).any())
            start_parts.append(starts[nonempty])
            end_parts.append(ends[nonempty])
        for place in np.flatnonzero(np.diff(newlines, prepend=newlines_before) > 0).tolist():
            folded.append((int(starts[place]), int(ends[place])))
        start, commas_before, newlines_before = int(ends[-1]) + 1, int(commas[-1]), int(newlines[-1])

    for block in source.blocks():
        values = np.frombuffer(block, dtype=np.uint8)
        parity = (np.cumsum((values == _QUOTE) & quotes) + inside) & 1
        free = parity == 0
        comma_counts = np.cumsum((values == separator[0]) & free) + comma_count
        newline_counts = np.cumsum((values == _NEWLINE) & ~free) + newline_count
        line_ends = np.flatnonzero((values == _NEWLINE) & free)
        before = np.where(line_ends > 0, values[line_ends - 1], np.uint8(last)) if len(line_ends) else values[:0]
        keep(line_ends + at, comma_counts[line_ends], newline_counts[line_ends], before == _RETURN)
        at, comma_count, inside, last = at + len(block), int(comma_counts[-1]), int(parity[-1]), int(values[-1])
        newline_count = int(newline_counts[-1])
    if inside:
        raise _quotes_in_doubt(source, "is never closed")
    keep(np.array([at]), np.array([comma_count]), np.array([newline_count]), np.array([last == _RETURN]))
    starts, ends = (np.concatenate(parts) if parts else np.zeros(0, np.int64) for parts in (start_parts, end_parts))
    if len(starts) == 0:
        raise FileContentError(f"{source.path}: empty; expected a CSV file with a header")
    if not all(_encloses_lines(source.read(first, after - first), separator) for first, after in folded):
        raise _quotes_in_doubt(source, "takes the end of a line with it")
    if uneven:
        raise FileContentError(
            f"{source.path}: a record has not as many fields as the header, which has {width}, separated by {separator.decode()!r}; "
            "expected equally many in every record: quote fields with a separator in them, say data.*.separator, or fetch the file again "
            "if its end is missing"
        )
    return LineIndex((int(starts[0]), int(ends[0])), starts[1:], ends[1:])


def _encloses_lines(record: bytes, separator: bytes) -> bool:
    """Return whether every pair of quotation marks around a line end is around a whole field.

    A lone mark in a field (an inch) would else join its record with the next one, in silence.
    """
    pairs = re.finditer(rb'"[^"]*"', record)
    after = (b"", separator, b'"', b"\r")

    def opens(at: int) -> bool:
        return record[:at] in (b"", codecs.BOM_UTF8) or record[at - 1 : at] in (separator, b'"')

    return all(
        b"\n" not in pair[0] or (opens(pair.start()) and record[pair.end() : pair.end() + 1] in after) for pair in pairs
    )


def _quotes_in_doubt(source: ByteSource, what: str) -> FileContentError:
    return FileContentError(
        f"{source.path}: a quotation mark inside a field, as of inches, {what}; expected marks around whole fields, doubled within: "
        "write the file anew, or say data.*.quotes = false where they are plain text"
    )
