"""Kills at any instant: resume gives the bytes of an undisturbed run, one charge a round, and leaves no rank behind."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from fit_harness import QUICK, rank_processes, released, start_fit
from mpi_harness import alive, run_environ

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.sums import Quadratic
from distqexp.privacy.ledger import Ledger

pytestmark = pytest.mark.alone  # ranks wait for each other in busy loops

INSTANTS = 30
VICTIMS = ("one rank", "all ranks", "launcher")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """The bytes of a run that nobody disturbs, and its seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
        with start_fit(2, folder, folder / "run", "--insecure-noise-seed", "3") as run:
            done = run.finish(180)
    assert done.code == 0, done.err
    return released(folder / "run"), done.seconds


@pytest.mark.slow
@pytest.mark.parametrize("instant", range(INSTANTS))
def test_killed_at_a_random_instant_then_resumed(
    instant: int, tmp_path: Path, own_ledger: Path, undisturbed: tuple[dict[str, bytes], float]
) -> None:
    expected, seconds = undisturbed
    out, victim = tmp_path / "run", VICTIMS[instant % len(VICTIMS)]
    delay = random.Random(f"kill {instant}").uniform(0.1, 1.0) * seconds
    with start_fit(2, tmp_path / "killed", out, "--insecure-noise-seed", "3") as run:
        time.sleep(delay)
        ranks = rank_processes(out)
        chosen = {"one rank": ranks[-1:], "all ranks": ranks, "launcher": [run.process.pid]}[victim]
        for pid in chosen:
            os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 10
        while alive(ranks) and time.monotonic() < until:
            time.sleep(0.1)
        assert alive(ranks) == [], f"ranks live on 10 s after the {victim} was killed"
        run.finish(30)
    # On as many ranks or on one alone: the sums are the same integers.
    with start_fit(1 + instant % 2, tmp_path / "resumed", out, "--insecure-noise-seed", "3", "--resume") as run:
        done = run.finish(180)
    assert done.code == 0, done.err
    assert released(out) == expected
    charges = [(row.universe, row.state) for row in Ledger.open(own_ledger).rows("digits")]
    assert charges == [("insecure-seed-3", "committed")] * 3


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
    import subprocess
    import sys

    script, out = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT, "utf-8")
    arguments = ["--out", str(out), *[word for assignment in QUICK for word in ("--set", assignment)]]

    def run(place: str, *more: str) -> int:
        command = [sys.executable, str(script), place, *arguments, *more]
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
    import io

    return np.load(io.BytesIO(content[start:]), allow_pickle=False)
