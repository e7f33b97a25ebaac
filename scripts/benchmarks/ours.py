"""distqexp's own runs: whole ones, plan to export, in this process, with seeded noise and a ledger that is thrown away."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.problems import Problem
from distqexp.api import fit
from distqexp.config import Config
from distqexp.report.progress import ProgressEvent


def run_distqexp(problem: Problem, config: Config, seed: int, log: Path, curve: bool = False) -> dict[str, Any]:
    """Metrics after the last round, and seconds of the run: loading, public curvature of every round, all files.

    curve: also [seconds, metrics] at the end of each round (metrics are computed after the run). What the run says about its
    progress goes to the file ``log``.
    """
    released: dict[int, float] = {}

    def note(event: ProgressEvent) -> None:
        if event.stage == "release" and event.share == 1.0 and event.round is not None:
            released[event.round] = time.perf_counter()

    blind = dataclasses.replace(config, data=dataclasses.replace(config.data, eval=None))
    with (
        tempfile.TemporaryDirectory() as name,
        _ledger(Path(name) / "ledger.sqlite"),
        log.open("a", encoding="utf-8") as file,
        contextlib.redirect_stderr(file),
    ):
        began, process = time.perf_counter(), time.process_time()
        result = fit(blind, Path(name) / "run", insecure_noise_seed=seed, callback=note)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - process
    if result is None:
        raise SystemExit("frontier: run it without a launcher")
    found: dict[str, Any] = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "stages": result.seconds,
        "k": result.plan.k,
        "passes": config.mechanism.work if config.mechanism.sampled else config.mechanism.passes,
        "certified_epsilon": result.certificate["epsilon"],
        "metrics": problem.metrics_at(result.releases[-1].theta),
    }
    if curve:
        found["curve"] = [
            [released[release.round] - began, problem.metrics_at(release.theta)] for release in result.releases
        ]
    return found


@contextlib.contextmanager
def _ledger(path: Path) -> Iterator[None]:
    before = os.environ.get("DISTQEXP_LEDGER")
    os.environ["DISTQEXP_LEDGER"] = str(path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISTQEXP_LEDGER"]
        else:
            os.environ["DISTQEXP_LEDGER"] = before
