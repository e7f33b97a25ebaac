"""Configs of this repository, run as they stand."""

from __future__ import annotations

from pathlib import Path

from distqexp.config import Config
from distqexp.engines.serial import SerialEngine
from distqexp.report.progress import Progress
from distqexp.stages.rounds import FitResult, run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def fitted(config: Config, out: Path, seed: int) -> FitResult:
    """A whole run with seeded noise."""
    with SerialEngine() as engine:
        result = run(config, out, engine, Progress(silent=True), noise_seed=seed)
    assert result is not None
    return result
