"""Errors for people: each has a message of one line, and an exit code that a launcher or a script can act on."""

from __future__ import annotations


class DistqexpError(Exception):
    """The base class of every expected failure.

    The message is one line that says what was wrong, the value found, the value expected, and what to do. It never contains
    a value that derives from private records.
    """

    exit_code = 5


class UsageError(DistqexpError):
    """A bad command, configuration or path, k > d, or an integer grid that would overflow (exit code 2)."""

    exit_code = 2


class TooFewDirectionsError(UsageError):
    """Public gradients that span fewer directions than a subspace of them wants (exit code 2)."""


class NotAvailableYet(UsageError):
    """A stage or an option that is planned for a later version (exit code 2)."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: not available yet")


class FileContentError(DistqexpError):
    """A file whose content is refused because it is corrupt, mismatched or of another plan (exit code 3)."""

    exit_code = 3


class RecordsChangedError(FileContentError):
    """A file of private records that is not the one with which the run or the round began (exit code 3)."""


class BudgetError(DistqexpError):
    """A release that the privacy budget of a population does not allow (exit code 4)."""

    exit_code = 4


class EngineError(DistqexpError):
    """A rank, worker or site that failed, or a launcher and an engine that disagree (exit code 5)."""

    exit_code = 5


class StorageError(DistqexpError):
    """A disk that is full or a folder that can't be written (exit code 6)."""

    exit_code = 6


class StoppedError(DistqexpError):
    """A run that stopped on request: queue the job again with ``--resume`` (exit code 75)."""

    exit_code = 75


class InternalError(DistqexpError):
    """A figure that cannot be right, by a defect of distqexp; nothing was drawn or certified from it (exit code 70)."""

    exit_code = 70
