"""What the launcher says about this run: how many ranks, which one on this host, and whether MPI agrees."""

from __future__ import annotations

import time
from collections.abc import Mapping

from distqexp.errors import EngineError

SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
LOCAL_RANK_VARIABLES = (
    "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID", "SLURM_LOCALID",
)  # fmt: skip
ALLOCATION_VARIABLES = ("SLURM_NTASKS", "PBS_NP", "LSB_DJOB_NUMPROC")


def launched_size(environ: Mapping[str, str]) -> tuple[int, str] | None:
    """Number of processes that the launcher started, and the variable that says so; None without a launcher."""
    return _first_number(SIZE_VARIABLES, environ)


def launched_rank(environ: Mapping[str, str]) -> int:
    """This process's number by the launcher's account; 0 without a launcher."""
    found = _first_number(RANK_VARIABLES, environ)
    return found[0] if found else 0


def local_rank(environ: Mapping[str, str]) -> int:
    """This process's number on its host, for the choice of a GPU; 0 without a launcher."""
    found = _first_number(LOCAL_RANK_VARIABLES, environ)
    return found[0] if found else 0


def may_print(environ: Mapping[str, str], patience: float = 10.0) -> bool:
    """Whether this process is the one to print an error that every process meets before there is an engine.

    Launchers end all processes at the first failure, so the others wait here (to be ended, normally) while
    the first one prints and exits.
    """
    if launched_rank(environ) == 0:
        return True
    time.sleep(patience)
    return False


def check_size(engine_size: int, environ: Mapping[str, str]) -> None:
    """Raise EngineError when the launcher started another number of processes than the engine sees."""
    launched = launched_size(environ)
    if launched is None or launched[0] == engine_size:
        return
    size, variable = launched
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
    raise EngineError(f"the launcher says {size} processes ({variable}), the engine says {engine_size}: {cause}")


def allocation_warning(engine_size: int, environ: Mapping[str, str]) -> str | None:
    """A remark when the allocation has room for another number of processes than run. Never an error:
    an allocation may be shared by several steps."""
    found = _first_number(ALLOCATION_VARIABLES, environ)
    if found is None or found[0] == engine_size:
        return None
    return (
        f"the allocation has {found[0]} tasks ({found[1]}), this run uses {engine_size}; "
        "if that is not meant, start it with srun or mpirun -n"
    )


def _first_number(names: tuple[str, ...], environ: Mapping[str, str]) -> tuple[int, str] | None:
    for name in names:
        text = environ.get(name, "").strip()
        if text.isdigit():
            return int(text), name
    return None
