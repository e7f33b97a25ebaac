"""The ranks that examine the machine together, and what only all of them can find out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from distqexp.doctor.mpi import Command, MpiFacts, ask_elsewhere, ask_mpi, facts_from_tree
from distqexp.doctor.places import excludes
from distqexp.engines.launcher import launched_rank, launched_size

T = TypeVar("T")

LARGE = 2**31 + 8
"""The bytes of the large broadcast: more than a count of 32 bits with a sign can say."""


class World:
    """This process alone, or all ranks of a launcher. Every method is collective."""

    rank, size = 0, 1

    def __init__(self, mpi: MpiFacts, comm: Any = None, first: bool = True) -> None:
        """Take what MPI says, the communicator, if any, and whether this process is the one that prints."""
        self.mpi = mpi
        self.prints = first
        self._comm = comm
        if comm is not None:
            self.rank, self.size = comm.Get_rank(), comm.Get_size()
            self.prints = self.rank == 0 and (self.size > 1 or first)

    def meet(self) -> None:
        """Wait until all ranks are here."""
        if self._comm is not None:
            self._comm.Barrier()

    def gather(self, value: T) -> list[T]:
        """Return the small values of all ranks, in their order, on the first; an empty list elsewhere."""
        return [value] if self._comm is None else self._comm.gather(value, root=0) or []

    def from_first(self, value: T) -> T:
        """Return the first rank's small value everywhere."""
        return value if self._comm is None else self._comm.bcast(value, root=0)

    def large_broadcast(self) -> bool:
        """Broadcast LARGE bytes by the engine's own way, and return whether they arrived here."""
        if self._comm is None:
            return True
        from distqexp.engines.mpi import MpiEngine

        with MpiEngine(self._comm) as engine:
            sent = {"bytes": _pattern()} if engine.is_root else None
            arrived = engine.broadcast_arrays(sent)["bytes"]
        return arrived.size == LARGE and bool((arrived[:: 2**20] == _pattern()[:: 2**20]).all()) and arrived[-1] == 7


@dataclass(frozen=True)
class Sight:
    """What a rank saw of a file that the first rank made in the run's folder and holds a lock on.

    Attributes:
        seen: Whether the file is there for this rank.
        excluded: Whether this rank was refused the lock; None where it didn't see the file, or holds the lock itself.
    """

    seen: bool
    excluded: bool | None


def open_world(environ: Mapping[str, str], command: Command) -> World:
    """Return the ranks that the launcher started, or this process alone.

    Without a launcher MPI is loaded in a process of its own: on some login nodes it ends whoever loads it.
    """
    first = launched_rank(environ) == 0
    if launched_size(environ) is None:
        return World(ask_elsewhere(command))
    facts = facts_from_tree(ask_mpi())
    if facts.problem:
        return World(facts, first=first)
    from mpi4py import MPI

    return World(facts, MPI.COMM_WORLD, first)


def look_at_folder(world: World, folder: Path) -> list[Sight]:
    """Return what each rank sees of a file that the first rank makes in ``folder``, locks and removes; on the first alone."""
    import fcntl

    path, descriptor = "", -1
    if world.rank == 0:
        with suppress(OSError):
            descriptor, path = tempfile.mkstemp(prefix=".doctor-", dir=folder)
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        shared = world.from_first(path)
        seen = bool(shared) and os.path.exists(shared)
        sights = world.gather(Sight(seen, excludes(Path(shared), "posix") if seen and world.rank else None))
    finally:
        if descriptor >= 0:
            os.close(descriptor)
            os.unlink(path)
    return sights


def _pattern() -> np.ndarray[Any, np.dtype[np.uint8]]:
    pattern = np.zeros(LARGE, np.uint8)
    pattern[:: 2**20] = np.arange(len(pattern[:: 2**20])) % 251
    pattern[-1] = 7
    return pattern
