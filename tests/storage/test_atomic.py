"""Atomic writes: whole or absent, private from the first byte, a full disk is exit code 6."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from distqexp.errors import StorageError, UsageError
from distqexp.storage import atomic
from distqexp.storage.atomic import remove_unfinished, write_atomic


class FullDisk:
    """A binary file on which nothing more fits."""

    def __init__(self, file: BinaryIO, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: bytes) -> int:
        if len(data) > self._room:
            self._file.write(data[: self._room])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._room -= len(data)
        return self._file.write(data)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_bytes_and_functions_are_written(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"bytes")

    def content(file: BinaryIO) -> None:
        file.write(b"by")
        file.write(b"tes")

    write_atomic(tmp_path / "b", content)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"bytes"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_private_is_0600_whatever_the_umask_and_before_a_byte_is_written(tmp_path: Path) -> None:
    seen: list[int] = []

    def content(file: BinaryIO) -> None:
        seen.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))
        file.write(b"secret")

    for umask in (0o000, 0o022, 0o277):
        old = os.umask(umask)
        try:
            write_atomic(tmp_path / f"private-{umask}", content, private=True)
            write_atomic(tmp_path / f"public-{umask}", b"open")
        finally:
            os.umask(old)
        assert mode(tmp_path / f"private-{umask}") == 0o600
        assert mode(tmp_path / f"public-{umask}") == 0o666 & ~umask
    assert seen == [0o600] * 3


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def content(file: BinaryIO) -> None:
        FullDisk(file, room=3).write(b"new content")

    with pytest.raises(StorageError, match=r"No space left.*free some space") as caught:
        write_atomic(path, content)
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

    def broken(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, broken)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_every_failing_step_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic.os, step, fail)
    with pytest.raises(StorageError, match=os.strerror(code)):
        write_atomic(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_replaces_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """With hard links, and where the file system has none."""

    def no_links(*args: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(atomic.os, "link", no_links)
    path = tmp_path / "key"
    write_atomic(path, b"first", private=True, new=True)
    assert mode(path) == 0o600
    with pytest.raises(UsageError, match="nothing is overwritten"):
        write_atomic(path, b"second", new=True)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist; create it first"):
        write_atomic(tmp_path / "none" / "file", b"")


def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="Permission denied"):
            write_atomic(tmp_path / "file", b"")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.process
def test_a_real_size_limit_stops_the_write(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel itself refuse the bytes, in the middle of an HDF5 write too."""
    code = f"""
import resource, signal, sys
from pathlib import Path
import numpy as np
from distqexp.errors import StorageError
from distqexp.storage.atomic import write_atomic
from distqexp.storage.hdf5 import write_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
folder = Path({str(tmp_path)!r})
refused = 0
for size in (30_000, 200_000):
    try:
        write_file(folder / "f", kind="sketch", plan_id="p", header={{}}, arrays={{"a": np.zeros(size)}}, private=True)
    except StorageError as error:
        refused += "File too large" in str(error)
try:
    write_atomic(folder / "g", b"x" * 200_000)
except StorageError:
    refused += 1
print(refused, sorted(p.name for p in folder.iterdir()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "3 []"
    assert done.stderr == ""


@pytest.mark.process
def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from distqexp.storage.atomic import write_atomic
def content(file):
    file.write(b"half of a secret"); file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomic(Path({str(tmp_path)!r}) / "sketch.h5", content, private=True)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=120)
    assert done.returncode == -9
    (leftover,) = tmp_path.iterdir()
    assert leftover.name != "sketch.h5"
    assert mode(leftover) == 0o600
    assert remove_unfinished(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []
