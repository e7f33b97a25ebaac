"""What a report says in words, and how it writes numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distqexp.report.html.intervals import Interval, of_area, of_change, of_mean, of_share
from distqexp.report.html.reading import Run
from distqexp.report.progress import duration as whole_duration

METRICS = {
    "accuracy": ("accuracy", "share of records whose class is right", True),
    "auroc": ("area under the ROC curve", "1 is perfect, 0.5 is chance", True),
    "log_loss": ("log loss", "lower is better", False),
    "mean_squared_error": ("mean squared error", "lower is better", False),
}
"""By the name of a metric: what people call it, how to read it, and whether more is better."""

WITHHELD = {
    "private": "The evaluation records are private, and the guarantee does not cover what is computed from them. So nothing of them is on "
    "this page.",
    "none": "The run had no evaluation records (data.eval), so nothing is known here of how good the model is.",
    "absent": "The evaluation records were not at hand when this page's figures were stored, or none of them could be used.",
}

MACHINES = {"serial": "one process", "mpi": "MPI", "dask": "Dask"}


class Row(NamedTuple):
    """A metric before and after a run.

    Attributes:
        key: Its name in files.
        name: Its name for people.
        hint: How to read it.
        before: With its interval.
        after: With its interval.
    """

    key: str
    name: str
    hint: str
    before: Interval
    after: Interval


class Verdict(NamedTuple):
    """How a run came out.

    Attributes:
        kind: "better", "worse" or "even"; "unknown" without evaluation records.
        words: The same in a sentence.
    """

    kind: str
    words: str


def number(value: float | None, digits: int = 4) -> str:
    """Write a number with so many digits that count; None and what is not finite in words."""
    if value is None or math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite"
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def between(interval: Interval) -> str:
    """Write an interval: its value, and its ends in brackets."""
    return f"{number(interval.value)} ({number(interval.low)} to {number(interval.high)})"


def duration(seconds: float) -> str:
    """Write seconds as people say them, with a decimal below ten."""
    return f"{seconds:.1f} s" if seconds < 10 else whole_duration(seconds)


def day(last: float | None) -> str | None:
    """Return the day of a time in UTC, or None where none is known."""
    return None if last is None else time.strftime("%Y-%m-%d", time.gmtime(last))


def metric_rows(run: Run) -> list[Row]:
    """Return the metrics of the evaluation records before and after; none where they were withheld."""
    evaluation = run.figures.get("evaluation", {})
    if "records" not in evaluation:
        return []
    kind, records = evaluation["kind"], int(evaluation["records"])
    found: dict[str, list[Interval]] = {}
    for when in ("before", "after"):
        side = evaluation[when]
        if kind != "regression":
            found.setdefault("accuracy", []).append(of_share(int(side["correct"]), records))
        if kind == "binary" and side["roc"] is not None:
            roc = side["roc"]
            found.setdefault("auroc", []).append(
                of_area(float(roc["area"]), int(roc["positives"]), int(roc["negatives"]))
            )
        name = "mean_squared_error" if kind == "regression" else "log_loss"
        found.setdefault(name, []).append(_mean_of(side["loss"], records))
    return [Row(key, *METRICS[key][:2], *pair) for key, pair in found.items() if len(pair) == 2]


def verdict(run: Run) -> Verdict:
    """Say whether the released model is better than the one that the run began with, beyond the noise of the evaluation."""
    evaluation = run.figures.get("evaluation", {})
    if "records" not in evaluation:
        return Verdict("unknown", "Whether the model became better is not known on this page.")
    records, paired = int(evaluation["records"]), evaluation["paired"]
    if evaluation["kind"] == "regression":
        change, name = _mean_of(paired["loss"], records), "mean squared error"
        better, worse = change.high < 0, not change.low <= 0
    else:
        change, name = of_change(int(paired["gained"]), int(paired["lost"]), records), "accuracy"
        better, worse = change.low > 0, change.high < 0
    moved = f"{name} changed by {number(change.value, 3)} (95 % interval {number(change.low, 3)} to {number(change.high, 3)})"
    if worse:
        return Verdict("worse", f"The run ended worse than it began: {moved}.")
    if better:
        return Verdict("better", f"The model became better: {moved}.")
    return Verdict("even", f"The change is within the noise of the evaluation: {moved}.")


def sentences(run: Run) -> list[str]:
    """Say in three sentences what was done, what is promised, and what came of it."""
    certificate, figures = run.certificate, run.figures
    rounds, size = len(certificate["rounds"]), int(certificate["subspace"]["d"])
    model = str(figures.get("model", "")).rpartition(":")[2]
    start = "a model pretrained on public records" if figures.get("pretrained") else "a given model"
    whom = f" of {figures['population']}" if figures.get("population") else ""
    done = (
        f"{start[0].upper()}{start[1:]}{f' ({model})' if model else ''} was fine-tuned on the private records{whom}, nominally "
        f"{int(certificate['units']):,} units, by moving {size:,} parameters in {rounds} round{'s' if rounds != 1 else ''}."
    )
    return [done, promise(run), f"{_outcome(run)}"]


def promise(run: Run) -> str:
    """Say what the guarantee means, or that there is none."""
    certificate = run.certificate
    if not certificate["private"]:
        return "There is NO privacy: the noise came from a known seed, as in a test."
    epsilon, delta = float(certificate["epsilon"]), float(certificate["delta"])
    odds = f"{number(math.exp(epsilon), 3)}" if epsilon < 20 else f"10^{epsilon / math.log(10):.0f}"
    chance = f", but for a chance of {number(delta, 2)}" if delta else ""
    return (
        f"Whoever sees the released model, and knows everything about all others, can raise or lower their odds that {certificate['unit']} "
        f"took part at most {odds}-fold (epsilon {number(epsilon)}{chance})."
    )


def _outcome(run: Run) -> str:
    evaluation, rows = run.figures.get("evaluation", {}), metric_rows(run)
    if not rows:
        return WITHHELD.get(str(evaluation.get("withheld")), WITHHELD["absent"])
    first = rows[0]
    return (
        f"On {int(evaluation['records']):,} evaluation records the {first.name} went from {number(first.before.value)} to "
        f"{number(first.after.value)}: {verdict(run).words[0].lower()}{verdict(run).words[1:]}"
    )


def held_back(run: Run) -> str | None:
    """Say in which rounds the guard halved the move, and how far; None where it never did."""
    rounds = run.certificate["rounds"]
    halved = [(int(entry["round"]) + 1, int(entry.get("halvings", 0))) for entry in rounds]
    cut = [f"1/{2**halvings} in round {number}" for number, halvings in halved if halvings]
    if not cut:
        return None
    listed = ", ".join(cut[:8]) + (", and so on" if len(cut) > 8 else "")
    return (
        f"The guard cut the move of {len(cut)} of {len(rounds)} rounds, to at most {listed}: beyond, the loss on public records or probes "
        "left its bound. This costs no privacy."
    )


def kept(run: Run) -> str | None:
    """Say how much of the run's way was kept, where not all of it was."""
    share, meaning = (run.certificate.get("kept", {}).get(name) for name in ("share", "meaning"))
    return None if share in (None, 1) else f"{meaning[0].upper()}{meaning[1:]}. This costs no privacy."


def covered(run: Run) -> list[str]:
    """Say what the guarantee covers, a line each."""
    certificate = run.certificate
    if not certificate["private"]:
        return ["Nothing: the noise came from a seed."]
    rounds = len(certificate["rounds"])
    return [
        f"The released parameters of all {rounds} round{'s' if rounds != 1 else ''}, together with everything that is computed from them: "
        "the model's files, its predictions, copies of it, and fine-tuning it further without these records.",
        f"Whom it protects: {certificate['unit']}. Neighbours: {certificate['adjacency']['meaning']}.",
        "Whatever else somebody knows or will come to know, and however much they compute.",
        *_shared_noise(certificate.get("noise_in_shares")),
    ]


def _shared_noise(figures: Mapping[str, Any] | None) -> list[str]:
    """Say against whom noise in shares protects; nothing where one party drew the noise."""
    if not figures:
        return []
    return [
        f"No party held the exact sum: each of {int(figures['sites'])} sites drew a share of the noise. The guarantee holds as long as "
        f"sites that were missing and sites that collude are at most {int(figures['tolerated'])} together; it does not hold against "
        "whoever saw one site's sums before they were pooled or masked.",
    ]


def took_part(run: Run) -> list[str]:
    """Say who took part, a line each."""
    figures = run.figures.get("took_part")
    if not figures:
        return []
    shards = [str(name) for name in figures["shards"]]
    sites = (
        "one shard of private records"
        if shards == ["all"]
        else f"{len(shards)} shard(s) of private records: {', '.join(shards)}"
    )
    processes = int(figures["processes"])
    if figures["engine"] is None:
        work = "each site and the coordinator by its own commands"
    else:
        work = f"{processes} process{'es' if processes != 1 else ''} ({MACHINES.get(figures['engine'], str(figures['engine']))})"
    public = "public records took part" if figures["public"] else "no public records took part"
    return [f"Records: {sites}; {public}.", f"Work: {work}."]


def common_metric(runs: Sequence[Run]) -> str | None:
    """Return the first metric that all runs have, or None."""
    keys = [[row.key for row in metric_rows(run)] for run in runs]
    return next((key for key in keys[0] if all(key in others for others in keys)), None)


def _mean_of(tree: dict[str, float | None], records: int) -> Interval:
    mean, deviation = tree["mean"], tree["deviation"]
    if mean is None or deviation is None:
        return Interval(math.nan, math.nan, math.nan)
    return of_mean(float(mean), float(deviation), records)
