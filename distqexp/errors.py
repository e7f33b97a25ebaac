"""Errors for people: one line each, with the exit code that a launcher or a script can act on."""

from __future__ import annotations


class DistqexpError(Exception):
    """Base of every expected failure.

    The message is one line: what was wrong, the value found, the value expected, what to do. It never
    carries a value that derives from private records.
    """

    exit_code = 5


class UsageError(DistqexpError):
    """A bad command, configuration or path, k > d, or an integer grid that would overflow (exit code 2)."""

    exit_code = 2


class NotAvailableYet(UsageError):
    """A stage or an option that a later version brings (exit code 2)."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: not available yet")


class FileContentError(DistqexpError):
    """A file whose content is refused: corrupt, mismatched, of another plan (exit code 3)."""

    exit_code = 3


class RecordsChangedError(FileContentError):
    """A file of private records is not the one that the run, or the round, began with (exit code 3)."""


class BudgetError(DistqexpError):
    """The privacy budget of a population does not allow the release (exit code 4)."""

    exit_code = 4


class EngineError(DistqexpError):
    """A rank, worker or site failed, or the launcher and the engine disagree (exit code 5)."""

    exit_code = 5


class StorageError(DistqexpError):
    """The disk is full or a folder can't be written (exit code 6)."""

    exit_code = 6


class StoppedError(DistqexpError):
    """Stopped on request after a checkpoint: queue the job again with ``--resume`` (exit code 75)."""

    exit_code = 75


class InternalError(DistqexpError):
    """A figure that cannot be right, by a defect of distqexp itself; nothing was drawn or certified by it (exit code 70)."""

    exit_code = 70
