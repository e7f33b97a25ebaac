"""What a report shows of a run, read from the files of its folder: certificate.json, report.json, progress.jsonl and an audit's."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distqexp.errors import FileContentError, StorageError, UsageError
from distqexp.report.progress import FILE_NAME as PROGRESS

FIGURES = "report.json"
"""The file of the figures that a run stores for its report."""

_LARGEST = 16 << 20
"""A file of more bytes is not read."""

_AUDITS = ("audit.json", "audit-run.json")


@dataclass(frozen=True)
class Audit:
    """An audit beside a run, as its file says it.

    Attributes:
        name: The name of the file.
        holds: Whether nothing was found beyond the claim.
        lines: What was found, a line each.
        picture: The plot as a data URI, or None.
    """

    name: str
    holds: bool
    lines: tuple[str, ...]
    picture: str | None


@dataclass(frozen=True)
class Run:
    """A run's folder, as far as a report shows it. All of it is public.

    Attributes:
        folder: The folder.
        certificate: The certificate.
        figures: What report.json holds; empty where there is none.
        seconds: By stage, the seconds of all rounds together; empty where nothing is known.
        last: Seconds since the epoch at the last event of the run; None where nothing is known.
        audits: The audits whose files lie in the folder or in its folder audit.
    """

    folder: Path
    certificate: Mapping[str, Any]
    figures: Mapping[str, Any]
    seconds: Mapping[str, float]
    last: float | None
    audits: tuple[Audit, ...]

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name or str(self.folder)


def read_run(folder: Path) -> Run:
    """Read what a report shows of a run's folder.

    Raises:
        UsageError: There is no such folder, or no certificate in it.
        FileContentError: A file is not what its name says.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; expected the folder of a run")
    if not (folder / "certificate.json").exists():
        raise UsageError(
            f"{folder}: no certificate.json; expected the folder of a run that came to its end: go on with it by --resume"
        )
    certificate = _read(folder / "certificate.json")
    figures = _read(folder / FIGURES) if (folder / FIGURES).exists() else {}
    if figures and figures.get("plan_id") != certificate.get("plan_id"):
        raise FileContentError(
            f"{folder / FIGURES}: of plan {str(figures.get('plan_id'))[:16]}, the certificate is of "
            f"{str(certificate.get('plan_id'))[:16]}; expected files of one run"
        )
    seconds, last = _times(folder / PROGRESS)
    return Run(folder, certificate, figures, seconds, last, _audits(folder, str(certificate.get("plan_id"))))


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(_bytes(path))
    except (ValueError, RecursionError):
        raise FileContentError(f"{path}: not readable as JSON; make it anew with the run, or take a copy") from None
    if not isinstance(tree, dict):
        raise FileContentError(f"{path}: found a {type(tree).__name__}; expected an object of JSON")
    return tree


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST:
            raise FileContentError(f"{path}: more than {_LARGEST >> 20} MiB; expected a file of distqexp")
        return path.read_bytes()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise StorageError(f"{path}: can't be read ({reason}); check its owner and mode") from error


def _times(path: Path) -> tuple[dict[str, float], float | None]:
    """Add up the seconds of the stages that ended. Lines that are no events are passed over: a kill may have cut one."""
    seconds: dict[str, float] = {}
    last: float | None = None
    if not path.exists():
        return seconds, last
    for line in _bytes(path).splitlines():
        try:
            event = json.loads(line)
            stage, share, took = str(event["stage"]), event["share"], float(event["seconds"])
            last = float(event["time"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if share == 1:
            seconds[stage] = seconds.get(stage, 0.0) + took
    return seconds, last


def _audits(folder: Path, plan_id: str) -> tuple[Audit, ...]:
    paths = [place / name for place in (folder, folder / "audit") for name in _AUDITS]
    found = [_audit(path) for path in paths if path.exists() and _concerns(path, plan_id)]
    return tuple(found)


def _concerns(path: Path, plan_id: str) -> bool:
    """Whether an audit is of this plan. That of a whole run has a plan of its own, with public records in the place of private ones."""
    return path.name == "audit-run.json" or _read(path).get("plan_id") == plan_id


def _audit(path: Path) -> Audit:
    tree = _read(path)
    try:
        if path.name == "audit.json":
            lines = [f"{one['pair']}: {_found(one)}" for one in tree["findings"]]
        else:
            lines = [
                f"{one['score']}: {one['correct']} of {one['guesses']} guesses right; at least mu {one['mu']:.3g} was given away, "
                f"mu {tree['claim']['mu']:.3g} is claimed"
                for one in (tree["canaries"], *tree["members"])
            ]
        holds = bool(tree["holds"])
        lines += [str(text) for text in tree["caveats"]]
    except (KeyError, TypeError, ValueError):
        raise FileContentError(f"{path}: not an audit of distqexp; make it anew: distqexp audit") from None
    plot = path.with_suffix(".png")
    content = _bytes(plot) if plot.exists() else b""
    picture = "data:image/png;base64," + base64.b64encode(content).decode() if content[:4] == b"\x89PNG" else None
    return Audit(path.name, holds, tuple(lines), picture)


def _found(finding: Mapping[str, Any]) -> str:
    found = f"at least epsilon {finding['epsilon']:.3g} was found"
    if "claimed_epsilon" in finding:
        return f"{found}; epsilon {finding['claimed_epsilon']:.3g} is claimed"
    return f"{found}, with mu {finding['mu']:.3g}; mu {finding['claimed_mu']:.3g} is claimed"
