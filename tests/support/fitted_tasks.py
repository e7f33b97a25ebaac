"""Configs of this repository, run as they stand."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from distqexp.config import Config
from distqexp.engines.serial import SerialEngine
from distqexp.report.progress import Progress
from distqexp.stages.rounds import FitResult, run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def fitted(config: Config, out: Path, seed: int, plan: Path | None = None) -> FitResult:
    """A whole run with seeded noise, by a plan of this config that is there already or by one of its own."""
    if plan is not None:
        out.mkdir()
        shutil.copy(plan, out)
    with SerialEngine() as engine:
        result = run(config, out, engine, Progress(silent=True), resume=plan is not None, noise_seed=seed)
    assert result is not None
    return result


def fitted_for_seeds(config: Config, folder: Path, seeds: Iterable[int]) -> list[FitResult]:
    """A whole run for each seed, all by the plan of the first."""
    results: list[FitResult] = []
    for seed in seeds:
        results.append(fitted(config, folder / f"{seed}", seed, results[0].out / "plan.h5" if results else None))
    return results
