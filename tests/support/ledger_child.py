"""Processes that the ledger's tests start, kill and race. Run as a script; prints one line of JSON."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distqexp.errors import BudgetError, DistqexpError, StorageError
from distqexp.privacy.events import GaussianRelease
from distqexp.privacy.expenses import Charge
from distqexp.privacy.ledger import Cap, Ledger, Provenance

EVENT = GaussianRelease(mu=0.2, coordinates=5, sigma=2.0**20)
CAP = Cap(epsilon=1.0, delta=1e-5)
SUMS = np.array([3, -1, 4, -1, 5], dtype=np.int64)
NOISE = np.array([10, -20, 30, -40, 50], dtype=np.int64)
SMALL = replace(EVENT, mu=0.01)


def reserve(ledger: Ledger, **changes: Any) -> Any:
    """The charge that the tests share."""
    charge = {"key": "plan/0", "adjacency": "zero-out", "event": EVENT}
    charge |= {name: changes.pop(name) for name in Charge._fields if name in changes}
    provenance = Provenance(changes.pop("basis", b""), changes.pop("contents", ()))
    fields: dict[str, Any] = {"provenance": provenance, "population": "ward", "cap": CAP, "sums": SUMS}
    return ledger.reserve(Charge(**charge), **(fields | changes))


def release(path: Path, log: Path) -> np.ndarray[Any, Any]:
    """One release as a run makes it; the log gets each noise at the moment that it is used."""
    with Ledger.open(path) as ledger:
        reservation = reserve(ledger)
        if reservation.state == "committed":
            stored = ledger.noisy_sums(reservation)
            assert stored is not None
            return stored
        if reservation.state == "drawn":
            noise = ledger.noise(reservation)
        else:
            noise = np.frombuffer(os.urandom(40), dtype=np.int64) >> 20
            ledger.persist_noise(reservation, noise)
        with log.open("a") as file:
            file.write(json.dumps(noise.tolist()) + "\n")
        ledger.commit(reservation, SUMS + noise)
        return np.asarray(SUMS + noise)


class Fuse:
    """Kills the process at its n-th step that leaves a trace on the disk."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Count before and after every rename, removal, fsync and SQLite commit."""
        fuse, connect = self, sqlite3.connect

        def counted(name: str) -> None:
            original: Callable[..., Any] = getattr(os, name)

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                fuse.step()
                result = original(*args, **kwargs)
                fuse.step()
                return result

            setattr(os, name, wrapper)

        for name in ("replace", "unlink", "fsync", "mkdir"):
            counted(name)

        class Connection(sqlite3.Connection):
            def execute(self, statement: str, *args: Any) -> Any:
                if statement == "COMMIT" or statement.startswith("INSERT"):
                    fuse.step()
                result = super().execute(statement, *args)
                if statement == "COMMIT":
                    fuse.step()
                return result

        sqlite3.connect = lambda *args, **kwargs: connect(*args, factory=Connection, **kwargs)  # type: ignore[assignment]


def in_child(work: Callable[[], int]) -> int:
    """Process id of a forked child that runs ``work`` and exits with its result."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    """The exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_everywhere(folder: Path) -> list[dict[str, Any]]:
    """A release killed at step 0, 1, 2, ... until it survives; each time finished by a second run."""
    outcomes: list[dict[str, Any]] = []
    code = -9
    while code == -9:
        step = len(outcomes)
        place = folder / str(step)
        place.mkdir()

        def work(step: int = step, place: Path = place) -> int:
            Fuse(step).install()
            release(place / "new" / "ledger.sqlite", place / "log")
            return 0

        code = exit_code(in_child(work))
        first = release(place / "new" / "ledger.sqlite", place / "log")
        again = release(place / "new" / "ledger.sqlite", place / "log")
        files = place / "new" / "ledger.sqlite.files"
        with Ledger.open(place / "new" / "ledger.sqlite") as ledger:
            ledger.verify()
            outcomes.append(
                {
                    "code": code,
                    "rows": len(ledger.rows()),
                    "actions": [entry["body"]["action"] for entry in ledger.export()],
                    "released": first.tolist(),
                    "again": again.tolist(),
                    "used": [json.loads(line) for line in (place / "log").read_text().splitlines()],
                    "files": sorted(path.name for path in files.iterdir()),
                    "beside": sorted(path.name for path in files.parent.iterdir()),
                }
            )
    return outcomes


VOID = {"population": "ward", "release": "plan/0/state"}


def void_after_reserve(path: Path) -> None:
    """A round's charges, of a site and of the curator who share a ledger, the void, and its acceptance; goes on after a kill."""
    with Ledger.open(path) as ledger:
        if not any(entry["body"]["action"] == "void" for entry in ledger.export()):
            reserve(ledger, key="release/plan/0/state")
            ledger.commit(reserve(ledger, key="site-a/plan/0/state"), None)
        ledger.void(**VOID)
        if not any(entry["body"]["action"] == "accept-void" for entry in ledger.export()):
            ledger.accept_void(**VOID, roles={"site-a"})


def kill_voids(folder: Path) -> list[dict[str, Any]]:
    """A void killed at step 0, 1, 2, ... until it survives; each time finished by a second run."""
    outcomes: list[dict[str, Any]] = []
    code = -9
    while code == -9:
        step = len(outcomes)
        path = folder / str(step) / "ledger.sqlite"

        def work(step: int = step, path: Path = path) -> int:
            Fuse(step).install()
            void_after_reserve(path)
            return 0

        code = exit_code(in_child(work))
        void_after_reserve(path)
        with Ledger.open(path) as ledger:
            ledger.verify()
            actions = [entry["body"]["action"] for entry in ledger.export()]
            states = [row.state for row in ledger.rows()]
            outcomes.append({"code": code, "actions": actions, "states": states, "mu": ledger.spent("ward").mu})
    return outcomes


def race_void(folder: Path, times: int) -> list[list[int]]:
    """Curators of one ledger: one draws for a round, the other voids it at the same moment. Exit codes of draw and void."""
    outcomes = []
    for attempt in range(times):
        path = folder / str(attempt) / "ledger.sqlite"
        key = "release/plan/0/state"
        with Ledger.open(path) as ledger:
            reservation = reserve(ledger, key=key)
        gate, opened = os.pipe()

        def draw(path: Path = path, gate: int = gate, reservation: Any = reservation) -> int:
            with Ledger.open(path) as ledger:
                os.read(gate, 1)
                try:
                    ledger.persist_noise(reservation, SUMS)
                except DistqexpError as error:
                    return error.exit_code
            return 0

        def void(path: Path = path, gate: int = gate) -> int:
            with Ledger.open(path) as ledger:
                os.read(gate, 1)
                try:
                    ledger.void(**VOID)
                except DistqexpError as error:
                    return error.exit_code
            return 0

        children = [in_child(work) for work in ((draw, void) if attempt % 2 else (void, draw))]
        os.write(opened, b"go")
        codes = [exit_code(child) for child in children]
        with Ledger.open(path) as ledger:
            ledger.verify()
            state = ledger.rows()[0].state
        assert state == ("drawn" if codes[attempt % 2 == 0] == 0 else "voided")
        outcomes.append(codes if attempt % 2 else codes[::-1])
        os.close(gate)
        os.close(opened)
    return outcomes


def race(folder: Path, times: int) -> list[list[int]]:
    """Two processes ask for the last of a budget at once; exit code 0 for the one that got it, 4 otherwise."""
    outcomes = []
    for attempt in range(times):
        path = folder / str(attempt) / "ledger.sqlite"
        with Ledger.open(path):
            pass
        gate, opened = os.pipe()

        def work(name: str, path: Path = path, gate: int = gate) -> int:
            with Ledger.open(path) as ledger:
                os.read(gate, 1)
                try:
                    reserve(ledger, key=name)
                except BudgetError as error:
                    return error.exit_code
            return 0

        children = [in_child(lambda name=name: work(name)) for name in ("a", "b")]  # type: ignore[misc]
        os.write(opened, b"go")
        outcomes.append(sorted(exit_code(child) for child in children))
        os.close(gate)
        os.close(opened)
    return outcomes


def full_disk(folder: Path) -> dict[str, Any]:
    """A draw that does not fit (the kernel refuses large files), then one that does."""
    import resource

    event = GaussianRelease(mu=0.2, coordinates=50_000, sigma=2.0**20)
    sums, noise = np.zeros(50_000, dtype=np.int64), np.ones(50_000, dtype=np.int64)
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        reservation = reserve(ledger, event=event, sums=sums)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        refused = 0
        try:
            ledger.persist_noise(reservation, noise)
        except StorageError as error:
            refused = error.exit_code
        names = sorted(path.name for path in (folder / "ledger.sqlite.files").iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        state = reserve(ledger, event=event, sums=sums).state
        ledger.persist_noise(reservation, noise)
        ledger.verify()
        return {"refused": refused, "files": names, "state": state, "rows": len(ledger.rows())}


def full_ledger(folder: Path) -> dict[str, Any]:
    """A charge whose entry does not fit into the SQLite file any more, though the folder's head does; then there is room."""
    import resource

    path = folder / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, resource.RLIM_INFINITY))
        long = {"population": "ward" * 2000}  # an entry of several pages
        refused = 0
        try:
            reserve(ledger, **long)
        except StorageError as error:
            refused = error.exit_code
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        seen = [row.state for row in ledger.rows()]
        again = reserve(ledger, **long)
        ledger.verify()
        return {"refused": refused, "seen": seen, "again": [again.id, again.state], "rows": len(ledger.rows())}


if __name__ == "__main__":
    command, target = sys.argv[1], Path(sys.argv[2])
    if command == "kill":
        print(json.dumps(kill_everywhere(target)))
    elif command == "race":
        print(json.dumps(race(target, int(sys.argv[3]))))
    elif command == "race-void":
        print(json.dumps(race_void(target, int(sys.argv[3]))))
    elif command == "kill-void":
        print(json.dumps(kill_voids(target)))
    elif command == "full":
        print(json.dumps(full_disk(target)))
    else:
        print(json.dumps(full_ledger(target)))
