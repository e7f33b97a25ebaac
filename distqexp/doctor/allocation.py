"""The check of the time that is left in a batch job's allocation."""

from __future__ import annotations

import re
from collections.abc import Mapping

from distqexp.doctor.findings import Finding, graded
from distqexp.doctor.mpi import Command
from distqexp.doctor.survey import Survey

LEAST_SECONDS = 15 * 60
"""With less time left a job hardly gets to its first checkpoint."""


def check_time(survey: Survey) -> Finding:
    """There is time left in the allocation."""
    left = time_left(survey.environ, survey.command, survey.now)
    expected = f"at least {LEAST_SECONDS // 60} minutes, where a scheduler sets a limit"
    if left is None:
        return graded("time", "not known", expected)
    seconds, source = left
    remedy = "ask for more time; a run that is signalled before the end goes on with --resume"
    return graded(
        "time",
        f"{seconds / 60:.0f} minutes ({source})",
        expected,
        fault=f"the time is over: {remedy}" if seconds <= 0 else "",
        warning=remedy if seconds < LEAST_SECONDS else "",
    )


def time_left(environ: Mapping[str, str], command: Command, now: float) -> tuple[float, str] | None:
    """Return the seconds that are left in the allocation, and who says so; None where nobody says."""
    end = environ.get("SLURM_JOB_END_TIME", "")
    if end.isdigit():
        return int(end) - now, "SLURM_JOB_END_TIME"
    for variable, words, read in (
        ("SLURM_JOB_ID", ["squeue", "-h", "-o", "%L", "-j"], _clock_words),
        ("PBS_JOBID", ["qstat", "-f"], _pbs),
        ("LSB_JOBID", ["bjobs", "-noheader", "-o", "time_left"], _lsf),
    ):
        if job := environ.get(variable):
            seconds = read(command([*words, job]) or "")
            if seconds is not None:
                return seconds, words[0]
    return None


def _clock_words(words: str) -> float | None:
    """Return the seconds of ``days-hours:minutes:seconds``, of which the left parts may be absent."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", words.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _pbs(words: str) -> float | None:
    limit = re.search(r"Resource_List\.walltime = ([\d:]+)", words)
    used = re.search(r"resources_used\.walltime = ([\d:]+)", words)
    whole = _clock_words(limit[1]) if limit else None
    return None if whole is None else whole - ((_clock_words(used[1]) if used else None) or 0.0)


def _lsf(words: str) -> float | None:
    match = re.match(r"\s*(\d+):(\d+)", words)
    return None if match is None else (int(match[1]) * 60 + int(match[2])) * 60.0
