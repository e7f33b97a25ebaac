"""Public curvature, private curvature, or both: when is private curvature worth its sensitivity?

    DISTQEXP_DATA=/data python scripts/curvature.py --task icu --out runs/curvature-icu

For each way and epsilon a small grid is rehearsed on public records alone. The setting with the best mean is then run on the private
records with 5 noise seeds. The ICU mortality task has all 186 coordinates, and is rehearsed on the units of set a other than the medical
ICU, in 4 folds (see rehearse_icu.py). The MNIST task, turned by 45 degrees, has the 330 coordinates of the last layer, and is rehearsed on
images of the pretraining, turned by 40. Every run is a line of ``runs.jsonl``, and the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.problems import Start
from rehearse_icu import CONFIG, write_stand_ins

from distqexp.api import fit, load_config
from distqexp.config import Config

EPSILONS = (0.5, 1.0, 8.0)
SEEDS = 5
Grid = dict[str, list[Any]]
Setting = Mapping[str, Any]


def ways(public: Grid, ball: Grid, damping: list[float]) -> dict[str, Grid]:
    """The grid of each way: config keys and their values."""
    ball = {"mechanism.noise": ["gaussian"], "mechanism.curvature": ["private"], **ball}
    return {
        "public": public,
        "private": ball | {"precision.kind": ["identity"], "precision.damping": [0.0]},
        "both": ball | {"precision.damping": damping},
    }


class Runs:
    """Runs by their parameters, kept in a file of lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self._known = {entry["key"]: entry["metrics"] for entry in map(json.loads, lines)}

    def metrics(self, config: Config, key: list[str], seed: int) -> dict[str, float]:
        """Metrics after a run of ``config``, which ``key`` stands for, with seeded noise."""
        name = json.dumps([key, seed])
        if name not in self._known:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["DISTQEXP_LEDGER"] = str(Path(folder) / "ledger.sqlite")
                result = fit(config, Path(folder) / "run", insecure_noise_seed=seed)
            if result is None:
                raise SystemExit("curvature: run it without a launcher")
            self._known[name] = result.metrics["after"]
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": name, "metrics": self._known[name]}) + "\n")
        return self._known[name]


class Icu:
    """Logistic regression, 3,000 private stays."""

    metric = "auroc"
    units = 3000
    ways = ways(
        {"mechanism.rounds": [1, 4], "mechanism.step": [0.3, 0.6, 1.0, 3.0], "precision.damping": [0.3, 3.0]},
        {"mechanism.rounds": [1, 4], "mechanism.trust_radius": [3.0, 10.0, 30.0], "mechanism.step": [0.6, 3.0, 10.0]},
        [0.3, 3.0],
    )
    folds = 4

    def __init__(self, out: Path) -> None:
        self._stand_ins = out / "stand-ins.csv"
        self._count = write_stand_ins(Path(os.environ["DISTQEXP_DATA"]) / "icu2012" / "set-a.csv.gz", self._stand_ins)

    def config(self, overrides: list[str]) -> Config:
        """The real task."""
        return load_config(CONFIG, overrides)

    def rehearsal(self, fold: int, epsilon: float) -> list[str]:
        """Overrides: public records play the private ones, with noise as for those."""
        first, last = fold * self._count // self.folds, (fold + 1) * self._count // self.folds
        others = [[begin, end] for begin, end in ((0, first), (last, self._count)) if begin < end]
        units = self._count - (last - first)
        return [
            "data.population=rehearsal", f"data.private.path={self._stand_ins}", f"data.private.rows={others}",
            f"data.eval.path={self._stand_ins}", f"data.eval.rows=[[{first}, {last}]]", f"privacy.units={units}",
            f"privacy.epsilon={epsilon * self.units / units}",
        ]  # fmt: skip


class Mnist:
    """The last layer of a small CNN pretrained upright, 5,000 private images turned by 45 degrees."""

    metric = "accuracy"
    units = 5000
    ways = ways(
        {"mechanism.rounds": [1, 4], "mechanism.step": [0.03, 0.1, 0.3], "precision.damping": [0.01, 0.03, 0.3]},
        {"mechanism.rounds": [1, 4], "mechanism.trust_radius": [3.0, 10.0, 30.0], "mechanism.step": [0.1, 0.3, 1.0]},
        [0.03, 0.3],
    )
    folds = 1
    _overrides = ('model.trainable=["9.*"]', "subspace.kind=identity", "subspace.k=330")

    def __init__(self, out: Path) -> None:
        base = CONFIG.with_name("mnist-rotated.toml")
        self._start = Start(base, [], out)
        self._base = base

    def config(self, overrides: list[str]) -> Config:
        """The real task, from weights that are pretrained once."""
        config = load_config(self._base, [*self._overrides, *overrides])
        model = dataclasses.replace(config.model, weights=str(self._start.weights), pretrain=None)
        return dataclasses.replace(config, model=model)

    def rehearsal(self, fold: int, epsilon: float) -> list[str]:
        """Overrides: images of the pretraining, turned by 40 degrees, play private and test ones; fewer, so that it takes less time."""
        units = 2500
        images = "${DISTQEXP_DATA}/mnist/train-images-idx3-ubyte.gz"
        labels = "${DISTQEXP_DATA}/mnist/train-labels-idx1-ubyte.gz"
        return [
            "data.population=rehearsal", f"data.private.rows=[[45000, {45000 + units}]]", "data.private.rotate=40.0",
            f"data.eval.path={images}", f"data.eval.labels={labels}", "data.eval.rows=[[47500, 50000]]", "data.eval.rotate=40.0",
            f"privacy.units={units}", f"privacy.epsilon={epsilon * self.units / units}", "mechanism.noise=gaussian",
        ]  # fmt: skip


TASKS = {"icu": Icu, "mnist": Mnist}


def settings_of(grid: Grid) -> Iterator[Setting]:
    """Every combination of a grid."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(TASKS), default="icu")
    parser.add_argument("--out", type=Path, default=Path("runs/curvature"))
    parser.add_argument("--folds", type=int, default=4, help="rehearse on so many of the folds, at most; 4")
    parser.add_argument("--epsilons", type=float, nargs="+", default=list(EPSILONS))
    options = parser.parse_args()
    out: Path = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    task: Icu | Mnist = TASKS[options.task](out)
    runs = Runs(out / "runs.jsonl")

    def run(setting: Setting, more: list[str], seed: int) -> dict[str, float]:
        overrides = [f"{name}={json.dumps(value)}" for name, value in setting.items()] + more
        return runs.metrics(task.config(overrides), overrides, seed)

    def rehearsed(setting: Setting, epsilon: float) -> float:
        """Mean over the folds, on public records; a run that diverged has no metric and counts as 0."""
        folds = range(min(task.folds, options.folds))
        return statistics.fmean(
            run(setting, task.rehearsal(fold, epsilon), fold).get(task.metric, 0.0) for fold in folds
        )

    results: list[dict[str, Any]] = []
    for epsilon, (way, grid) in itertools.product(options.epsilons, task.ways.items()):
        score, best = max(((rehearsed(one, epsilon), one) for one in settings_of(grid)), key=lambda entry: entry[0])
        final = [run(best, [f"privacy.epsilon={epsilon}"], seed) for seed in range(SEEDS)]
        row = {"epsilon": epsilon, "way": way, "rehearsed": score, "setting": best}
        for name in (task.metric, "log_loss"):
            values = [metrics[name] for metrics in final]
            row |= {name: statistics.fmean(values), f"{name}_deviation": statistics.stdev(values)}
        results.append(row)
        print(json.dumps(row), flush=True)
    (out / "curvature.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
