"""Noise drawn by all ranks, each for its own blocks: one job of four ranks, of which one to four take part."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
from kills import noise_files, small_config
from laws import quadratic
from mpi_harness import Finished, run_ranks
from numpy.typing import NDArray
from small_runs import plan_of

from distqexp import arrays
from distqexp.artefacts.plan import Plan
from distqexp.privacy.ledger import Ledger
from distqexp.stages.charging import Charging
from distqexp.stages.release import draw_release

pytestmark = pytest.mark.process

BLOCK = 12
SEED = 3

JOB = f"""
import shutil
from pathlib import Path
import numpy as np
from mpi4py import MPI
from distqexp import arrays
from distqexp.artefacts.plan import Plan
from distqexp.engines.mpi import MpiEngine
from distqexp.errors import BudgetError
from distqexp.privacy.ledger import Ledger
from distqexp.stages import scattered
from distqexp.stages.charging import Charging

arrays.BLOCK = {BLOCK}
plan, sums, world = Plan.read(Path("plan.h5")), np.load("sums.npy"), MPI.COMM_WORLD
places = arrays.blocks_of(sums.size)

def cut(*_):
    raise KeyboardInterrupt

def release(ranks, ledger, seed, sums, draw=scattered.draw_by_blocks):
    with MpiEngine(comm) as engine:
        parts = [np.random.default_rng(rank).integers(-2**40, 2**40, sums.size) for rank in range(1, ranks)]
        parts = [sums - sum(parts), *parts]
        own = engine.scattered_sum(lambda context, chunk, control: parts[chunk[0]], None, range(ranks))
        assert np.array_equal(own, np.concatenate([sums[place] for place in places[engine.rank :: ranks]]))
        receive, received = engine._receive, []
        engine._receive = lambda rank: received.append(receive(rank)) or received[-1]
        charging = Charging(Ledger.open(Path(ledger)), seed) if engine.is_root else None
        try:
            return draw(plan, plan.state, own, b"", charging, engine)
        except KeyboardInterrupt:
            return None
        finally:
            assert bool(received) == (engine.is_root and ranks > 1)
            found = [array.view(np.int64) for array in received]
            assert not any(np.array_equal(block, sums[place]) for block in found for place in places), "an exact sum"

groups = [(ranks, world.Split(int(world.rank < ranks))) for ranks in (1, 2, 3, 4)]  # now: a rank that waits here never sleeps
for ranks, comm in groups:
    if world.rank < ranks:
        found = release(ranks, f"seeded-{{ranks}}.sqlite", {SEED}, sums)
        assert (found is None) == (world.rank > 0)
        if found is not None:
            np.save(f"seeded-{{ranks}}.npy", found)
    if ranks == 3 and world.rank < ranks:
        assembled, scattered._assembled = scattered._assembled, cut  # after the draw is stored, before it is used
        release(ranks, "real.sqlite", None, sums)
        scattered._assembled = assembled
        if world.rank == 0:
            shutil.copy("real.sqlite", "copy.sqlite")
            shutil.copytree("real.sqlite.files", "copy.sqlite.files")
    if ranks == 4:
        found = release(ranks, "real.sqlite", None, sums)
        again = release(ranks, "real.sqlite", None, sums)
        if found is not None:
            assert np.array_equal(found, again)
            np.save("real.npy", found)
        try:
            release(ranks, "real.sqlite", None, sums + 1)
        except BudgetError as error:
            print(f"refused on rank {{world.rank}}\\n", end="", flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scattered")


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    plan = plan_of(small_config(folder))
    plan.write(folder / "plan.h5")
    return plan


@pytest.fixture(scope="module")
def sums(folder: Path, plan: Plan) -> NDArray[np.int64]:
    sums = np.random.default_rng(0).integers(-(10**6), 10**6, plan.k)
    np.save(folder / "sums.npy", sums)
    return sums


@pytest.fixture(scope="module")
def job(folder: Path, sums: NDArray[np.int64]) -> Finished:
    """The job, whose ranks also check what they get: the exact sums of their own blocks, and the root only noisy ones of others."""
    assert len(sums) > 6 * BLOCK
    done = run_ranks(4, folder, JOB)
    assert done.code == 0, done.err
    return done


@pytest.mark.usefixtures("job")
def test_seeded_releases_are_those_of_one_process_on_any_number_of_ranks(
    folder: Path, plan: Plan, sums: NDArray[np.int64], own_ledger: Path
) -> None:
    with Ledger.open(own_ledger) as ledger:
        expected = draw_release(plan, plan.state, quadratic(plan, plan.state, sums), Charging(ledger, SEED))
    for ranks in (1, 2, 3, 4):
        assert np.load(folder / f"seeded-{ranks}.npy").tobytes() == expected.tobytes()


@pytest.mark.usefixtures("job")
def test_a_draw_of_three_ranks_is_used_by_four_and_by_one_process(
    folder: Path, plan: Plan, sums: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stored before it is used, for its owner alone, and erased when the noisy sums are stored."""
    monkeypatch.setattr(arrays, "BLOCK", BLOCK)
    path = folder / "copy.sqlite"
    (stored,) = noise_files(path)
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    with Ledger.open(path) as ledger:
        assert [row.state for row in ledger.rows()] == ["drawn"]
        noisy = draw_release(plan, plan.state, quadratic(plan, plan.state, sums), Charging(ledger))
    assert noisy.tobytes() == np.load(folder / "real.npy").tobytes()
    assert np.count_nonzero(noisy == sums) < 6  # sigma > 2^15: more are unchanged with a chance below 1e-20
    with Ledger.open(folder / "real.sqlite") as ledger:
        assert [row.state for row in ledger.rows()] == ["committed"]
        assert ledger.export()[0]["body"]["block"] == BLOCK
        ledger.verify()
    assert not noise_files(path)
    assert not noise_files(folder / "real.sqlite")


def test_a_refused_charge_is_refused_on_every_rank(job: Finished) -> None:
    assert sorted(line for line in job.out.splitlines() if line) == [f"refused on rank {rank}" for rank in range(4)]
    assert len(job.lines("distqexp: population")) == 1
