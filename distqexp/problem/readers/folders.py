"""Folders of records: the files in them, none of them outside, and facts and digests that stand for them all."""

from __future__ import annotations

import hashlib
import os
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from distqexp.errors import FileContentError
from distqexp.problem.readers.base import changed_file_error, facts_of

_BLOCK = 2**20

Facts = tuple[int, int, int, int, int]


class Folder:
    """An open folder and the files in it, at any depth. Those whose name, or whose folder's, begins with a dot don't count.

    Files are opened by their name inside this folder, whatever its path leads to by now, and only as they were when they were found.

    Attributes:
        path: its path.
        files: the facts (see ``facts_of``) of each file, by its name relative to the folder with slashes, in ascending order of the names.
    """

    def __init__(self, path: Path) -> None:
        """Find the files. Raises FileContentError for a link to a folder, or to a file outside."""
        self.path = path
        self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        weakref.finalize(self, os.close, self._handle)
        self.files = dict(sorted(self._find()))

    def open(self, name: str) -> BinaryIO:
        """Open one of ``files``. Raises FileContentError where it isn't what was found."""
        try:
            file = os.fdopen(os.open(name, os.O_RDONLY, dir_fd=self._handle), "rb")
        except OSError:
            raise changed_file_error(self.path) from None
        if facts_of(os.fstat(file.fileno())) != self.files[name]:
            file.close()
            raise changed_file_error(self.path)
        return file

    def facts(self) -> Facts:
        """Return numbers that stand for the facts of all files, in the order of ``facts_of``; the first one is the sum of sizes."""
        rows = list(self.files.items())
        size = sum(facts[0] for _, facts in rows)
        times = _number([(name, facts[0], facts[1]) for name, facts in rows])
        inodes, changes = (_number([facts[place] for _, facts in rows]) for place in (2, 3))
        return size, times, inodes, changes, os.fstat(self._handle).st_dev

    def blocks(self) -> Iterator[bytes]:
        """Yield the names and the bytes of all files, in their order."""
        for name, facts in self.files.items():
            yield f"\0{name}\0{facts[0]}\0".encode("utf-8", "surrogateescape")
            with self.open(name) as file:
                while block := file.read(_BLOCK):
                    yield block

    def _find(self) -> Iterator[tuple[str, Facts]]:
        inside = os.path.realpath(self.path) + os.sep
        for place, folders, names, handle in os.fwalk(".", dir_fd=self._handle):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in folders:
                if stat.S_ISLNK(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode):
                    raise self._refusal()
            for name in names:
                if name.startswith("."):
                    continue
                relative = os.path.normpath(os.path.join(place, name))
                try:
                    facts = os.stat(name, dir_fd=handle, follow_symlinks=False)
                    if stat.S_ISLNK(facts.st_mode):
                        if not os.path.realpath(self.path / relative).startswith(inside):
                            raise self._refusal()
                        facts = os.stat(name, dir_fd=handle)
                except OSError:
                    raise self._refusal() from None
                if stat.S_ISREG(facts.st_mode):
                    yield relative, facts_of(facts)

    def _refusal(self) -> FileContentError:
        return FileContentError(
            f"{self.path}: a link in it leads to a folder, out of it or nowhere; expected files inside it: copy them into it"
        )


def path_facts(path: Path) -> Facts:
    """Return the facts of what a path names now: a file, or all files of a folder. Raises OSError where it is gone."""
    return Folder(path).facts() if path.is_dir() else facts_of(path.stat())


def _number(values: object) -> int:
    """Return a digest of values as a number of 62 bits."""
    digest = hashlib.blake2b(repr(values).encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2
