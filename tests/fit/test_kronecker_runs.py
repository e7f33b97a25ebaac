"""Whole runs in Kronecker subspaces: their files, and that they learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fit_harness import QUICK, seeded_serial_run, settings
from run_harness import Commands
from same_bytes import KRONECKER_PCA, MLP, SCHEDULE

from distqexp.artefacts.plan import Plan
from tests.support.states import states_of_run


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A serial run with a pca subspace and a kronecker precision, refreshed every second round."""
    return seeded_serial_run(tmp_path_factory.mktemp("serial"), (*QUICK, *MLP, *KRONECKER_PCA, *SCHEDULE))


def test_a_run_s_files_verify_and_are_described(serial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Commands(capsys)
    assert run.done("verify", serial).out.count("every checksum holds") >= 4
    told = run.done("inspect", serial / "plan.h5").out
    assert "state/subspace/row/0000: float64 (1, 6, 16)" in told
    assert "state/precision/column/0001: float64 (1, 12, 12)" in told
    plan = Plan.read(serial / "plan.h5")
    assert plan.k == 6 * 12 + 6 * 12
    first, kept, anew = states_of_run(serial)
    assert np.array_equal(first.subspace["row/0000"], kept.subspace["row/0000"])
    assert not np.array_equal(anew.subspace["row/0000"], kept.subspace["row/0000"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "subspace", [("subspace.kind=identity",), ("subspace.kind=kronecker", *KRONECKER_PCA[1:]), KRONECKER_PCA]
)
def test_a_run_learns(subspace: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = settings(*MLP, *subspace, "privacy.epsilon=8", "precision.samples=300", "mechanism.rounds=6")
    outcome = Commands(capsys).fit("--out", tmp_path / "run", "--insecure-noise-seed", "7", "--json", *words)
    assert outcome.code == 0, outcome.err
    metrics = json.loads(outcome.out.splitlines()[-1])["metrics"]
    assert metrics["after"]["accuracy"] > metrics["before"]["accuracy"] + 0.1
