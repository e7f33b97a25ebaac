"""Kills at any instant: resume gives the bytes of an undisturbed run, one charge a round, and leaves no rank behind."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from command_server import commands
from fit_harness import QUICK, rank_processes, released, settings, start_fit
from mpi_harness import MpiRun, alive, run_environ
from same_bytes import job_of

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.sums import Quadratic
from distqexp.privacy.ledger import Ledger

pytestmark = pytest.mark.process

AT_WORK, AT_START = 6, 2
"""So many kills while a run works, evenly spread, and while it starts."""

VICTIMS = ("one rank", "all ranks", "launcher")
SEED = ("--insecure-noise-seed", "7")


class Undisturbed(NamedTuple):
    """The bytes of a run that nobody disturbs, and the seconds that it took to start and to work."""

    content: dict[str, bytes]
    start: float
    work: float


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
        began = time.monotonic()
        with start_fit(2, folder, folder / "run", *SEED) as run:
            wait_for_work(folder / "run", run)
            works = time.monotonic()
            done = run.finish(180)
    assert done.code == 0, done.err
    return Undisturbed(released(folder / "run"), works - began, time.monotonic() - works)


def wait_for_work(out: Path, run: MpiRun) -> None:
    """Until the run has made its folder, which it does before anything else."""
    while not out.exists():
        assert run.process.poll() is None, run.output()
        time.sleep(0.01)


def kill(out: Path, instant: int, undisturbed: Undisturbed) -> None:
    """Start a run into ``out`` on two ranks, and kill one rank, all of them or the launcher at an instant."""
    folder, victim = out.with_suffix(".log"), VICTIMS[instant % len(VICTIMS)]
    chance = random.Random(f"kill {instant}").random()
    with start_fit(2, folder, out, *SEED) as run:
        if instant < AT_WORK:
            wait_for_work(out, run)
            time.sleep((instant + chance) / AT_WORK * undisturbed.work)
        else:
            time.sleep((0.1 + 0.9 * chance) * undisturbed.start)
        ranks = rank_processes(out)
        for pid in {"one rank": ranks[-1:], "all ranks": ranks, "launcher": [run.process.pid]}[victim]:
            with suppress(ProcessLookupError):  # at the very end a run may be faster
                os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 60
        while alive(ranks) and time.monotonic() < until:
            time.sleep(0.1)
        assert alive(ranks) == [], f"ranks live on a minute after the {victim} was killed"
        run.finish(30)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, undisturbed: Undisturbed) -> Path:
    """A folder of runs killed at all instants and resumed, every other one on one rank alone, by one job for each number of ranks."""
    folder = tmp_path_factory.mktemp("kills")
    for instant in range(AT_WORK + AT_START):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DISTQEXP_LEDGER", f"{folder / str(instant)}.sqlite")
            kill(folder / str(instant), instant, undisturbed)
    for ranks in (1, 2):
        runs = {str(folder / str(i)): [*settings(*QUICK), "--resume"] for i in range(ranks - 1, AT_WORK + AT_START, 2)}
        path = folder / "runs.json"
        path.write_text(json.dumps(runs), "utf-8")
        done = job_of(folder, path, ranks)
        assert done.code == 0, done.err
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("instant", range(AT_WORK + AT_START))
def test_killed_at_a_random_instant_then_resumed(instant: int, resumed: Path, undisturbed: Undisturbed) -> None:
    """On as many ranks or on one alone: the sums are the same integers."""
    assert released(resumed / str(instant)) == undisturbed.content
    charges = [(row.universe, row.state) for row in Ledger.open(resumed / f"{instant}.sqlite").rows("digits")]
    assert charges == [("insecure-seed-7", "committed")] * 3


SCRIPT = """
import os, shutil, signal, sys
from pathlib import Path
from distqexp import fit
from distqexp.privacy.ledger import Ledger
from distqexp.artefacts.release import Release

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def copy_then_die(self, reservation, released):
    noise, = Path(str(self.path) + ".files").glob("noise-*")
    shutil.copy(noise, "noise.npy")
    die()

def after(function):
    def wrapped(*arguments, **keywords):
        function(*arguments, **keywords)
        die()
    return wrapped

where = sys.argv[1]
if where == "after the charge":
    Ledger.persist_noise = die
elif where == "after the draw":
    Ledger.commit = copy_then_die
elif where == "after the commit":
    Ledger.commit = after(Ledger.commit)
elif where == "after the release is written":
    Release.write = after(Release.write)
sys.exit(fit.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    "where", ["after the charge", "after the draw", "after the commit", "after the release is written"]
)
def test_real_noise_survives_a_kill_around_its_draw(where: str, tmp_path: Path, own_ledger: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT, "utf-8")
    arguments = ["--out", str(out), *[word for assignment in QUICK for word in ("--set", assignment)]]

    def run(place: str, *more: str) -> int:
        command = [str(commands() / "distqexp-script"), str(script), place, *arguments, *more]
        return subprocess.run(command, cwd=tmp_path, env=run_environ(), capture_output=True, timeout=120).returncode

    assert run(where) == -signal.SIGKILL
    (row,) = Ledger.open(own_ledger).rows("digits")
    assert row.state == {"after the charge": "reserved", "after the draw": "drawn"}.get(where, "committed")
    assert run("never", "--resume") == 0
    rows = Ledger.open(own_ledger).rows("digits")
    assert [row.state for row in rows] == ["committed"] * 3, "one charge a round"
    assert len({row.key for row in rows}) == 3
    plan = Plan.read(out / "plan.h5")
    release, quadratic = Release.read(out / "release-000.h5", plan), Quadratic.read(out / "quadratic-000.h5", plan)
    noise = release.noisy_sums - quadratic.sums
    if where == "after the draw":
        persisted = _persisted_noise(tmp_path / "noise.npy")
        assert np.array_equal(noise, persisted)
    # Real noise of the right size: 650 draws; false alarm below 1e-9 by Laurent and Massart's chi-square bounds.
    ratio = float(np.square(noise / plan.state.grid.sigma).sum()) / plan.k
    assert 0.6 < ratio < 1.5
    assert not list(Path(f"{own_ledger}.files").glob("noise-*")), "the noise is erased"


def _persisted_noise(path: Path) -> np.ndarray:
    content = path.read_bytes()
    start = content.index(b"\x93NUMPY")
    return np.load(io.BytesIO(content[start:]), allow_pickle=False)
