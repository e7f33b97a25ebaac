"""The bytes of a table of texts, brought to one form: no UTF-16, and records that end with a line feed."""

from __future__ import annotations

import codecs
import re
from functools import lru_cache
from pathlib import Path

from distqexp.errors import FileContentError
from distqexp.problem.readers.base import facts_of
from distqexp.problem.readers.bytes import BLOCK, ByteSource

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_LARGEST_UTF16 = 2**28
"""A UTF-16 file with more bytes than this must be converted first: it is held as a whole."""

_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive or an Excel workbook; expected a table of text: unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; expected a table of text: save the sheet as CSV",
    b"PAR1": 'a Parquet file; expected a table of text: say format = "parquet"',
    b"\x89HDF": 'an HDF5 file; expected a table of text: say format = "hdf5"',
    b"ARROW1": "an Arrow file; expected a table of text: save it as Parquet or CSV",
    b"\x04\x22\x4d\x18": "packed by lz4; expected plain text, or gzip, bzip2, xz or zstandard: pack it so",
    b"7z\xbc\xaf": "a 7-Zip archive; expected a table of text: unpack it",
}
_LINE_END = re.compile(rb'"[^"]*"|(\r*\n|\r+)')


class TextSource(ByteSource):
    """A ByteSource whose bytes are ASCII-compatible text with a line feed at the end of each record.

    UTF-16, which its mark shows, becomes UTF-8. Where the first line ends with carriage returns alone, as on an old Mac, each carriage
    return becomes a line feed; no place moves. Both are facts of the file and of its header, not of a record.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.utf16 = self._old_ends = False
        self._text: bytes | None = None
        head = self.read(0, BLOCK, short=True)
        self.utf16 = head.startswith(_UTF16) and not head.startswith(_UTF32)
        if self.utf16:
            head = self._converted()[:BLOCK]
        self._old_ends = _first_line_end(head) == b"\r"

    def refuse_other_formats(self) -> None:
        """Raise FileContentError for a file that is no text, by its first bytes; the message names what it is."""
        head = self.read(0, BLOCK, short=True)
        for start, what in _OTHER_FORMATS.items():
            if head.startswith(start):
                raise FileContentError(f"{self.path}: {what}")
        if head.startswith(_UTF32) or b"\0" in head.split(b"\n", 1)[0]:
            raise FileContentError(
                f"{self.path}: zero bytes in its first line, as of UTF-16 without its mark, or UTF-32; expected UTF-8, or UTF-16 with its "
                "mark; save it as UTF-8"
            )

    def _read(self, offset: int, length: int) -> bytes:
        content = self._converted()[offset : offset + length] if self.utf16 else super()._read(offset, length)
        return content.replace(b"\r", b"\n") if self._old_ends else content

    def _converted(self) -> bytes:
        if self._text is None:
            self._text = _from_utf16(self.path, facts_of(self.stat()), self.packing)
        return self._text

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_text": None}


@lru_cache(maxsize=2)
def _from_utf16(path: Path, facts: tuple[int, ...], packing: str | None) -> bytes:
    """Return the content of a UTF-16 file in UTF-8, without a mark. What is no character stays illegible."""
    source = ByteSource(path)
    parts, size = [], 0
    for block in source.blocks():
        size += len(block)
        parts.append(block)
        if size > _LARGEST_UTF16:
            raise FileContentError(
                f"{path}: UTF-16, and larger than {_LARGEST_UTF16 >> 20} MiB; expected UTF-8 for a table of this size; "
                "convert it: iconv -f UTF-16 -t UTF-8"
            )
    try:
        return b"".join(parts).decode("utf-16", "surrogatepass").encode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # half a character at the end
        raise FileContentError(
            f"{path}: begins with the mark of UTF-16 and ends within a letter; expected UTF-16 or UTF-8; the file is damaged: save it again"
        ) from None


def _first_line_end(head: bytes) -> bytes:
    """Return the end of the first line that isn't blank: a carriage return or a line feed; empty where there is none."""
    for match in _LINE_END.finditer(head):
        if match[1] is not None and match.start() > 0:
            return b"\r" if match[1] != b"\r\n" and match[1].startswith(b"\r") else b"\n"
    return b""


def table_source(path: Path, text: bool) -> ByteSource:
    """Return the bytes of a file: of a table of texts in the form that its reader reads, of others as they are."""
    return TextSource(path) if text else ByteSource(path)
