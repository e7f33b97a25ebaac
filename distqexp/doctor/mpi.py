"""What MPI says of itself: the library that is loaded, what mpi4py was built with, and the launcher that is at hand."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Command = Callable[[Sequence[str]], str | None]
"""Runs a program and returns what it prints on standard output; None where it can't be run, or fails."""

LAUNCHERS = ("mpirun", "mpiexec", "srun", "aprun", "jsrun")

_FAMILIES = {
    "open mpi": "Open MPI",
    "openmpi": "Open MPI",
    "openrte": "Open MPI",
    "prte": "Open MPI",
    "spectrum": "Open MPI",
    "mpich": "MPICH",
    "intel": "MPICH",
    "impi": "MPICH",
    "hydra": "MPICH",
    "mvapich": "MPICH",
    "parastation": "MPICH",
    "microsoft": "Microsoft MPI",
    "msmpi": "Microsoft MPI",
}
"""Words in the names of MPI libraries and launchers, and the family whose binaries they are."""

ANY_FAMILY = "any MPI 5"

_ASK = "import json; from distqexp.doctor.mpi import ask_mpi; print(json.dumps(ask_mpi()))"


@dataclass(frozen=True)
class MpiFacts:
    """What MPI says of itself in a process.

    Attributes:
        library: The first line of the version of the library that is loaded.
        built_for: The family of MPI that mpi4py was built for; ANY_FAMILY for the standard ABI, empty where it doesn't say.
        standard: The version of the MPI standard that the library keeps.
        built_standard: The one that mpi4py was built with.
        problem: Why MPI can't be loaded; empty where it can.
    """

    library: str = ""
    built_for: str = ""
    standard: tuple[int, ...] = ()
    built_standard: tuple[int, ...] = ()
    problem: str = ""


def family(words: str) -> str:
    """Return the family of MPI that a library's or a launcher's words name; empty for an unknown one."""
    lower = words.lower()
    return next((name for word, name in _FAMILIES.items() if word in lower), "")


def ask_mpi() -> dict[str, object]:
    """Load MPI in this process, which initialises it, and return its facts as a tree."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        return asdict(MpiFacts(problem=" ".join(f"{type(error).__name__}: {error}".split())))
    suffix = Path(MPI.__file__).name.partition(".")[2].partition(".")[0]
    built_for = ANY_FAMILY if suffix == "mpiabi" else family(suffix) or family(MPI.get_vendor()[0])
    return asdict(
        MpiFacts(
            library=MPI.Get_library_version().strip("\0\n ").splitlines()[0].split(", package")[0],
            built_for=built_for,
            standard=tuple(MPI.Get_version()),
            built_standard=(MPI.VERSION, MPI.SUBVERSION),
        )
    )


def facts_from_tree(tree: Mapping[str, object]) -> MpiFacts:
    """Return the facts in what ``ask_mpi`` gives, also after a way through JSON."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in tree.items()}
    return MpiFacts(**values)  # type: ignore[arg-type]


def ask_elsewhere(command: Command) -> MpiFacts:
    """Return the facts of MPI in a process of its own, since some libraries end a process that no launcher started."""
    said = command([sys.executable, "-c", _ASK])
    if said is None or not said.strip():
        return MpiFacts(problem="a process that loads mpi4py outside a launcher ends before it says anything")
    return facts_from_tree(json.loads(said.splitlines()[-1]))


def find_launcher(command: Command) -> tuple[str, str] | None:
    """Return the path of a launcher, beside this Python or on PATH, and what it says of its version; None without one."""
    for name in LAUNCHERS:
        beside = Path(sys.executable).parent / name
        found = str(beside) if beside.exists() else shutil.which(name)
        if found is not None:
            return found, " ".join((command([found, "--version"]) or "").split())
    return None


def run_program(words: Sequence[str]) -> str | None:
    """Run a program for at most 30 seconds, without input, and return its standard output; None where it fails."""
    try:
        done = subprocess.run(
            list(words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
