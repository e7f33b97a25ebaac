"""Digests of what a source of records holds, which tell it from others whatever its file is called. Private.

They are compared, under a key, to notice a file that may be charged under two names, and never leave the process otherwise. A match
may be chance (two sites that number their patients 1, 2, 3), and some copies are missed (another format without unit ids): it is a
reason to look, not a proof.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from distqexp.config import DataConfig
from distqexp.problem.identity import record_files
from distqexp.problem.readers.bytes import BLOCK
from distqexp.problem.readers.folders import Folder
from distqexp.problem.readers.text_bytes import table_source
from distqexp.problem.selection import select_rows
from distqexp.problem.slots import id_bytes
from distqexp.problem.sources import Readers

MOST_BYTES = 2**30
"""At most this many bytes of a file, unpacked, are looked at: the beginning of a larger one stands for it."""

MOST_LINES_BYTES = 2**28
"""The lines of a table with more bytes than this are not compared one by one."""


def content_digests(data: DataConfig, readers: Readers | None = None) -> tuple[bytes, ...]:
    """Return digests of the file's bytes, of a table's lines in any order, and of the set of unit ids.

    Any of them identifies the file. The bytes are those of the unpacked file, so that a packed copy is the same, and one in UTF-16.
    Raises FileContentError for a damaged file.

    Args:
        data: the source.
        readers: the readers that this process has open already.
    """
    digests: list[bytes] = []
    for path in record_files(data):  # not the labels of images, which say little
        digests += _file_digests(path, lines=data.format == "csv")
    if data.unit is not None:
        reader = (readers or Readers()).of(data, private=True)
        rows = select_rows(data, reader, keep_blank=True)
        names = sorted({id_bytes(name) for name in set(reader.identifiers(data.unit, rows))} - {b""})
        if names:
            digests.append(_tagged(b"ids", *names))
    return tuple(digests)


def _file_digests(path: Path, lines: bool) -> list[bytes]:
    """Return a digest of the bytes and, where ``lines``, one of the lines in any order; none for an empty file."""
    whole, total, rest, size = hashlib.sha256(b"bytes"), 0, b"", 0
    for block in _blocks(path, lines):
        whole.update(block)
        size += len(block)
        lines = lines and size <= MOST_LINES_BYTES
        if lines:
            *complete, rest = (rest + block).split(b"\n")
            total += sum(map(line_hash, complete))
    if not size:
        return []
    total += line_hash(rest)
    return [whole.digest(), *([_tagged(b"lines", (total % 2**256).to_bytes(32, "big"))] if lines else [])]


def _blocks(path: Path, text: bool) -> Iterator[bytes]:
    if path.is_dir():
        size = 0
        for block in Folder(path).blocks():
            yield block
            size += len(block)
            if size >= MOST_BYTES:
                return
        return
    source, at = table_source(path, text), 0
    while at < MOST_BYTES and (block := source.read(at, BLOCK, short=True)):
        yield block
        at += len(block)


def line_hash(line: bytes) -> int:
    """Return a hash of a line as a number: a sum of these doesn't depend on the lines' order. Blank lines give 0."""
    text = line.strip()
    return int.from_bytes(hashlib.blake2b(text, digest_size=32).digest(), "big") if text else 0


def _tagged(tag: bytes, *parts: bytes) -> bytes:
    digest = hashlib.sha256(tag)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()
