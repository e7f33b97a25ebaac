"""The tables of the bank: what came out of runs, and how often it was better, worse, and ahead."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

Key = tuple[str, str, float, int]
Run = dict[str, Any]
Runs = dict[Key, Run]

BEGIN, END = "<!-- written by scripts/bank_of_tasks.py -->", "<!-- end of what the script wrote -->"

HEAD = ("| task | units | start (epsilon 0) | distqexp | gain, standard error | Opacus |", "|---|---|---|---|---|---|")


def mean_after(runs: Runs, name: str, method: str, epsilon: float) -> float | None:
    """The mean error over seeds; None where the method could not run the task, or was not run."""
    found = _of(runs, name, method, epsilon)
    return statistics.fmean(run["after"] for run in found) if found and all("after" in run for run in found) else None


def counts(runs: Runs) -> list[str]:
    """One line for each epsilon: how many tasks are better than their start, or worse beyond chance, and ahead."""
    lines = []
    for epsilon in _epsilons(runs):
        names = [name for name in _names(runs) if mean_after(runs, name, "distqexp", epsilon) is not None]
        better = sum(_gain(runs, name, epsilon)[0] > 0 for name in names)
        worse = [name for name in names if _gain(runs, name, epsilon)[0] < -2 * _gain(runs, name, epsilon)[1]]
        single = sum(
            run["gain"] < -2 * run["standard_error"] for name in names for run in _of(runs, name, "distqexp", epsilon)
        )
        both = [name for name in names if mean_after(runs, name, "Opacus", epsilon) is not None]
        ahead = sum(_lead(runs, name, epsilon) > 0 for name in both)
        behind = [name for name in both if _lead(runs, name, epsilon) < 0]
        failed = [name for name in _names(runs) if name not in names]
        seeds = max((len(_of(runs, name, "distqexp", epsilon)) for name in names), default=0)
        lines.append(
            f"epsilon {epsilon:g} ({seeds} seed{'s' if seeds != 1 else ''}): {better} of {len(names)} tasks end better than their start, "
            f"{len(worse)} worse by more than 2 standard errors{_listed(worse)} ({single} single runs); ahead of Opacus in {ahead} of "
            f"{len(both)}, behind in {len(behind)}{_listed(behind)}"
            + (f"; can't run: {'; '.join(failed)}" if failed else "")
        )
    return lines


def with_tables(page: str, runs: Runs) -> str:
    """Return the page with today's tables between its two marks."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise SystemExit(f"--table: no marks in the page; expected {BEGIN} and {END}")
    return before + "\n".join([BEGIN, "", *_tables(runs), END]) + after


def _tables(runs: Runs) -> Iterator[str]:
    for line in counts(runs):
        yield f"- {line}."
    work = {
        method: sum(run["cpu_seconds"] for key, run in runs.items() if key[1] == method) / 60
        for method in ("distqexp", "Opacus")
    }
    yield f"- {len(runs):,} runs in all; those of distqexp took {work['distqexp']:.0f} core minutes, those of Opacus {work['Opacus']:.0f}."
    for epsilon in _epsilons(runs):
        yield from ("", f"### Epsilon {epsilon:g}", "", *HEAD)
        for name in _names(runs):
            yield _row(runs, name, epsilon)
    yield ""


def _row(runs: Runs, name: str, epsilon: float) -> str:
    own, theirs = mean_after(runs, name, "distqexp", epsilon), mean_after(runs, name, "Opacus", epsilon)
    if own is None:
        return f"| {name} | | | can't run | | {_figure(theirs)} |"
    gain, error = _gain(runs, name, epsilon)
    first = _of(runs, name, "distqexp", epsilon)[0]
    figures = [_figure(value) for value in (own, theirs)]
    if theirs is not None and own != theirs:
        better = 0 if own < theirs else 1
        figures[better] = f"**{figures[better]}**"
    return f"| {name} | {first['units']:,} | {_figure(first['before'])} | {figures[0]} | {_signed(gain)} ({error:.3f}) | {figures[1]} |"


def _figure(value: float | None) -> str:
    if value is None:
        return "can't run"
    return f"{value:.3f}" if value < 100 else f"{value:.1e}"


def _signed(gain: float) -> str:
    return f"{gain:+.3f}" if abs(gain) < 100 else f"{gain:+.1e}"


def _listed(names: list[str]) -> str:
    return f" ({'; '.join(names)})" if names else ""


def _lead(runs: Runs, name: str, epsilon: float) -> float:
    own, theirs = mean_after(runs, name, "distqexp", epsilon), mean_after(runs, name, "Opacus", epsilon)
    assert own is not None
    assert theirs is not None
    return theirs - own


def _gain(runs: Runs, name: str, epsilon: float) -> tuple[float, float]:
    """The mean gain over seeds, and the largest standard error of a run's, which more seeds don't lower: the records are the same."""
    found = _of(runs, name, "distqexp", epsilon)
    return statistics.fmean(run["gain"] for run in found), max(run["standard_error"] for run in found)


def _of(runs: Runs, name: str, method: str, epsilon: float) -> list[Run]:
    return [run for key, run in runs.items() if key[:3] == (name, method, epsilon)]


def _names(runs: Runs) -> list[str]:
    return list(dict.fromkeys(key[0] for key in runs))


def _epsilons(runs: Runs) -> list[float]:
    return sorted({key[2] for key in runs})
