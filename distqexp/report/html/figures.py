"""The charts of a run, from the figures of its report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distqexp.report.html.charts import Axis, Series, bar, plot, rows
from distqexp.report.html.intervals import of_share
from distqexp.report.html.reading import Run
from distqexp.report.html.words import METRICS, duration, metric_rows, number

SIDES = ("before", "after")
SHARE = Axis.over("", [], low=0.0, high=1.0).ticks


def charts_of(run: Run, name: str) -> dict[str, str | None]:
    """Return the charts of a run as SVG text by their names, None where its figures don't allow one; ``name`` begins their ids."""
    return {
        "roc": _roc(run, name),
        "calibration": _calibration(run, name),
        "public": _public(run, name),
        "curve": _curve(run, name),
        "budget": _budget(run, name),
        "times": _times(run, name),
    }


def confusion_of(run: Run) -> dict[str, list[list[tuple[int, int]]]]:
    """Return for before and after the cells of the confusion matrix: how many records, and how dark (0 to 4)."""
    evaluation = run.figures.get("evaluation", {})
    matrices: dict[str, list[list[tuple[int, int]]]] = {}
    for when in SIDES:
        cells = evaluation.get(when, {}).get("confusion")
        if cells:
            matrices[when] = [
                [(int(count), _shade(int(count), [int(one) for one in row])) for count in row] for row in cells
            ]
    return matrices


def _shade(count: int, row: Sequence[int]) -> int:
    return 0 if count == 0 else 1 + min(3, int(4 * count / sum(row)))


def metric_chart(runs: Sequence[Run], key: str, name: str) -> str:
    """Return a chart of a metric of several runs against their epsilons, with intervals."""
    title = METRICS[key][0]
    points = []
    for number_, run in enumerate(runs, start=1):
        (row,) = [row for row in metric_rows(run) if row.key == key]
        points.append((float(run.certificate["epsilon"]), row, str(number_)))
    points.sort(key=lambda point: point[0])
    epsilons = [epsilon for epsilon, _, _ in points]
    ends = [end for _, row, _ in points for end in (row.after.low, row.after.high, row.before.value)]
    axes = (Axis.over("epsilon", epsilons, low=0.0), Axis.over(title, ends))
    after = Series(
        "released, 95 % interval", [(epsilon, row.after.value) for epsilon, row, _ in points], "after", line=False, dots=True,
        bars=[(row.after.low, row.after.high) for _, row, _ in points], labels=[label for _, _, label in points],
    )  # fmt: skip
    before = Series(
        "start", [(epsilon, row.before.value) for epsilon, row, _ in points], "before", line=False, dots=True
    )
    words = f"The {title} of {len(runs)} runs against their epsilon; the numbers are those of the table."
    return plot(name, f"{title} against epsilon", words, axes, [before, after])


def _sides(run: Run) -> dict[str, dict[str, Any]]:
    evaluation = run.figures.get("evaluation", {})
    return {when: evaluation[when] for when in SIDES if when in evaluation}


def _roc(run: Run, name: str) -> str | None:
    curves = {when: side["roc"] for when, side in _sides(run).items() if side.get("roc")}
    if not curves:
        return None
    axes = (Axis("false positive rate", 0.0, 1.0, SHARE), Axis("true positive rate", 0.0, 1.0, SHARE))
    chance = Series("", [(0.0, 0.0), (1.0, 1.0)], "chance")
    series = [chance, *(Series(when, [(x, y) for x, y in curve["points"]], when) for when, curve in curves.items())]
    areas = " and ".join(f"{number(curve['area'])} {when}" for when, curve in curves.items())
    return plot(f"{name}-roc", "ROC curve", f"The area under the curve is {areas}.", axes, series)


def _calibration(run: Run, name: str) -> str | None:
    sides = {when: side["calibration"] for when, side in _sides(run).items() if side.get("calibration")}
    if not sides:
        return None
    if run.figures["evaluation"]["kind"] == "regression":
        values = [float(bin[key]) for bins in sides.values() for bin in bins for key in ("predicted", "found")]
        axis = Axis.over("mean prediction of each tenth of the records", values)
        axes = (axis, Axis("mean true value", axis.low, axis.high, axis.ticks))
        series = [
            Series(when, [(float(bin["predicted"]), float(bin["found"])) for bin in bins], when, dots=True)
            for when, bins in sides.items()
        ]
        ends = (axis.low, axis.high)
    else:
        axes = (Axis("predicted probability", 0.0, 1.0, SHARE), Axis("share found", 0.0, 1.0, SHARE))
        series = [_calibration_series(when, bins) for when, bins in sides.items()]
        ends = (0.0, 1.0)
    ideal = Series("", [(ends[0], ends[0]), (ends[1], ends[1])], "chance")
    words = "The nearer the points are to the diagonal, the more the predictions can be taken at their word."
    return plot(f"{name}-calibration", "Calibration", words, axes, [ideal, *series])


def _calibration_series(when: str, bins: Sequence[dict[str, float]]) -> Series:
    shares = [of_share(int(bin["found"]), int(bin["records"])) for bin in bins]
    return Series(
        when, [(float(bin["predicted"]), share.value) for bin, share in zip(bins, shares, strict=True)], when, dots=True,
        bars=[(share.low, share.high) for share in shares],
    )  # fmt: skip


def _public(run: Run, name: str) -> str | None:
    losses = [one for one in run.figures.get("public_loss", []) if one["loss"] is not None]
    if not losses:
        return None
    points = [(float(one["rounds"]), float(one["loss"])) for one in losses]
    last = max(1.0, points[-1][0])
    marks = Axis.over("rounds released", [0.0, last], low=0.0, high=last)
    whole = tuple(tick for tick in marks.ticks if tick[0] == int(tick[0]))
    axes = (Axis(marks.label, 0.0, last, whole), Axis.over("mean loss", [loss for _, loss in points]))
    words = f"From {number(points[0][1])} at the start to {number(points[-1][1])} after the last round."
    return plot(
        f"{name}-public", "Loss on public records by round", words, axes, [Series("", points, "after", dots=True)]
    )


def _curve(run: Run, name: str) -> str | None:
    points = [(float(x), float(y)) for x, y in run.figures.get("curve", []) if y is not None]
    if len(points) < 2:
        return None
    epsilon, delta = float(run.certificate["epsilon"]), float(run.certificate["delta"])
    low = max(min(y for _, y in points), -30.0)
    shown = [(x, y) for x, y in points if y >= low]
    upward = Axis.over("delta", [low, 0.0], high=0.0)
    decades = tuple((tick, f"1e{tick:.0f}" if tick else "1") for tick, _ in upward.ticks if tick == int(tick))
    axes = (Axis.over("epsilon", [x for x, _ in points], low=0.0), Axis("delta", upward.low, 0.0, decades))
    series = [Series("", shown, "after")]
    if delta > 0 and math.log10(delta) >= upward.low:
        series.append(Series("stated", [(epsilon, math.log10(delta))], "before", line=False, dots=True))
    words = f"For each epsilon the smallest delta that the releases are known to have; stated are {number(epsilon)} and {number(delta)}."
    return plot(f"{name}-curve", "Epsilon and delta", words, axes, series)


def _budget(run: Run, name: str) -> str | None:
    budget = budget_of(run)
    if budget is None:
        return None
    pieces = [("spent", budget["before"]), ("after", budget["run"])]
    words = f"Of epsilon {number(budget['cap'])} {number(budget['before'])} was spent before, {number(budget['after'])} after this run."
    return bar(f"{name}-budget", "The budget before and after this run", words, pieces, budget["cap"])


def budget_of(run: Run) -> dict[str, float] | None:
    """Return the cap, what was spent before and after, the run's own part and what is left, as epsilons; None if unknown."""
    budget = run.figures.get("budget")
    if not budget or budget["before"] is None or budget["after"] is None:
        return None
    cap, before, after = (float(budget[key]) for key in ("epsilon", "before", "after"))
    return {
        "cap": cap, "before": before, "after": after, "run": max(after - before, 0.0), "left": max(cap - after, 0.0),
        "delta": float(budget["delta"]),
    }  # fmt: skip


def _times(run: Run, name: str) -> str | None:
    if not run.seconds:
        return None
    values = [(stage, seconds, duration(seconds)) for stage, seconds in run.seconds.items()]
    total = duration(sum(run.seconds.values()))
    return rows(f"{name}-times", "Time by stage", f"All stages together took {total}.", values)
