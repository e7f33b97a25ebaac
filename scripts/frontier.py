"""Accuracy against epsilon: distqexp beside the baselines that would beat it if they could, and beside no privacy.

    python scripts/frontier.py --tuned runs/tuned --out runs/frontier              # MNIST rotated by 45 degrees
    python scripts/frontier.py --task icu --tuned runs/tuned-icu --out runs/icu    # ICU mortality
    python scripts/frontier.py --out runs/frontier --budget-minutes 0              # summary of what is there

All methods start at the same weights, those of the base config's plan, and see the same records. The baselines are Opacus
(DP-SGD and DP-Adam), gradient descent on all records, on linear models with one logit also objective perturbation and
DP-Newton in coordinates that public records whiten, training on public records alone (epsilon 0), and Adam without privacy.

A baseline's settings (clip, rate, batch, steps and so on) are searched one axis at a time at every epsilon, and chosen by
the mean over three noise seeds (and all splits) of the metric on the evaluation records. That choice costs privacy that no
baseline is charged for. distqexp's configs come from public data alone (``distqexp tune`` writes ``tuned-eps1.toml`` and so
on). Every run is a line of ``runs.jsonl``, and the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
TASKS: dict[str, dict[str, Any]] = {
    "mnist": {
        "config": REPOSITORY / "configs" / "mnist-rotated.toml",
        "epsilons": [0.25, 0.5, 1.0, 2.0, 4.0, 8.0],
        "epochs": [40],
        "splits": 1,
        "passes": 20,
    },
    "icu": {
        "config": REPOSITORY / "configs" / "icu.toml",
        "epsilons": [0.25, 0.5, 1.0],
        "epochs": [5, 10, 20, 30],
        "splits": 5,
        "passes": 4,
    },
}
SMOKE: dict[str, Any] = {
    "config": REPOSITORY / "configs" / "digits.toml",
    "epsilons": [1.0],
    "epochs": [2],
    "splits": 1,
    "passes": 20,
    "seeds": 2,
    "batches": [0],
    "momenta": [0.0],
    "sgd_rates": [0, 1],
    "adam_rates": [-5, -4],
    "clips": [0],
    "steps": [2],
}
SETTINGS: dict[str, Any] = {
    "seeds": 5,
    "batches": [256, 1024, 0],
    "momenta": [0.0, 0.9],
    "sgd_rates": [-4, -3, -2, -1, 0],
    "adam_rates": [-7, -6, -5, -4, -3],
    "clips": [-2, -1, 0, 1, 2],
    "steps": [1, 2, 3, 4, 5],
}


def tuned_configs(folders: Sequence[str], epsilons: Sequence[float]) -> dict[str, dict[float, Path | None]]:
    """Label to epsilon to config, of ``[LABEL=]FOLDER``s; the base config (None) at every epsilon without any."""
    if not folders:
        return {"distqexp, base config": dict.fromkeys(epsilons)}
    found: dict[str, dict[float, Path | None]] = {}
    for text in folders:
        label, equals, folder = text.rpartition("=")
        paths = {epsilon: Path(folder) / f"tuned-eps{epsilon:g}.toml" for epsilon in epsilons}
        found[label if equals else "distqexp"] = {epsilon: path for epsilon, path in paths.items() if path.exists()}
    return found


def compare(
    methods: Any, configs: Mapping[str, Mapping[float, Path | None]], epsilons: Sequence[float]
) -> dict[str, Any]:
    """Everything that is known after the runs that there is time for: entries, differences, time to reach."""
    from benchmarks.methods import ADAM, CHOICE_SEEDS, DESCENT, NON_PRIVATE, SGD, UNTOUCHED

    chosen = [paths[epsilon] for paths in configs.values() for epsilon in epsilons if epsilon in paths]
    found: dict[str, Any] = {UNTOUCHED: methods.untouched(), **methods.public_alone(chosen or [None])}
    found[NON_PRIVATE] = methods.non_private()
    results: dict[str, Any] = {"metric": methods.metric, "flat": found, "epsilons": {}}
    results["chosen_by"] = (
        f"baselines: mean {methods.metric} of {CHOICE_SEEDS} seeds and all splits on the evaluation records, at a cost in "
        "privacy that isn't charged; distqexp: its configs"
    )
    for epsilon in epsilons:
        entries = {method: methods.opacus(method, epsilon) for method in (SGD, ADAM)}
        entries |= {DESCENT: methods.descent(epsilon), **methods.linear(epsilon)}
        baselines = found | entries
        ours = {label: paths[epsilon] for label, paths in configs.items() if epsilon in paths}
        entries |= {label: methods.distqexp(epsilon, path) for label, path in ours.items()}
        best = best_opacus(entries, methods.metric)
        row: dict[str, Any] = {"methods": entries, "best_opacus": best}
        known = {label: entries[label] for label in ours if entries[label]["complete"]}
        row["differences_to"] = {label: differences(entry, baselines, methods.metric) for label, entry in known.items()}
        if best is not None:
            row["differences"] = {label: row["differences_to"][label][best] for label in known}
        if best is not None and epsilon == 1.0:
            row["time"] = {label: methods.time_to_reach(epsilon, entries[best], path) for label, path in ours.items()}
        results["epsilons"][f"{epsilon:g}"] = row
    results["missing"] = methods.runs.missing
    no_config = {label: [e for e in epsilons if e not in paths] for label, paths in configs.items()}
    results["no_config"] = {label: left for label, left in no_config.items() if left}
    return results


def differences(ours: Mapping[str, Any], baselines: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """The difference to each baseline that is complete."""
    return {method: difference(ours, entry, metric) for method, entry in baselines.items() if entry["complete"]}


def best_opacus(entries: Mapping[str, Any], metric: str) -> str | None:
    """The better of DP-SGD and DP-Adam by the mean over seeds; None until both are complete."""
    from benchmarks.methods import ADAM, SGD

    if not all(entries[method]["complete"] for method in (SGD, ADAM)):
        return None
    return max((SGD, ADAM), key=lambda method: entries[method]["mean"][metric] or 0.0)


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], metric: str) -> dict[str, Any] | None:
    """Mean difference of a metric, paired by split; over several splits with its 95 % t-interval."""
    if ours["mean"][metric] is None or theirs["mean"][metric] is None:
        return None
    tables = ours["values"][metric], theirs["values"][metric]
    by_split = [statistics.fmean(a) - statistics.fmean(b) for a, b in zip(*tables, strict=True)]
    found: dict[str, Any] = {"mean": statistics.fmean(by_split), "by_split": by_split}
    if len(by_split) > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(by_split) - 1)) * statistics.stdev(by_split) / len(by_split) ** 0.5
        found |= {"low": found["mean"] - half, "high": found["mean"] + half}
    return found


def plot(results: Mapping[str, Any], path: Path) -> None:
    """The metric against epsilon, a line a method, bars of one standard deviation over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metric, rows = results["metric"], results["epsilons"]
    figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for label in dict.fromkeys(label for row in rows.values() for label in row["methods"]):
        points = [(float(e), row["methods"][label]) for e, row in rows.items() if label in row["methods"]]
        points = [(e, entry) for e, entry in points if entry.get("mean", {}).get(metric) is not None]
        if points:
            spread = [entry["sd"].get(metric, 0.0) for _, entry in points]
            means = [entry["mean"][metric] for _, entry in points]
            axis.errorbar([e for e, _ in points], means, spread, marker="o", capsize=3, label=label)
    for style, (label, entry) in zip(cycle(("--", "-.", ":")), results["flat"].items(), strict=False):
        if entry.get("mean", {}).get(metric) is not None:
            axis.axhline(entry["mean"][metric], color="black", linestyle=style, linewidth=1, label=label)
    axis.set(xscale="log", xlabel="epsilon", ylabel=metric)
    axis.set_xticks([float(e) for e in rows], list(rows))
    axis.minorticks_off()
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small")
    title = "baselines' settings are chosen on the evaluation records, uncharged"
    if results["missing"]:
        title += f"; incomplete: {sum(results['missing'].values())} runs or more are missing"
    axis.set_title(title, fontsize="small")
    figure.savefig(path, dpi=120)


def report(results: Mapping[str, Any]) -> None:
    """Print the means."""
    metric = results["metric"]
    rows = {"": results["flat"], **{f"epsilon {e}": row["methods"] for e, row in results["epsilons"].items()}}
    for title, entries in rows.items():
        for label, entry in entries.items():
            mean = entry.get("mean", {}).get(metric)
            words = "nothing yet" if mean is None else f"{metric} {mean:.4f}"
            edge = f", at an edge: {', '.join(entry['at_edge'])}" if entry.get("at_edge") else ""
            print(f"{title:13s} {label:24s} {words}{'' if entry['complete'] else ' (incomplete)'}{edge}")
    for epsilon, row in results["epsilons"].items():
        for label, found in row["differences_to"].items():
            for method, gap in found.items():
                if gap is not None:
                    interval = f" ({gap['low']:+.4f} to {gap['high']:+.4f})" if "low" in gap else ""
                    print(f"epsilon {epsilon:5s} {label} less {method}: {gap['mean']:+.4f}{interval}")
    print(f"settings were chosen by: {results['chosen_by']}")
    for what, count in results["missing"].items():
        print(f"missing: {what}: {count} runs or more")


def parse() -> argparse.Namespace:
    """The command line, what is left out filled in by the task."""
    from benchmarks.methods import ONLY

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="mnist")
    parser.add_argument("--config", type=Path, help="base config; the task's own in configs/ when left out")
    parser.add_argument("--tuned", nargs="+", default=[], metavar="[LABEL=]DIR", help="folders of tuned-epsE.toml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    parser.add_argument("--epsilons", type=float, nargs="+")
    parser.add_argument("--seeds", type=int, help="noise seeds; 5")
    parser.add_argument("--splits", type=int, help="shuffles of the table; mnist 1, icu 5")
    parser.add_argument("--passes", type=int, help="at most, of distqexp's configs; mnist 20, icu 4")
    parser.add_argument("--epochs", type=int, nargs="+", help="of Opacus' grid; mnist 40, icu 5 10 20 30")
    parser.add_argument("--batches", type=int, nargs="+", help="of Opacus' grid, 0: all records; 256 1024 0")
    parser.add_argument("--momenta", type=float, nargs="+", help="of Opacus DP-SGD's grid; 0 0.9")
    parser.add_argument("--sgd-rates", type=int, nargs="+", metavar="I", help="rates 10^(I/2) it begins with; -4 to 0")
    parser.add_argument(
        "--adam-rates", type=int, nargs="+", metavar="I", help="rates 10^(I/2) it begins with; -7 to -3"
    )
    parser.add_argument("--clips", type=int, nargs="+", metavar="I", help="clips 10^(I/2) it begins with; -2 to 2")
    parser.add_argument("--steps", type=int, nargs="+", metavar="I", help="2^I steps of gradient descent; 1 to 5")
    parser.add_argument("--only", nargs="+", choices=ONLY, default=list(ONLY), help="make runs of these alone")
    parser.add_argument("--budget-minutes", type=float, help="begin no run that would end later than this")
    parser.add_argument("--smoke", action="store_true", help="seconds, on handwritten digits, to see that it works")
    parser.add_argument(
        "--out", type=Path, help="folder of frontier.json, frontier.png, runs.jsonl; runs/frontier-TASK"
    )
    options = parser.parse_args()
    for name, value in {**SETTINGS, **TASKS[options.task], **(SMOKE if options.smoke else {})}.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.out = options.out or Path("runs") / f"frontier-{options.task}"
    return options


def main() -> None:
    """Entry point."""
    from benchmarks.checkpoint import Runs
    from benchmarks.grids import Grid
    from benchmarks.methods import Methods
    from benchmarks.problems import Start

    from distqexp.engines.threads import pin_threads

    options = parse()
    if importlib.util.find_spec("opacus") is None:
        sys.exit("frontier: opacus is not installed; install the extra bench")
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    pin_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    start = Start(options.config, options.overrides, options.out)
    grid = Grid(
        options.batches, options.momenta, options.epochs, options.sgd_rates, options.adam_rates, options.clips,
        options.steps,
    )  # fmt: skip
    configs = tuned_configs(options.tuned, options.epsilons)

    seconds = None if options.budget_minutes is None else 60 * options.budget_minutes
    methods = Methods(
        start, Runs(options.out / "runs.jsonl", seconds), grid,
        splits=options.splits, seeds=options.seeds, passes=options.passes, only=options.only,
        log=options.out / "distqexp.log",
    )  # fmt: skip
    results = compare(methods, configs, options.epsilons)
    results |= {
        "task": options.task, "config": options.config.name, "overrides": options.overrides, "seeds": options.seeds,
        "splits": options.splits, "passes": options.passes, "tasks": [problem.identity for problem in methods.problems],
        "cores": len(os.sched_getaffinity(0)), "runs_made_now": methods.runs.made,
    }  # fmt: skip
    (options.out / "frontier.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    plot(results, options.out / "frontier.png")
    report(results)


if __name__ == "__main__":
    from distqexp.errors import DistqexpError

    try:
        main()
    except DistqexpError as error:
        sys.exit(f"frontier: {error}")
