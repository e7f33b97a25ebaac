"""One visit of a study at a time: a lock in the party's own folder, which ends with its process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from distqexp.consortium.party import Party
from distqexp.errors import StorageError, UsageError
from distqexp.storage.atomic import remove_unfinished, storage_error


@contextmanager
def one_visit(party: Party) -> Iterator[Party]:
    """Keep every other visit of the party to its study away until the block ends.

    Raises UsageError where another one is at work, StorageError where the file system has no locks.
    """
    path = party.own / "visit.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{party.own}: another visit of {party.name} to study {party.study.name} is at work; expected one at a time: wait until "
                "it has ended"
            ) from None
        except OSError as error:
            raise StorageError(f"{path}: can't be locked ({error.strerror}); check its file system") from error
        for folder in (party.own, party.own / "sent"):
            remove_unfinished(folder)  # what a killed visit left may be exact sums
        yield party
    finally:
        os.close(descriptor)
