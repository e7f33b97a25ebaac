"""The launcher's account of this run: how many ranks there are, which one this is, and whether MPI agrees."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from distqexp.errors import EngineError
from distqexp.stopping import RANK_VARIABLES

SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
LOCAL_RANK_VARIABLES = (
    "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID", "SLURM_LOCALID",
)  # fmt: skip
ALLOCATION_VARIABLES = ("SLURM_NTASKS", "PBS_NP", "LSB_DJOB_NUMPROC")


def launched_size(environ: Mapping[str, str]) -> tuple[int, str] | None:
    """Return the number of processes that the launcher started, and the variable that says so; None without a launcher."""
    return _first_number(SIZE_VARIABLES, environ)


def launched_rank(environ: Mapping[str, str]) -> int:
    """Return this process's number by the launcher's account; 0 without a launcher."""
    rank = _first_number(RANK_VARIABLES, environ)
    return rank[0] if rank else 0


def local_rank(environ: Mapping[str, str]) -> int:
    """Return this process's number on its host, for the choice of a GPU; 0 without a launcher."""
    rank = _first_number(LOCAL_RANK_VARIABLES, environ)
    return rank[0] if rank else 0


def may_print(environ: Mapping[str, str], patience: float = 10.0) -> bool:
    """Return whether this process is the one to print an error that every process meets before there is an engine.

    Launchers end all processes at the first failure. So the others wait here for ``patience`` seconds, while the first one prints
    and exits; normally they are ended as they wait.
    """
    if launched_rank(environ) == 0:
        return True
    time.sleep(patience)
    return False


class Conflict(NamedTuple):
    """A launcher and an engine that disagree: the launcher's number of processes, the variable that says so, the likely cause."""

    size: int
    variable: str
    cause: str


def size_conflict(engine_size: int, environ: Mapping[str, str]) -> Conflict | None:
    """Return how the launcher's number of processes differs from the engine's; None where they agree."""
    launch = launched_size(environ)
    if launch is None or launch[0] == engine_size:
        return None
    if engine_size == 1:
        cause = (
            "every process would run the whole job alone: mpi4py is bound to another MPI than the launcher's; "
            "start it with the mpirun of the MPI that mpi4py was built for (under srun, try --mpi=pmix or --mpi=pmi2), "
            "or leave the launcher out for a serial or Dask run"
        )
    else:
        cause = (
            "a variable left over from an outer launcher, or a communicator that doesn't span the run: unset or fix it"
        )
    return Conflict(*launch, cause)


def check_size(engine_size: int, environ: Mapping[str, str]) -> None:
    """Raise EngineError when the launcher started another number of processes than the engine sees."""
    conflict = size_conflict(engine_size, environ)
    if conflict is not None:
        raise EngineError(
            f"the launcher says {conflict.size} processes ({conflict.variable}), the engine says {engine_size}: {conflict.cause}"
        )


def allocation_warning(engine_size: int, environ: Mapping[str, str]) -> str | None:
    """Return a remark when the allocation has room for another number of processes than run, else None.

    It is never an error, as an allocation may be shared by several steps.
    """
    allocation = _first_number(ALLOCATION_VARIABLES, environ)
    if allocation is None or allocation[0] == engine_size:
        return None
    return (
        f"the allocation has {allocation[0]} tasks ({allocation[1]}), this run uses {engine_size}; "
        "if that is not meant, start it with srun or mpirun -n"
    )


def _first_number(names: tuple[str, ...], environ: Mapping[str, str]) -> tuple[int, str] | None:
    """Return the value of the first variable that is a whole number, and the variable's name."""
    for name in names:
        text = environ.get(name, "").strip()
        if text.isdigit():
            return int(text), name
    return None
