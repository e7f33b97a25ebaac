"""Every method of the frontier, as runs that are remembered and what they come to."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoint import Result, Runs
from benchmarks.grids import Grid, Space, newton, objective
from benchmarks.linear import LinearTask, linear_task
from benchmarks.newton import newton_theta
from benchmarks.objective import objective_theta
from benchmarks.ours import run_distqexp
from benchmarks.problems import Problem, Start
from benchmarks.public import Angles, distinct_angles, pretrained_on_turned
from benchmarks.search import climb
from benchmarks.training import train_opacus, train_plain
from distqexp.config import Config, config_to_tree, without_paths

SGD, ADAM, DESCENT = "Opacus DP-SGD", "Opacus DP-Adam", "DP gradient descent"
OBJECTIVE, NEWTON = "objective perturbation", "DP-Newton"
UNTOUCHED, PUBLIC, NON_PRIVATE, TIME = "no fine-tuning", "public data alone", "non-private", "time"
GROUPS = {
    "opacus": (SGD, ADAM),
    "gd": (DESCENT,),
    "linear": (OBJECTIVE, NEWTON),
    "none": (UNTOUCHED, PUBLIC),
    "non-private": (NON_PRIVATE,),
}
ONLY = (*GROUPS, "ours", "time")
CHOICE_SEEDS = 3
"""Settings are chosen by the mean over so many noise seeds."""
TIME_REPEATS = 3

Entry = dict[str, Any]
Make = Callable[[Problem, Mapping[str, Any], int], Result]


def mean_score(by_seed: Sequence[Sequence[Result | None]], metric: str) -> float | None:
    """Return the mean of a metric over seeds and splits: what settings are chosen by.

    It is NaN where a run has no such figure, and None where a run is missing.
    """
    found = [result for results in by_seed for result in results]
    values = [result["metrics"].get(metric) for result in found if result is not None]
    if len(values) < len(found):
        return None
    return math.nan if None in values else statistics.fmean(values)


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
        self._linear: dict[int, LinearTask | None] = {}
        self._turned_models: dict[Angles, torch.nn.Module] = {}
        self.problems = [start.problem(split) for split in range(splits)]
        self.metric = "auroc" if self.problems[0].config.model.loss == "binary-cross-entropy" else "accuracy"

    def untouched(self) -> Entry:
        """The pretrained model."""
        return self._unseeded(UNTOUCHED, {}, lambda problem: problem.module())

    def public_alone(self, configs: Sequence[Path | None]) -> dict[str, Entry]:
        """No private record (epsilon 0): the model pretrained on public images turned as the configs assume of private ones.

        Each range of angles that a config assumes is an entry. Where none is assumed, this is the pretrained model itself.
        """
        angles = distinct_angles([self.start.pretraining(path) for path in dict.fromkeys(configs)])
        if not angles:
            return {f"{PUBLIC}, no shift assumed": {**self.untouched(), "same_as": UNTOUCHED}}
        return {
            f"{PUBLIC}, turned by {low:g} to {high:g} degrees": self._unseeded(
                PUBLIC, {"rotate": [low, high]}, lambda problem, range_=(low, high): self._turned(range_)
            )
            for low, high in angles
        }

    def non_private(self) -> Entry:
        """Adam without noise or clip, its learning rate by the same rule."""
        return self._searched(
            NON_PRIVATE, None, self.grid.plain(), lambda problem, s, seed: train_plain(problem, s, seed)
        )

    def descent(self, epsilon: float) -> Entry:
        """Gradient descent on all records with flat clipping and exact noise: rate, clip and steps."""
        return self._opacus(DESCENT, epsilon, self.grid.descent(len(self.problems[0].private)))

    def opacus(self, method: str, epsilon: float) -> Entry:
        """DP-SGD or DP-Adam, at the best settings by the mean over the choice's seeds on the evaluation records."""
        return self._opacus(method, epsilon, self.grid.opacus(len(self.problems[0].private), method == ADAM))

    def linear(self, epsilon: float) -> dict[str, Entry]:
        """Objective perturbation and DP-Newton, both with public whitening; nothing where the model isn't linear with one logit."""
        if self._linear_task(0) is None:
            return {}
        return {
            OBJECTIVE: self._searched(OBJECTIVE, epsilon, objective(), self._of_vectors(objective_theta, epsilon)),
            NEWTON: self._searched(NEWTON, epsilon, newton(), self._of_vectors(newton_theta, epsilon)),
        }

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

    def _turned(self, angles: Angles) -> torch.nn.Module:
        """One pretraining for all splits."""
        if angles not in self._turned_models:
            self._turned_models[angles] = pretrained_on_turned(self.start.pretraining(), angles)
        return self._turned_models[angles]

    def _unseeded(self, method: str, facts: Mapping[str, Any], module: Callable[[Problem], torch.nn.Module]) -> Entry:
        """A method without noise or choice: one run a split."""
        made = [
            self._run(method, problem, facts, lambda problem=problem: {"seconds": 0.0, "metrics": problem.metrics(module(problem))})
            for problem in self.problems
        ]  # fmt: skip
        return self._entry([[result] for result in made], facts, seeds=1)

    def _linear_task(self, split: int) -> LinearTask | None:
        if split not in self._linear:
            self._linear[split] = linear_task(self.problems[split])
        return self._linear[split]

    def _of_vectors(self, train: Callable[..., Any], epsilon: float) -> Make:
        """Training on the vectors of a linear task, as a run; without metrics where a setting has no noise for epsilon."""

        def make(problem: Problem, setting: Mapping[str, Any], seed: int) -> Result:
            found = train(self._linear_task(problem.split), setting, epsilon, problem.delta, seed)
            if found is None:
                return {"seconds": 0.0, "metrics": {self.metric: None}}
            theta, facts = found
            return {**facts, "metrics": problem.metrics_at(theta)}

        return make

    def _opacus(self, method: str, epsilon: float, space: Space) -> Entry:
        return self._searched(
            method, epsilon, space, lambda problem, setting, seed: train_opacus(problem, setting, epsilon, seed)
        )

    def _searched(self, method: str, epsilon: float | None, space: Space, make: Make) -> Entry:
        """The best of a space by the mean over the choice's seeds and the splits; then all seeds of it."""

        def of(setting: Mapping[str, Any], seed: int) -> list[Result | None]:
            facts = {**setting, "seed": seed, **({} if epsilon is None else {"epsilon": epsilon})}
            return [
                self._run(method, problem, facts, lambda problem=problem: make(problem, setting, seed))
                for problem in self.problems
            ]

        best = climb(
            space.axes, space.start, space.fixed,
            lambda setting: mean_score([of(setting, seed) for seed in range(CHOICE_SEEDS)], self.metric),
        )  # fmt: skip
        if best is None:
            return {"complete": False, "values": {}, "tried": 0}
        by_seed = [of(best.setting, seed) for seed in range(self.seeds)] if best.complete else []
        by_split = [list(results) for results in zip(*by_seed, strict=True)] or [[] for _ in self.problems]
        entry = self._entry(by_split, best.setting)
        entry |= {
            "at_edge": list(best.at_edge),
            "tried": best.tried,
            "chosen_at": best.score,
            "converged": best.converged,
        }
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
