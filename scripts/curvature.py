"""Public curvature, private curvature, or both: when is private curvature worth its sensitivity? ICU mortality.

    DISTQEXP_DATA=/data python scripts/curvature.py --out runs/curvature

For each way and epsilon a small grid is rehearsed on public records alone (the units of set a other than the medical ICU, in 4
folds, see rehearse_icu.py); the setting of the best mean AUROC is then run on set b with 5 noise seeds. Every run is a line of
``runs.jsonl``,
and the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rehearse_icu import CONFIG, write_stand_ins

from distqexp.api import fit, load_config

EPSILONS = (0.5, 1.0, 8.0)
FOLDS = 4
SEEDS = 5
UNITS = 3000

PUBLIC = {"mechanism.rounds": [1, 4], "mechanism.step": [0.3, 0.6, 1.0, 3.0], "precision.damping": [0.3, 3.0]}
BALL: dict[str, list[Any]] = {
    "mechanism.noise": ["gaussian"],
    "mechanism.curvature": ["private"],
    "mechanism.rounds": [1, 4],
    "mechanism.trust_radius": [3.0, 10.0, 30.0],
    "mechanism.step": [0.6, 3.0, 10.0],
}
WAYS: dict[str, dict[str, list[Any]]] = {
    "public": PUBLIC,
    "private": BALL | {"precision.kind": ["identity"], "precision.damping": [0.0]},
    "both": BALL | {"precision.damping": [0.3, 3.0]},
}
"""The grid of each way: config keys and their values."""


def settings_of(grid: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of a grid."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


class Runs:
    """Runs by their parameters, kept in a file of lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self._known = {entry["key"]: entry["metrics"] for entry in map(json.loads, lines)}

    def metrics(self, setting: Mapping[str, Any], more: list[str], seed: int) -> dict[str, float]:
        """Metrics after a run on the ICU config, with seeded noise."""
        overrides = [f"{name}={json.dumps(value)}" for name, value in setting.items()] + more
        key = json.dumps([overrides, seed])
        if key not in self._known:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["DISTQEXP_LEDGER"] = str(Path(folder) / "ledger.sqlite")
                result = fit(load_config(CONFIG, overrides), Path(folder) / "run", insecure_noise_seed=seed)
            if result is None:
                raise SystemExit("curvature: run it without a launcher")
            self._known[key] = result.metrics["after"]
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "metrics": self._known[key]}) + "\n")
        return self._known[key]


def rehearsed(runs: Runs, setting: Mapping[str, Any], epsilon: float, stand_ins: Path, count: int) -> float:
    """Mean AUROC over the folds, on public records, with noise as for the private units."""
    scores = []
    for fold in range(FOLDS):
        first, last = fold * count // FOLDS, (fold + 1) * count // FOLDS
        others = [[begin, end] for begin, end in ((0, first), (last, count)) if begin < end]
        units = count - (last - first)
        more = [
            "data.population=rehearsal", f"data.private.path={stand_ins}", f"data.private.rows={others}",
            f"data.eval.path={stand_ins}", f"data.eval.rows=[[{first}, {last}]]", f"privacy.units={units}",
            f"privacy.epsilon={epsilon * UNITS / units}",
        ]  # fmt: skip
        scores.append(runs.metrics(setting, more, fold).get("auroc", 0.0))
    return statistics.fmean(scores)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/curvature"))
    out: Path = parser.parse_args().out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    stand_ins = out / "stand-ins.csv"
    count = write_stand_ins(Path(os.environ["DISTQEXP_DATA"]) / "icu2012" / "set-a.csv.gz", stand_ins)
    runs = Runs(out / "runs.jsonl")
    results: list[dict[str, Any]] = []
    for epsilon, (way, grid) in itertools.product(EPSILONS, WAYS.items()):
        scored = [(rehearsed(runs, setting, epsilon, stand_ins, count), setting) for setting in settings_of(grid)]
        score, best = max(scored, key=lambda entry: entry[0])
        final = [runs.metrics(best, [f"privacy.epsilon={epsilon}"], seed) for seed in range(SEEDS)]
        row = {"epsilon": epsilon, "way": way, "public_auroc": score, "setting": best}
        row |= {name: statistics.fmean(metrics[name] for metrics in final) for name in ("auroc", "log_loss")}
        results.append(row)
        print(json.dumps(row), flush=True)
    (out / "curvature.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
