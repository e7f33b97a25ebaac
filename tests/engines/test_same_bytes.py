"""The same integers, hence with one noise seed the same bytes, on any number of ranks, serially and by Dask: one table of runs by engines.

All runs of an engine are made by one job, so that its processes start once.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fit_harness import pooled, rank_processes, released, start_fit
from mpi_harness import Finished
from same_bytes import DIGITS, ROUNDS, opened_rows, public_bytes, runs_on_dask, runs_on_ranks, serial_runs

from distqexp.mechanism.coins import toss_insecure_coins

pytestmark = pytest.mark.process

ENGINES = {
    "1 rank": ("dense",),
    "2 ranks": ("dense", "parts", "kronecker"),
    "3 ranks": tuple(ROUNDS),
    "2 dask workers": tuple(name for name in ROUNDS if name not in ("public-pca", "probes", "one piece")),
}
"""The names of the runs that each engine makes; what 3 ranks get right is tried on 2 for some alone."""

PRIVATE = range(597, 1397)
CORES = 8


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs that all others are compared with, serial; bad records are declared blank there."""
    return serial_runs(tmp_path_factory.mktemp("serial"))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Finished]]:
    """The folder and the outcome of one job for each engine."""
    outcomes = {}
    for engine, names in ENGINES.items():
        if "dask" in engine:
            pytest.importorskip("distributed")
        folder = tmp_path_factory.mktemp(engine.replace(" ", "-"))
        done = runs_on_dask(folder, names) if "dask" in engine else runs_on_ranks(folder, names, int(engine[0]))
        outcomes[engine] = folder, done
    return outcomes


@pytest.mark.parametrize(("engine", "name"), [(engine, name) for engine, names in ENGINES.items() for name in names])
def test_an_engine_gives_the_bytes_of_the_serial_run(
    engine: str, name: str, jobs: dict[str, tuple[Path, Finished]], serial: Path
) -> None:
    folder, done = jobs[engine]
    assert done.code == 0, done.err
    content = public_bytes(folder, name)
    assert content == public_bytes(serial, name)
    for kind in ("quadratic", "release"):
        assert sum(file.startswith(kind) for file in content) == ROUNDS[name]


@pytest.mark.parametrize("engine", ["1 rank", "2 ranks", "3 ranks"])
def test_rank_0_alone_prints(engine: str, jobs: dict[str, tuple[Path, Finished]]) -> None:
    _, done = jobs[engine]
    assert done.out.count('{"delta"') == len(ENGINES[engine])
    started = [line for line in done.err.splitlines() if "sketch, round 1/" in line and "started" in line]
    assert len(started) == len(ENGINES[engine])


def test_each_rank_opens_its_own_slots_only(jobs: dict[str, tuple[Path, Finished]]) -> None:
    folder, _ = jobs["3 ranks"]
    for name in DIGITS:
        if name in ("sampled", "sampled layers", "frozen body"):
            continue  # the next tests
        visits = ROUNDS[name] // 2 if name == "parts" else ROUNDS[name]
        opened = opened_rows(folder, name, 3)
        assert sorted(row for rows in opened for row in rows) == sorted([*PRIVATE] * visits), (
            "once a round, by one rank"
        )
        if name == "dense":
            assert all(len(rows) // visits in range(200, 333) for rows in opened), [len(rows) for rows in opened]


def test_each_rank_opens_its_own_slots_of_the_part(jobs: dict[str, tuple[Path, Finished]]) -> None:
    folder, _ = jobs["2 ranks"]
    for rows in opened_rows(folder, "parts", 2):
        first, second = rows[: len(rows) // 4], rows[len(rows) // 4 : len(rows) // 2]
        assert {row % 2 for row in first} == {PRIVATE[0] % 2}
        assert {row % 2 for row in second} == {PRIVATE[1] % 2}


@pytest.mark.parametrize(("name", "sampling"), [("sampled", 0.25), ("sampled layers", 0.125)])
def test_ranks_open_the_units_that_were_drawn_and_nobody_else(
    name: str, sampling: float, jobs: dict[str, tuple[Path, Finished]]
) -> None:
    opened = opened_rows(jobs["3 ranks"][0], name, 3)
    drawn = [toss_insecure_coins(len(PRIVATE), sampling, 7, round, "all") for round in range(ROUNDS[name])]
    expected = [row for coins in drawn for row, coin in zip(PRIVATE, coins, strict=True) if coin]
    assert sorted(row for rows in opened for row in rows) == sorted(expected)
    assert 0 < len(expected) < 1.5 * sampling * ROUNDS[name] * len(PRIVATE)


def test_ranks_open_every_record_once_for_a_frozen_body_and_then_the_drawn_ones(
    jobs: dict[str, tuple[Path, Finished]],
) -> None:
    opened = opened_rows(jobs["3 ranks"][0], "frozen body", 3)
    drawn = [toss_insecure_coins(len(PRIVATE), 0.25, 7, round, "all") for round in range(ROUNDS["frozen body"])]
    expected = [row for coins in drawn for row, coin in zip(PRIVATE, coins, strict=True) if coin]
    assert sorted(row for rows in opened for row in rows) == sorted([*PRIVATE, *expected])


@pytest.mark.slow
def test_64_ranks_would_fit_in_20_gigabytes(tmp_path: Path) -> None:
    """By the memory that each of two ranks shares with nobody; the next test really starts 64 where there are cores for them."""
    out = tmp_path / "run"
    most = 0
    with start_fit(2, tmp_path / "log", out, "--insecure-noise-seed", "7") as run:
        while run.process.poll() is None:
            most = max([most, *(_bytes_of(pid, "Private_Clean", "Private_Dirty") for pid in rank_processes(out))])
            time.sleep(0.2)
        done = run.finish(120)
    assert done.code == 0, done.err
    assert 2**30 < 64 * most < 20e9, f"{64 * most / 1e9:.1f} GB"


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < CORES, reason=f"64 ranks want {CORES} cores or more")
def test_64_ranks_give_the_same_bytes_in_20_gigabytes(tmp_path: Path, serial: Path) -> None:
    out = tmp_path / "run"
    most = 0
    with start_fit(64, tmp_path / "log", out, "--insecure-noise-seed", "7") as run:
        while run.process.poll() is None:
            most = max(most, sum(_bytes_of(pid, "Pss") for pid in rank_processes(out)))
            time.sleep(8.0)  # looking costs a good second itself
        done = run.finish(600)
    assert done.code == 0, done.err
    assert {**pooled(out), **released(out)} == public_bytes(serial, "dense")
    assert 2 * 2**30 < most < 20e9, f"{most / 1e9:.1f} GB"


def _bytes_of(pid: int, *kinds: str) -> int:
    """The memory of a process, of these kinds; 0 if it ended meanwhile."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.partition(":")[0] in kinds)
