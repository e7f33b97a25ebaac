"""The ledger's folder: its key, the probe of file locks, and the arrays that belong to reservations.

Everything here is private to the ledger: the folder has mode 0700, its files 0600.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import io
import os
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from distqexp.errors import FileContentError, StorageError, UsageError
from distqexp.storage.atomic import remove_unfinished, storage_error, sync_folder, write_atomic

KEY_BYTES = 32
SEAL_BYTES = 32
HAS_HEAD = b"head\n"
"""The content of the file "begun" once the folder has a head."""


def default_path() -> Path:
    """Return the path in DISTQEXP_LEDGER, else distqexp/ledger.sqlite in the user's state folder."""
    if path := os.environ.get("DISTQEXP_LEDGER"):
        return Path(path).expanduser().absolute()
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return folder / "distqexp" / "ledger.sqlite"


def require_place(path: Path) -> None:
    """Raise UsageError where no ledger can be: in a folder's stead."""
    if path.is_dir():
        raise UsageError(
            f"{path}: the ledger's path is a folder; expected a file: DISTQEXP_LEDGER={path}/ledger.sqlite"
        )


class LedgerFiles:
    """The companion folder ``<ledger>.files`` of one ledger."""

    def __init__(self, ledger: Path) -> None:
        self.folder = ledger.with_name(ledger.name + ".files")
        self.key = b""
        self._begun = self.folder / "begun"

    def prepare(self) -> None:
        """Make the folder and check that file locks work there. Raises StorageError, or UsageError where it can't be a folder."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.mkdir(exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
            self._probe_locks()
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(
                f"{self.folder}: can't be a folder ({error.strerror}); set DISTQEXP_LEDGER to another path"
            ) from None
        except OSError as error:
            raise storage_error(self.folder, error) from error

    def load_key(self, *, new: bool) -> None:
        """Read the key of all seals and tags; a new ledger draws one.

        Raises FileContentError where the key is missing or damaged, and StorageError where it can't be read.
        """
        path = self.folder / "key"
        if new and self._begun.exists():
            raise FileContentError(
                f"{self.folder}: belongs to a ledger with entries, which is gone or empty; restore it from a backup"
            )
        if new and not path.exists():
            write_atomic(path, os.urandom(KEY_BYTES), private=True)
        try:
            self.key = path.read_bytes()
        except FileNotFoundError:
            self.key = b""
        except OSError as error:
            raise StorageError(f"{path}: can't be read ({error.strerror}); check its owner and mode") from error
        if len(self.key) != KEY_BYTES:
            raise FileContentError(
                f"{path}: {len(self.key)} bytes, the ledger's key has {KEY_BYTES}; restore the ledger and its folder together"
            )

    def mark_begun(self) -> None:
        """Store the fact that the ledger and its head exist: a new ledger beside this folder would refill every budget."""
        if not self.has_head():
            write_atomic(self._begun, HAS_HEAD, private=True)

    def has_head(self) -> bool:
        """Whether the folder had a head at any time."""
        try:
            return self._begun.read_bytes() == HAS_HEAD
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(f"{self._begun}: can't be read ({error.strerror}); check its owner and mode") from error

    def tag(self, *parts: bytes | memoryview) -> bytes:
        """Return the keyed digest of the parts (HMAC-SHA-256), which never leaves the ledger and its folder."""
        digest = hmac.new(self.key, digestmod=hashlib.sha256)
        for part in parts:  # one by one: sums may be long
            digest.update(struct.pack("<Q", len(part)))
            digest.update(part)
        return digest.digest()

    def exists(self, purpose: str, reservation: int | str) -> bool:
        """Whether the "noise" or "released" array of a reservation, or "coins" of a name, are stored."""
        return self._path(purpose, reservation).exists()

    def write(self, purpose: str, reservation: int | str, owner: bytes, array: npt.NDArray[Any]) -> None:
        """Store an array of a reservation durably, with a seal.

        Args:
            purpose: "noise", "released", "coins", or "tossed" (how often a round was charged when its coins were).
            reservation: The number of the reservation; for coins the name of their round and shard.
            owner: The keyed digest of the reservation's sums, or of the coins' round and shard. The seal binds the array to it: a
                file that was left from a lost history of the ledger can't be taken for the draw of other sums.
            array: The array.

        Raises:
            StorageError: The file can't be written.
        """
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        data = buffer.getvalue()
        seal = self.tag(purpose.encode(), owner, data)

        def fill(file: BinaryIO) -> None:
            file.write(data)
            file.write(seal)

        write_atomic(self._path(purpose, reservation), fill, private=True)

    def read(self, purpose: str, reservation: int | str, owner: bytes) -> npt.NDArray[Any]:
        """Read an array back, with the arguments of ``write``.

        Raises FileContentError when it is missing, damaged or of another reservation, and StorageError when it can't be read.
        """
        path = self._path(purpose, reservation)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise FileContentError(f"{path}: missing; restore the ledger and its folder together") from None
        except OSError as error:
            raise StorageError(f"{path}: can't be read ({error.strerror}); check its owner and mode") from error
        data, seal = content[:-SEAL_BYTES], content[-SEAL_BYTES:]
        if not hmac.compare_digest(seal, self.tag(purpose.encode(), owner, data)):
            raise FileContentError(
                f"{path}: its seal does not fit; damaged or of another ledger: restore it from a backup"
            )
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))

    def erase(self, purpose: str, reservation: int) -> None:
        """Remove an array durably; nothing happens when there is none. Raises StorageError."""
        self._remove(self._path(purpose, reservation))

    def erase_all(self, purpose: str, name: str) -> None:
        """Remove durably every array of this purpose whose name begins with ``name``. Raises StorageError."""
        for path in self.folder.glob(f"{purpose}-{name}*.npy"):
            self._remove(path)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
            sync_folder(self.folder)
        except OSError as error:
            raise storage_error(path, error) from error

    def clean(self, committed_reservations: set[int]) -> None:
        """Remove what killed processes left: unfinished files, and the noise of committed reservations."""
        remove_unfinished(self.folder)
        for reservation in committed_reservations:
            if self.exists("noise", reservation):
                self.erase("noise", reservation)

    def _path(self, purpose: str, reservation: int | str) -> Path:
        return self.folder / f"{purpose}-{reservation}.npy"

    def _probe_locks(self) -> None:
        """Check POSIX locks, which SQLite relies on: some network file systems refuse them, and some grant them to everybody."""
        path = self.folder / "lock"
        with contextlib.ExitStack() as stack:
            first = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            stack.callback(os.close, first)
            second = os.open(path, os.O_RDWR)
            stack.callback(os.close, second)
            try:
                fcntl.lockf(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return  # another process holds the lock at this moment, so locks exclude
                raise self._no_locks(os.strerror(error.errno or 0)) from error
            if sys.platform != "linux":
                return
            try:
                # A lock of the open file description conflicts with the process's own lock above.
                fcntl.fcntl(second, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES, errno.EINVAL):
                    return
                raise self._no_locks(os.strerror(error.errno or 0)) from error
            raise self._no_locks("two locks on one file were granted")

    def _no_locks(self, reason: str) -> StorageError:
        return StorageError(
            f"{self.folder}: file locks don't work there ({reason}); set DISTQEXP_LEDGER to a path on a file system with locks"
        )
