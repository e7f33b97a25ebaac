"""The report of a run, or of several side by side: one page of HTML that needs no network, no script and no other file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distqexp.errors import FileContentError, UsageError
from distqexp.privacy.ledger.left import amount_left
from distqexp.report.html import figures, words
from distqexp.report.html.reading import FIGURES, Run, read_run
from distqexp.storage.atomic import write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["FIGURES", "REPORT", "is_report", "report_page", "write_report"]

REPORT = "report.html"
"""The name of the report in a run's folder."""

_HERE = Path(__file__).parent


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the report of one run, or of several side by side, atomically over whatever was at ``out``.

    Everything in it is public: it comes from the certificate, from report.json, progress.jsonl and an audit's files, and no figure of
    private evaluation records is among them.

    Args:
        folders: The folders of finished runs, at least one.
        out: The page to write.

    Raises:
        UsageError: There is no such folder, no certificate in it, or no folder of ``out``.
        FileContentError: A file is not what its name says.
    """
    if not folders:
        raise UsageError("report: no run; expected the folder of one or more finished runs")
    write_atomic(out, report_page([read_run(folder) for folder in folders]).encode())


def is_report(path: Path) -> bool:
    """Return whether a file is a page that ``write_report`` wrote."""
    try:
        with path.open("rb") as file:
            return b'content="distqexp report"' in file.read(1000)
    except OSError:
        return False


def report_page(runs: Sequence[Run]) -> str:
    """Return the page of these runs.

    Raises:
        FileContentError: A file of a run lacks a figure, or has one that can't be.
    """
    # Imported here: a rank that trains has no use for templates.
    from jinja2 import UndefinedError

    style = (_HERE / "style.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    shown = [_run_of(run, f"run-{place}", alone=len(runs) == 1) for place, run in enumerate(runs, start=1)]
    single = len(shown) == 1
    page = _templates().get_template("run.html.j2" if single else "runs.html.j2")
    comparison = None if single else _comparison(runs)
    try:
        return page.render(
            style=style,
            digest=digest,
            number=words.number,
            left_of=amount_left,
            runs=shown,
            run=shown[0],
            comparison=comparison,
        )
    except (UndefinedError, TypeError, ValueError) as error:
        where = runs[0].folder if single else "report"
        raise FileContentError(
            f"{where}: certificate.json or {FIGURES} is not as a run writes it ({str(error)[:80]}); take the files of the run itself"
        ) from None


@cache
def _templates() -> Environment:
    """Return the templates, which a process compiles once."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _run_of(run: Run, name: str, *, alone: bool) -> dict[str, Any]:
    """Return all that the page says of a run. Raises FileContentError."""
    try:
        return {
            "id": name,
            "name": run.name,
            "label": run.name if alone else f"{name.removeprefix('run-')}: {run.name}",
            "certificate": run.certificate,
            "withheld": _withheld(run),
            "sentences": words.sentences(run),
            "verdict": words.verdict(run),
            "metrics": [(row, words.between(row.before), words.between(row.after)) for row in words.metric_rows(run)],
            "evaluation": run.figures.get("evaluation", {}),
            "classes": [str(name) for name in run.figures.get("classes", [])],
            "confusion": figures.confusion_of(run),
            "charts": figures.charts_of(run, name),
            "budget": figures.budget_of(run),
            "population": run.figures.get("population"),
            "public_loss": run.figures.get("public_loss", []),
            "curve": [point for point in run.figures.get("curve", []) if point[1] is not None][::5],
            "held_back": words.held_back(run),
            "kept": words.kept(run),
            "covered": words.covered(run),
            "not_covered": list(run.certificate["not_covered"]),
            "audits": run.audits,
            "times": [(stage, words.duration(seconds)) for stage, seconds in run.seconds.items()],
            "took_part": words.took_part(run),
            "day": words.day(run.last),
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise FileContentError(
            f"{run.folder}: certificate.json or {FIGURES} is not as a run writes it ({type(error).__name__} at {str(error)[:60]}); take "
            "the files of the run itself"
        ) from None


def _withheld(run: Run) -> str | None:
    """Return why there are no figures of evaluation records, or None where there are some."""
    evaluation = run.figures.get("evaluation", {})
    return (
        None
        if "records" in evaluation
        else words.WITHHELD.get(str(evaluation.get("withheld")), words.WITHHELD["absent"])
    )


def _comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the chart and the metric that several runs have in common; None where they have none."""
    key = words.common_metric(runs)
    chart = None if key is None else figures.metric_chart(runs, key, "comparison")
    return {"key": key, "name": key and words.METRICS[key][0], "chart": chart}
