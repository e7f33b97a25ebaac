"""Checks of MPI, of the launcher, and of the number of ranks."""

from __future__ import annotations

from distqexp.doctor.findings import Finding, graded
from distqexp.doctor.mpi import ANY_FAMILY, family
from distqexp.doctor.survey import Survey
from distqexp.doctor.world import LARGE
from distqexp.engines.launcher import allocation_warning, launched_size, size_conflict

_REBUILD = "MPI4PY_BUILD_MPICC=mpicc pip install --no-binary mpi4py 'distqexp[mpi]' with the site's MPI loaded"


def check_mpi(survey: Survey) -> Finding:
    """The MPI library that is loaded is of the family, and not older than the standard, that mpi4py was built for."""
    mpi, wanted = survey.mpi, launched_size(survey.environ) is not None or _wants_mpi(survey)
    if mpi.problem:
        remedy = "install distqexp[mpi] for the site's own MPI, or distqexp[mpi-bundled] where there is none"
        return graded(
            "mpi",
            mpi.problem,
            "mpi4py with an MPI library",
            fault=remedy if wanted else "",
            warning=f"{remedy}; one process needs none",
        )
    loaded = family(mpi.library)
    words = f"{mpi.library}, mpi4py {survey.ranks[0].versions.get('mpi4py', '')} built for {mpi.built_for or 'an unnamed MPI'}"
    differ = bool(mpi.built_for and loaded) and mpi.built_for not in (loaded, ANY_FAMILY)
    return graded(
        "mpi",
        words,
        "one family of MPI, by its binary interface",
        fault=f"build mpi4py against the library that is loaded: {_REBUILD}" if differ else "",
        warning=""
        if mpi.standard >= mpi.built_standard
        else f"the library keeps MPI {_dots(mpi.standard)}, mpi4py expects {_dots(mpi.built_standard)}: {_REBUILD}",
    )


def check_launcher(survey: Survey) -> Finding:
    """A launcher is at hand, and it is one of the MPI that mpi4py loads."""
    launch = launched_size(survey.environ)
    if launch is not None:
        return graded("launcher", f"{launch[1]} is {launch[0]}", "a launcher, or one process")
    if survey.launcher is None:
        return graded(
            "launcher",
            "none on PATH nor beside this Python",
            "mpirun, mpiexec or srun",
            warning="load the site's MPI module, or install distqexp[mpi-bundled]; one process needs none",
        )
    path, version = survey.launcher
    own, library = family(version), family(survey.mpi.library)
    differ = bool(own and library) and own != library
    return graded(
        "launcher",
        f"{path} ({version[:60] or 'no version'})",
        f"one of {library or 'the MPI'} that mpi4py loads",
        fault="every process would take itself for the only one: put the mpirun of the MPI that mpi4py was built for first on PATH"
        if differ
        else "",
    )


def check_size(survey: Survey) -> Finding:
    """The launcher and MPI agree on the number of ranks, and the allocation holds as many."""
    size = survey.ranks[0].size
    conflict = size_conflict(size, survey.environ)
    if conflict is not None:
        return graded("size", f"{size} by MPI", f"{conflict.size} ({conflict.variable})", fault=conflict.cause)
    remark = allocation_warning(size, survey.environ) if launched_size(survey.environ) else None
    return graded("size", f"{size} by MPI", "as many as the launcher started", warning=remark or "")


def check_large(survey: Survey) -> Finding:
    """Vectors of more than 2^31 elements reach every rank."""
    expected = "vectors beyond 2^31 elements in slices of at most 2^27"
    if survey.large is None:
        found = "not tried; the engine's messages stay below 2^27 elements (--large, under a launcher, broadcasts 2^31)"
        return graded("large", found, expected)
    remedy = "the network or the memory fails on large messages: update the MPI, or lower k"
    found = f"{LARGE:,} bytes {'arrived' if survey.large else 'did not arrive'} on every rank"
    return graded("large", found, expected, fault="" if survey.large else remedy)


def _wants_mpi(survey: Survey) -> bool:
    return survey.config is not None and survey.config.engine.kind == "mpi"


def _dots(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
