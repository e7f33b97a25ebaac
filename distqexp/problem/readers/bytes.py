"""Random access to the bytes of a plain or packed file, without holding all of a large one."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from distqexp.errors import FileContentError
from distqexp.problem.readers.base import changed_file_error, facts_of
from distqexp.problem.readers.packing import DAMAGE, open_unpacked, packing_of

_CACHED = 64 * 2**20
"""A packed file that unpacks to at most this many bytes is unpacked once and kept."""
BLOCK = 2**20
_DEFLATE_RATIO = 1032
"""No gzip file unpacks to more than this many times its size."""
_BOMB_RATIO, _BOMB_FROM = 128, 64 * 2**20
"""A table that unpacks to more than _BOMB_RATIO times its size, and to more than _BOMB_FROM bytes, is a bomb."""


class ByteSource:
    """The uncompressed bytes of a file.

    A plain file is read in place. A packed file (see ``packing``) that unpacks to at most _CACHED bytes is unpacked once and kept, also
    for others who open it in this process (every round does). A larger one is streamed, which is quick for ascending offsets and starts
    over for descending ones. Copies sent to other processes open the file anew. Damage raises FileContentError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.packing = packing_of(path)
        self._stream: BinaryIO | None = None
        self._content: bytes | None = None
        self._stat: os.stat_result | None = None

    def stat(self) -> os.stat_result:
        """Return what the system says of the open file, which its path may not name any more."""
        self._open()
        if self._stat is None:
            raise changed_file_error(self.path)
        return self._stat

    def blocks(self) -> Iterator[bytes]:
        """Yield all bytes in order, in blocks of at most BLOCK."""
        at = 0
        most = max(_BOMB_FROM, _BOMB_RATIO * self.path.stat().st_size) if self.packing else math.inf
        while block := self.read(at, BLOCK, short=True):
            yield block
            at += len(block)
            if at > most:
                raise FileContentError(
                    f"{self.path}: unpacks to more than {_BOMB_RATIO} times its size; expected a table; unpack it by hand"
                )

    def read(self, offset: int, length: int, short: bool = False) -> bytes:
        """Return ``length`` bytes from ``offset``; fewer only with ``short``, at the end of the file."""
        try:
            content = self._read(offset, length)
        except DAMAGE:
            if self.packing is None:
                raise
            raise changed_file_error(self.path) from None
        if len(content) != length and not short:
            raise changed_file_error(self.path)
        return content

    def check_whole(self) -> None:
        """Unpack all of a packed file once, which compares its checksums; a plain file needs nothing."""
        at = 0
        while self.packing and (block := self.read(at, BLOCK, short=True)):
            at += len(block)

    def holds_exactly(self, length: int) -> bool:
        """Return whether the uncompressed file is ``length`` bytes long; a gzip file's trailer is asked first."""
        size = self.path.stat().st_size
        if self.packing is None:
            return size == length
        if self.packing == "gzip":
            if length > _DEFLATE_RATIO * size:
                return False
            with self.path.open("rb") as file:
                file.seek(-4, 2)
                trailer = int.from_bytes(file.read(4), "little")
            if trailer == length % 2**32:
                return True
        at = 0  # of gzip: several members, or damage
        while at <= length and (block := self.read(at, BLOCK, short=True)):
            at += len(block)
        return at == length

    def _read(self, offset: int, length: int) -> bytes:
        self._open()
        if self._content is not None:
            return self._content[offset : offset + length]
        stream = cast(BinaryIO, self._stream)
        stream.seek(offset)
        parts, missing = [], length
        while missing and (part := stream.read(missing)):
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _open(self) -> None:
        if self._stream is None:
            file = self.path.open("rb")
            weakref.finalize(self, file.close)
            self._stat = os.fstat(file.fileno())
            self._stream = open_unpacked(file, self.packing) if self.packing else file
            if self.packing:
                self._content = _unpack(self.path, facts_of(self._stat), self.packing, _CACHED)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None, "_content": None, "_stat": None}


@lru_cache(maxsize=2)
def _unpack(path: Path, facts: tuple[int, ...], packing: str, most: int) -> bytes | None:
    """Return the content of a packed file as it was when the file system gave these facts.

    None where it is more than ``most`` bytes.
    """
    with path.open("rb") as file:
        if facts_of(os.fstat(file.fileno())) != facts:
            raise changed_file_error(path)
        with open_unpacked(file, packing) as stream:
            content = stream.read(most + 1)
    return content if len(content) <= most else None
