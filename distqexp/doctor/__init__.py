"""``distqexp doctor``: checks of the machine, the ranks and the folders before anything is read or spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distqexp.doctor.allocation import check_time
from distqexp.doctor.facts import by_host
from distqexp.doctor.findings import Finding, Report, Status
from distqexp.doctor.hosts import check_clock, check_entropy, check_gpus, check_threads, check_versions
from distqexp.doctor.launching import check_large, check_launcher, check_mpi, check_size
from distqexp.doctor.mpi import Command, run_program
from distqexp.doctor.storage import check_hdf5, check_ledger, check_locks, check_shared, check_space
from distqexp.doctor.survey import Survey, Wishes, take_survey
from distqexp.doctor.world import open_world

__all__ = ["CHECKS", "Report", "Status", "Survey", "Wishes", "examine", "judge"]

CHECKS: tuple[Callable[[Survey], Finding], ...] = (
    check_versions,
    check_mpi,
    check_launcher,
    check_size,
    check_threads,
    check_gpus,
    check_shared,
    check_hdf5,
    check_locks,
    check_space,
    check_clock,
    check_large,
    check_entropy,
    check_time,
    check_ledger,
)
"""All checks, in the order in which they are told."""


def judge(survey: Survey) -> Report:
    """Return what every check finds in a survey."""
    return Report([check(survey) for check in CHECKS], len(survey.ranks), list(by_host(survey.ranks)))


def examine(wishes: Wishes, environ: Mapping[str, str], command: Command = run_program) -> tuple[Report | None, bool]:
    """Examine the machine. Collective: every rank of a launcher calls it.

    Returns:
        The report on the process that prints it, None on the others; and, everywhere, whether something is at fault.
    """
    world = open_world(environ, command)
    survey = take_survey(wishes, world, environ, command)
    report = None if survey is None else judge(survey)
    at_fault = world.from_first(report is not None and report.count(Status.FAULT) > 0)
    return (report if world.prints else None), at_fault
