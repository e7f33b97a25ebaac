"""A run whose sums are scattered by blocks: the bytes of a serial run, and the stored draw after the death of a rank that uses it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fit_harness import QUICK, released, seeded_serial_run, settings
from kills import Killed, killing, ran, rows_of, small_config
from mpi_harness import run_ranks

from distqexp import api, arrays, fit
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.sums import Quadratic
from distqexp.engines.serial import SerialEngine
from distqexp.privacy.events import GaussianRelease
from distqexp.privacy.ledger import Ledger
from distqexp.stages import rounds, scattered
from distqexp.stages import sampling as sampling_stage
from distqexp.stages import sketch as sketch_stage

BLOCK = 100
OVERRIDES = (*QUICK, "mechanism.rounds=2", "diagnostics.share=0.1", "output.keep_sketches=false")

JOB = f"""
import json, os, signal, sys
from distqexp import api, arrays, fit
from distqexp.mechanism import rule

arrays.BLOCK = {BLOCK}
arguments = json.loads(sys.argv[1])
if fit.main(["--out", "seeded", "--insecure-noise-seed", "7", *arguments]) == 0:
    print("finished", flush=True)
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    rule.noise_of_block = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
fit.main(["--out", "real", *arguments])
"""


@pytest.mark.process
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


class AsTwo(SerialEngine):
    """One process that works as two do, of which the other has no blocks."""

    size = 2

    def own_blocks(self, length: int) -> list[tuple[int, slice]]:
        return [*enumerate(arrays.blocks_of(length))]


ROUNDS = 2
KILLS: dict[str, tuple[Any, str, bool, int]] = {
    "after the sums": (sketch_stage, "sketch_round", False, 1),
    "after the charge": (scattered, "charge", False, 1),
    "before the draw is used": (scattered, "_assembled", True, 1),
    "before the commit": (Ledger, "commit", True, 1),
    "after the commit": (Ledger, "commit", False, 1),
    "before the release is made": (rounds, "make_release", True, 1),
    "before the coins are erased": (rounds, "forget_coins", True, 2),
}
"""Where in the second round: what is patched, whether before its work, and its calls before that; coins are erased at the start, too."""


@pytest.mark.parametrize(("name", "engine"), [*zip(KILLS, itertools.cycle([AsTwo, SerialEngine]))])
def test_a_sampled_round_that_was_killed_is_charged_and_tossed_once(
    name: str, engine: type[SerialEngine], tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, function, before, skipped = KILLS[name]
    config = small_config(tmp_path, mechanism={"rounds": ROUNDS, "sampling": 0.4})
    tosses, calls, out = [], itertools.count(), tmp_path / "out"
    toss = sampling_stage.toss_coins
    monkeypatch.setattr(sampling_stage, "toss_coins", lambda *arguments: tosses.append(1) or toss(*arguments))
    monkeypatch.setattr(arrays, "BLOCK", 16)
    with monkeypatch.context() as patch:
        real = getattr(owner, function)
        patch.setattr(owner, function, killing(real, lambda *_, **__: next(calls) == skipped, before))
        with pytest.raises(Killed):
            api.fit(config, out, engine=AsTwo())
    assert not list(out.glob("quadratic-*"))
    assert len(list(Path(f"{own_ledger}.files").glob("coins-*"))) == 1
    result = ran(config, out, resume=True, engine=engine())
    assert len(result.releases) == len(tosses) == len(rows_of(own_ledger)) == ROUNDS
    assert {row.state for row in rows_of(own_ledger)} == {"committed"}
    assert all(row.event.sampling == 0.4 for row in rows_of(own_ledger) if isinstance(row.event, GaussianRelease))
    left = {path.name.split("-")[0] for path in Path(f"{own_ledger}.files").glob("*-*")}
    assert left == {"released"}
