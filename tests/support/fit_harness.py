"""Runs of the main job on the digits task by mpirun: start, kill, resume, compare."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mpi_harness import MpiRun, mpi_command

from distqexp import fit

QUICK = (
    "mechanism.rounds=3",
    "mechanism.clip_quantile=0.9",
    "model.pretrain.epochs=5",
    "precision.samples=100",
    "output.keep_sketches=true",
)
"""Overrides that make the digits task take a second or two."""


def settings(*assignments: str) -> list[str]:
    """The options that override keys."""
    return [word for assignment in assignments for word in ("--set", assignment)]


def fit_arguments(out: Path, *more: str, overrides: Sequence[str] = QUICK) -> list[str]:
    """Arguments of ``python``: the main job on digits into ``out``."""
    return ["-m", "distqexp.fit", "--out", str(out), "--json", *settings(*overrides), *more]


def seeded_serial_run(folder: Path, overrides: Sequence[str]) -> Path:
    """The folder of a serial run with noise seed 7, in this process, charged to a ledger in ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
        assert fit.main(["--out", str(folder / "run"), "--insecure-noise-seed", "7", *settings(*overrides)]) == 0
    return folder / "run"


def start_fit(ranks: int, folder: Path, out: Path, *more: str, overrides: Sequence[str] = QUICK) -> MpiRun:
    """Start the main job on so many ranks: a context manager."""
    folder.mkdir(parents=True, exist_ok=True)
    return MpiRun(mpi_command(ranks, *fit_arguments(out, *more, overrides=overrides)), folder)


def summary(out: str) -> dict[str, Any]:
    """The JSON object in the last line of standard output."""
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


def released(out: Path) -> dict[str, bytes]:
    """Every byte of a run that must not depend on where or how often it ran."""
    names = [*sorted(path.name for path in out.glob("release-*.h5")), "plan.h5", "model.safetensors"]
    return {name: (out / name).read_bytes() for name in names}


def pooled(out: Path) -> dict[str, bytes]:
    """The pooled integer sums of every round (kept by QUICK)."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("quadratic-*.h5"))}


def rank_processes(out: Path) -> list[int]:
    """Process ids of the ranks that work into ``out``."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if words[:3] == [sys.executable.encode(), b"-m", b"distqexp.fit"] and str(out).encode() in words:
            found.append(int(entry.name))
    return sorted(found)
