"""A run whose sums are scattered by blocks: the bytes of a serial run, and the stored draw after the death of a rank that uses it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fit_harness import QUICK, released, seeded_serial_run, settings
from mpi_harness import run_ranks

from distqexp import arrays, fit
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.sums import Quadratic
from distqexp.privacy.ledger import Ledger
from distqexp.stages import rounds

pytestmark = pytest.mark.process

BLOCK = 100
OVERRIDES = (*QUICK, "mechanism.rounds=2", "diagnostics.share=0.1", "output.keep_sketches=false")

JOB = f"""
import json, os, signal, sys
from distqexp import arrays, fit
from distqexp.mechanism import rule

arrays.BLOCK = {BLOCK}
arguments = json.loads(sys.argv[1])
if fit.main(["--out", "seeded", "--insecure-noise-seed", "7", *arguments]) == 0:
    print("finished", flush=True)
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    rule.noise_of_block = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
fit.main(["--out", "real", *arguments])
"""


def test_three_ranks_give_the_serial_bytes_and_one_process_goes_on_where_a_rank_died(
    tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "_forget_private", lambda *_: None)
        serial = seeded_serial_run(tmp_path, OVERRIDES)
    done = run_ranks(3, tmp_path, JOB, json.dumps(settings(*OVERRIDES)), timeout=120)
    assert (done.out.count("finished"), done.code != 0) == (3, True), done.err
    assert released(tmp_path / "seeded") == released(serial)
    (stored,) = Path(f"{own_ledger}.files").glob("noise-*")
    with Ledger.open(own_ledger) as ledger:
        (row,) = [row for row in ledger.rows("digits") if row.private]
        assert row.state == "drawn"
        source = np.load(stored)
    assert list((tmp_path / "real").glob("sketch-000-*"))
    assert not list((tmp_path / "real").glob("quadratic-*"))
    monkeypatch.setattr(arrays, "BLOCK", BLOCK)
    assert fit.main(["--out", str(tmp_path / "real"), "--resume", *settings(*OVERRIDES)]) == 0
    with Ledger.open(own_ledger) as ledger:
        assert [row.state for row in ledger.rows("digits") if row.private] == ["committed"] * 2, "one charge a round"
    assert not stored.exists()
    plan = Plan.read(serial / "plan.h5")
    sums = Quadratic.read(serial / "quadratic-000.h5", plan).sums
    release = Release.read(tmp_path / "real" / "release-000.h5", plan)
    assert release.noisy_sums.tobytes() == plan.rule(plan.state).noisy_sums(sums, source).tobytes()
    assert (
        np.count_nonzero(release.noisy_sums == sums) < 6
    )  # sigma > 2^15: more are unchanged with a chance below 1e-20
