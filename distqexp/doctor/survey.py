"""All that the checks judge, collected before the first of them: plain data, which tests can make up."""

from __future__ import annotations

import os
import sqlite3
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from distqexp.config import Config
from distqexp.doctor.facts import RankFacts, own_facts, supported_ranges
from distqexp.doctor.mpi import Command, MpiFacts, find_launcher
from distqexp.doctor.places import Place, look_at
from distqexp.doctor.world import Sight, World, look_at_folder
from distqexp.engines.launcher import launched_size

_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")


@dataclass(frozen=True)
class LedgerFacts:
    """What a ledger's file and folder show without being changed.

    Attributes:
        path: The file.
        exists: Whether it is there.
        problem: Why it can't be read as a ledger; empty where it can.
        open_to_others: Whether others than its owner may read it or its folder.
    """

    path: Path
    exists: bool = False
    problem: str = ""
    open_to_others: bool = False


@dataclass(frozen=True)
class Survey:
    """What is known of the machine, the ranks and the config.

    Attributes:
        environ: The environment of the first rank.
        command: Runs a program of the scheduler.
        ranks: The facts of every rank.
        mpi: What MPI says.
        launcher: The launcher that was found and its version, outside a launcher only.
        run: The folder of the run.
        scratch: The folder for temporary files.
        books: The folder of the ledger.
        ledger: The ledger.
        sights: What each rank sees of a file in the run's folder.
        config: The config, if any.
        ranges: The supported versions.
        large: Whether a broadcast beyond 2^31 elements arrived on every rank; None where nobody tried.
        now: Seconds since the epoch.
    """

    environ: Mapping[str, str]
    command: Command
    ranks: tuple[RankFacts, ...]
    mpi: MpiFacts
    run: Place
    scratch: Place
    books: Place
    ledger: LedgerFacts
    launcher: tuple[str, str] | None = None
    sights: tuple[Sight, ...] = ()
    config: Config | None = None
    ranges: Mapping[str, str] = field(default_factory=dict)
    large: bool | None = None
    now: float = 0.0

    @property
    def device(self) -> str:
        """The device that the config asks for."""
        return self.config.engine.device if self.config else "cpu"


@dataclass(frozen=True)
class Wishes:
    """What the command was asked for.

    Attributes:
        config: The config, if any.
        out: The folder of the run.
        ledger: The ledger's file.
        large: Whether to try a broadcast beyond 2^31 elements.
    """

    config: Config | None
    out: Path
    ledger: Path
    large: bool = False


def take_survey(wishes: Wishes, world: World, environ: Mapping[str, str], command: Command) -> Survey | None:
    """Collect the facts of all ranks. Collective; returns None on all but the first.

    Charges and alters nothing. Temporary files in the folder of the run, of the ledger and of scratch files are removed.
    """
    device = wishes.config.engine.device if wishes.config else "cpu"
    gpus = device != "cpu" or (wishes.config is None and any(map(os.path.exists, _GPU_DRIVERS)))
    own_facts(
        world.rank, world.size, environ, look_for_gpus=gpus
    )  # what is slow the first time is over before all meet
    world.meet()
    ranks = world.gather(own_facts(world.rank, world.size, environ, look_for_gpus=gpus))
    run = world.from_first(look_at("run", wishes.out, hdf5=True) if world.rank == 0 else None)
    sights = look_at_folder(world, run.folder) if run is not None else []
    arrived = world.gather(world.large_broadcast()) if wishes.large and world.size > 1 else []
    if world.rank or run is None:
        return None
    return Survey(
        environ=environ,
        command=command,
        ranks=tuple(ranks),
        mpi=world.mpi,
        run=run,
        scratch=look_at("scratch", Path(tempfile.gettempdir()), locks=False),
        books=look_at("ledger", wishes.ledger.parent),
        ledger=look_at_ledger(wishes.ledger),
        launcher=None if launched_size(environ) else find_launcher(command),
        sights=tuple(sights),
        config=wishes.config,
        ranges=supported_ranges(),
        large=all(arrived) if arrived else None,
        now=ranks[0].clock,
    )


def look_at_ledger(path: Path) -> LedgerFacts:
    """Return what a ledger shows to a reader that changes nothing, not even what opening it as a ledger would tidy up."""
    path = Path(os.path.realpath(path))
    facts = LedgerFacts(path)
    folder = path.with_name(path.name + ".files")
    try:
        modes = [stat.S_IMODE(item.stat().st_mode) for item in (path, folder) if item.exists()]
        facts = replace(facts, exists=path.exists(), open_to_others=any(mode & 0o077 for mode in modes))
        if not facts.exists:
            lost = (folder / "begun").exists()
            return replace(facts, problem="its folder is there and its file is gone" if lost else "")
        if path.stat().st_size == 0:
            return facts
        if not (folder / "key").is_file():
            return replace(facts, problem=f"no key in {folder}")
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            connection.close()
    except (OSError, sqlite3.Error) as error:
        return replace(facts, problem=" ".join(f"{type(error).__name__}: {error}".split()))
    return facts
