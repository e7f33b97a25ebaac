"""Every method of the frontier, as runs that are remembered and what they come to."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.checkpoint import Result, Runs
from benchmarks.ours import run_distqexp
from benchmarks.problems import Problem, Start
from benchmarks.search import best_of_grid
from benchmarks.training import train_opacus, train_plain
from distqexp.config import Config, config_to_tree, without_paths

SGD, ADAM, DESCENT = "Opacus DP-SGD", "Opacus DP-Adam", "DP gradient descent"
UNTOUCHED, NON_PRIVATE, TIME = "no fine-tuning", "non-private", "time"
GROUPS = {"opacus": (SGD, ADAM), "gd": (DESCENT,), "none": (UNTOUCHED,), "non-private": (NON_PRIVATE,)}
ONLY = (*GROUPS, "ours", "time")
PLAIN_EPOCHS = 20
TIME_REPEATS = 3

Entry = dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """What Opacus' settings are chosen from; learning rates are half decades. batches: 0 is all records."""

    batches: Sequence[int]
    momenta: Sequence[float]
    epochs: Sequence[int]
    sgd_rates: Sequence[int]
    adam_rates: Sequence[int]
    clip: float


class Methods:
    """The methods on one task. ``only``: of which groups new runs may be made; what is remembered always counts."""

    def __init__(
        self,
        start: Start,
        runs: Runs,
        grid: Grid,
        *,
        splits: int,
        seeds: int,
        passes: int,
        only: Sequence[str],
        log: Path,
    ) -> None:
        self.start, self.runs, self.grid = start, runs, grid
        self.seeds, self.passes, self.only, self.log = seeds, passes, only, log
        self.problems = [start.problem(split) for split in range(splits)]
        self.metric = "auroc" if self.problems[0].config.model.loss == "binary-cross-entropy" else "accuracy"

    def untouched(self) -> Entry:
        """The pretrained model."""
        made = [
            self._run(UNTOUCHED, problem, {}, lambda problem=problem: {"seconds": 0.0, "metrics": problem.metrics(problem.module())})
            for problem in self.problems
        ]  # fmt: skip
        return self._entry([[result] for result in made], {}, seeds=1)

    def non_private(self) -> Entry:
        """Adam without noise or clip, its learning rate by the same rule."""
        line = {"optimiser": "adam", "momentum": 0.0, "batch": 256, "epochs": PLAIN_EPOCHS}
        return self._searched(
            NON_PRIVATE, None, [line], self.grid.adam_rates, lambda problem, s, seed: train_plain(problem, s, seed)
        )

    def descent(self, epsilon: float) -> Entry:
        """Gradient descent on all records with flat clipping, as many steps as passes are allowed, its noise exact."""
        line = self._line(0, 0.0, self.passes) | {"noise": "gdp"}
        return self._opacus(DESCENT, epsilon, [line], self.grid.sgd_rates)

    def opacus(self, method: str, epsilon: float) -> Entry:
        """DP-SGD or DP-Adam, the best of its grid by the first seed's metric on the evaluation records."""
        sgd = method == SGD
        lines = [
            self._line(batch, momentum, epochs) | {"optimiser": "sgd" if sgd else "adam"}
            for batch in self.grid.batches
            for momentum in (self.grid.momenta if sgd else (0.0,))
            for epochs in self.grid.epochs
        ]
        distinct = list({json.dumps(line): line for line in lines}.values())
        return self._opacus(method, epsilon, distinct, self.grid.sgd_rates if sgd else self.grid.adam_rates)

    def distqexp(self, epsilon: float, path: Path | None) -> Entry:
        """This project's runs with the config at ``path`` (None: the base config)."""
        made = []
        for problem in self.problems:
            config = self._config(epsilon, path, problem.split)
            made.append(
                [
                    self._run(
                        "distqexp", problem, {"epsilon": epsilon, "config": _digest(config), "seed": seed},
                        lambda problem=problem, config=config, seed=seed: run_distqexp(problem, config, seed, self.log),
                    )
                    for seed in range(self.seeds)
                ]
            )  # fmt: skip
        config = self._config(epsilon, path, 0)
        names = ("subspace", "precision", "mechanism")
        return self._entry(made, {name: config_to_tree(getattr(config, name)) for name in names})

    def time_to_reach(self, epsilon: float, best: Entry, path: Path | None) -> dict[str, Any] | None:
        """Seconds until the mean of Opacus' best setting is reached, both in turn in this process; None when not all is known.

        ``ratio``: medians over pairs of distqexp's seconds by Opacus', who is done as soon as it reaches its own mean, or
        after its last epoch if it never does in that run. ``ratio_to_whole_run``: by all of Opacus' epochs.
        """
        problem, target, setting = self.problems[0], best["mean"][self.metric], best["setting"]
        config = self._config(epsilon, path, 0)
        facts = {**setting, "epsilon": epsilon, "config": _digest(config)}
        pairs = [
            self._run(TIME, problem, {**facts, "seed": seed}, lambda seed=seed: self._timed(problem, setting, config, epsilon, seed))
            for seed in range(TIME_REPEATS)
        ]  # fmt: skip
        known = [pair for pair in pairs if pair is not None]
        if len(known) < len(pairs):
            return None
        rows = []
        for pair in known:
            ours, theirs = (self._reached(pair[name]["curve"], target) for name in ("distqexp", "opacus"))
            rows.append(
                {"distqexp": ours, "opacus": theirs, "opacus_whole_run": pair["opacus"]["seconds"],
                 "distqexp_whole_run": pair["distqexp"]["seconds"]}
            )  # fmt: skip
        found: dict[str, Any] = {
            "epsilon": epsilon,
            "target": target,
            "seconds": rows,
            "ratio": None,
            "ratio_to_whole_run": None,
        }
        if all(row["distqexp"] is not None for row in rows):
            found["ratio"] = statistics.median(
                row["distqexp"] / (row["opacus"] or row["opacus_whole_run"]) for row in rows
            )
            found["ratio_to_whole_run"] = statistics.median(row["distqexp"] / row["opacus_whole_run"] for row in rows)
        return found

    def _timed(self, problem: Problem, setting: Mapping[str, Any], config: Config, epsilon: float, seed: int) -> Result:
        ours = run_distqexp(problem, config, seed, self.log, curve=True)
        curve: list[Any] = []
        theirs = train_opacus(
            problem, setting, epsilon, seed, lambda module, seconds: curve.append([seconds, problem.metrics(module)])
        )
        return {"distqexp": ours, "opacus": {**theirs, "curve": curve}}

    def _reached(self, curve: Sequence[Any], target: float) -> float | None:
        hits = [seconds for seconds, metrics in curve if (metrics[self.metric] or 0.0) >= target]
        return min(hits, default=None)

    def _line(self, batch: int, momentum: float, epochs: int) -> dict[str, Any]:
        n = len(self.problems[0].private)
        size = min(batch or n, n)
        return {"optimiser": "sgd", "momentum": momentum, "batch": size, "epochs": epochs, "clip": self.grid.clip}

    def _opacus(self, method: str, epsilon: float, lines: Sequence[dict[str, Any]], rates: Sequence[int]) -> Entry:
        return self._searched(
            method, epsilon, lines, rates, lambda problem, setting, seed: train_opacus(problem, setting, epsilon, seed)
        )

    def _searched(
        self, method: str, epsilon: float | None, lines: Sequence[dict[str, Any]], rates: Sequence[int],
        make: Callable[[Problem, dict[str, Any], int], Result],
    ) -> Entry:  # fmt: skip
        """The best of a grid by seed 0 and the mean over splits; then its other seeds."""

        def of(setting: dict[str, Any], seed: int) -> list[Result | None]:
            facts = {**setting, "seed": seed, **({} if epsilon is None else {"epsilon": epsilon})}
            return [
                self._run(method, problem, facts, lambda problem=problem: make(problem, setting, seed))
                for problem in self.problems
            ]

        def score(setting: dict[str, Any]) -> float | None:
            found = of(setting, 0)
            values = [result["metrics"].get(self.metric) for result in found if result is not None]
            if len(values) < len(found):
                return None
            return math.nan if None in values else statistics.fmean(values)

        best = best_of_grid(lines, rates, score)
        if best is None:
            return {"complete": False, "values": {}, "tried": 0}
        others = [of(best.setting, seed) for seed in range(1, self.seeds)] if best.complete else []
        by_split = [list(results) for results in zip(of(best.setting, 0), *others, strict=True)]
        entry = self._entry(by_split, best.setting)
        entry |= {"learning_rate_at_edge": best.at_edge, "tried": best.tried, "first_seed": best.score}
        entry["complete"] = entry["complete"] and best.complete
        return entry

    def _run(
        self, method: str, problem: Problem, facts: Mapping[str, Any], make: Callable[[], Result]
    ) -> Result | None:
        group = next((name for name, methods in GROUPS.items() if method in methods), None)
        group = group or {"distqexp": "ours", TIME: "time"}[method]
        parameters = {"task": problem.identity, "split": problem.split, "method": method, **facts}
        if group in ("opacus", "gd", "time"):
            parameters["opacus"] = importlib.metadata.version("opacus")
        return self.runs.result(parameters, make, allowed=group in self.only)

    def _config(self, epsilon: float, path: Path | None, split: int) -> Config:
        config = self.start.config(path, epsilon, split)
        if config.mechanism.work > self.passes * (1 + 1e-9):
            raise SystemExit(
                f"frontier: {path or self.start.base}: {config.mechanism.work:g} passes; expected at most {self.passes}; "
                "lower mechanism.rounds, or raise --passes"
            )
        return config

    def _entry(
        self, by_split: Sequence[Sequence[Result | None]], setting: Mapping[str, Any], seeds: int | None = None
    ) -> Entry:
        """Values by metric, split and seed, their means, the spread over seeds of the mean over splits."""
        wanted = len(self.problems) * (self.seeds if seeds is None else seeds)
        known = [[result for result in results if result is not None] for results in by_split]
        flat = [result for results in known for result in results]
        names = sorted({name for result in flat for name in result["metrics"]})
        values = {name: [[result["metrics"].get(name) for result in results] for results in known] for name in names}
        entry: Entry = {
            "setting": dict(setting),
            "values": values,
            "complete": len(flat) == wanted,
            "mean": {},
            "sd": {},
        }
        for name, table in values.items():
            numbers = [value for row in table for value in row]
            good = all(value is not None for value in numbers)
            entry["mean"][name] = statistics.fmean(numbers) if good else None
            if good and len({len(row) for row in table}) == 1 and len(table[0]) > 1:
                entry["sd"][name] = statistics.stdev(statistics.fmean(column) for column in zip(*table, strict=True))
        if flat:
            entry["seconds"] = statistics.median(result["seconds"] for result in flat)
        return entry


def _digest(config: Config) -> str:
    tree = config_to_tree(without_paths(config))
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
