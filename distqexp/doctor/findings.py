"""What a check finds: ok, a warning or a fault; the value found, the value expected and the remedy, in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: The name of the check.
        status: How bad it is.
        found: The value found.
        expected: The value expected.
        remedy: What to do; empty where nothing is to be done.
    """

    check: str
    status: Status
    found: str
    expected: str
    remedy: str = ""

    def line(self) -> str:
        """Return the finding as one line."""
        words = f"{self.check}: {self.found}; expected {self.expected}" + (f": {self.remedy}" if self.remedy else "")
        return f"{self.status:7} {' '.join(words.split())}"


def graded(check: str, found: str, expected: str, *, fault: str = "", warning: str = "") -> Finding:
    """Return a fault where ``fault`` is a remedy, else a warning where ``warning`` is one, else that all is well."""
    status = Status.FAULT if fault else Status.WARNING if warning else Status.OK
    return Finding(check, status, found, expected, fault or warning)


@dataclass(frozen=True)
class Report:
    """All findings about a machine."""

    findings: Sequence[Finding]
    ranks: int
    hosts: Sequence[str]

    def count(self, status: Status) -> int:
        """Return the number of findings with this status."""
        return sum(finding.status is status for finding in self.findings)

    def lines(self) -> list[str]:
        """Return a line a finding, and one that counts them."""
        faults, warnings = self.count(Status.FAULT), self.count(Status.WARNING)
        ranks = f"{self.ranks} rank" + ("s" if self.ranks > 1 else "")
        return [
            *(finding.line() for finding in self.findings),
            f"{ranks} on {', '.join(self.hosts)}: {faults} fault(s), {warnings} warning(s), "
            f"{len(self.findings)} checks",
        ]

    def tree(self) -> dict[str, Any]:
        """Return the JSON object that ``--json`` prints."""
        return {
            "ranks": self.ranks,
            "hosts": list(self.hosts),
            "faults": self.count(Status.FAULT),
            "warnings": self.count(Status.WARNING),
            "findings": [asdict(finding) for finding in self.findings],
        }
