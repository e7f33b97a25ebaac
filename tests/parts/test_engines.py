"""Rounds of parts after a kill, and at sites with files: the bytes of the serial run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_server import commands
from consortium import ROUNDS, SEED, SHARDS, four_sites
from fit_harness import fit_arguments, pooled, released
from mpi_harness import run_environ
from run_harness import Commands
from same_bytes import PARTS

from distqexp import fit
from distqexp.privacy.expenses import Part
from distqexp.privacy.ledger import Ledger
from distqexp.storage.hdf5 import read_file


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that all others are compared with, serial."""
    folder = tmp_path_factory.mktemp("serial")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
        arguments = fit_arguments(folder / "run", "--insecure-noise-seed", "7", overrides=PARTS)
        assert fit.main(arguments[2:]) == 0
    return folder / "run"


KILLED = """
import os, signal, sys
from distqexp import fit
from distqexp.privacy.ledger import Ledger
from distqexp.stages import sketch
from distqexp.sketching.sketcher import Sketcher

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

where, calls = sys.argv[1], []
sketcher = Sketcher.sketch
def sketching(self, batches):
    calls.append(1)
    if len(calls) == 10:  # in the second round: a part has 7 pieces
        die()
    return sketcher(self, batches)

if where == "in the sketch":
    sketch.CHECKPOINT_SECONDS = 0.0
    Sketcher.sketch = sketching
elif where == "after the draw":
    Ledger.commit = die
sys.exit(fit.main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("where", ["in the sketch", "after the draw"])
def test_a_killed_run_goes_on_with_its_part(where: str, tmp_path: Path, serial: Path, own_ledger: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "run"
    script.write_text(KILLED, "utf-8")
    arguments = fit_arguments(out, "--insecure-noise-seed", "7", overrides=PARTS)[2:]

    def start(place: str, *more: str) -> int:
        command = [str(commands() / "distqexp-script"), str(script), place, *arguments, *more]
        return subprocess.run(command, cwd=tmp_path, env=run_environ(), capture_output=True, timeout=120).returncode

    assert start(where) == -signal.SIGKILL
    if where == "in the sketch":
        (checkpoint,) = out.glob("sketch-001-*.h5")
        done = read_file(checkpoint).arrays["done"]
        assert (len(done), done.sum()) == (7, 2), "of the pieces of the part, those that were finished"
    assert start("never", "--resume") == 0
    assert released(out) == released(serial)
    assert pooled(out) == pooled(serial)
    rows = Ledger.open(own_ledger).rows("digits")
    assert [(row.state, row.part) for row in rows] == [("committed", Part(r % 2, 2)) for r in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize("adjacency", ["zero-out", "add-remove"])
def test_sites_with_files_are_one_run(
    adjacency: str, tmp_path: Path, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = four_sites(tmp_path, run, monkeypatch, {"rounds": ROUNDS, "parts": ROUNDS}, adjacency)
    found.all_rounds(own_processes=0)
    found.check_against(found.as_one_run())
    for folder in (found.curator, *(found.site(shard) for shard in SHARDS)):
        with Ledger.open(folder / "books" / "ledger.sqlite") as ledger:
            rows = ledger.rows()
            assert [row.part for row in rows] == [Part(round, ROUNDS) for round in range(ROUNDS)]
            spent = ledger.spent("patients", rows[0].universe)
            assert spent.mu == max(row.event.mu for row in rows), "one round for each unit; clips, and so grids, differ"
            assert 0.98 < spent.epsilon(1e-4) <= 1.0
    found.at(found.curator)
    shown = found.at(found.site("north")).done("ledger", "show").out
    assert f", part 2 of {ROUNDS}: mu" in shown
    certificate = json.loads((found.curator / "model" / "certificate.json").read_text("utf-8"))
    assert [entry["part"] for entry in certificate["rounds"]] == list(range(ROUNDS))
    assert certificate["parts"]["count"] == ROUNDS


def test_a_site_whose_table_changed_pays_for_everybody(
    tmp_path: Path, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = four_sites(tmp_path, run, monkeypatch, {"rounds": ROUNDS, "parts": ROUNDS})
    found.plan()
    found.pool(0, [found.sketch(shard, 0) for shard in SHARDS])
    found.release(0)
    table = found.site("east") / "east.csv"
    header, *rows = table.read_text("utf-8").splitlines()
    table.write_text("\n".join([header, *rows[::-1]]) + "\n", "utf-8")
    arguments = ["sketch", "plan.h5", "--data", "east.csv", "--release", "release-000.h5", "--out", "east-1.h5"]
    arguments += ["--insecure-noise-seed", SEED]
    found.at(found.site("east")).distqexp(*arguments).refused(4, "budget spent", "restore the files")
    assert not (found.site("east") / "east-1.h5").exists()
    found.at(found.site("east")).done("ledger", "cap", "patients", "--epsilon", "3", "--delta", "1e-4")
    shutil.rmtree(found.site("east") / "east-1.h5.parts", ignore_errors=True)
    found.at(found.site("east")).done(*arguments)
    with Ledger.open(found.site("east") / "books" / "ledger.sqlite") as ledger:
        assert [row.part for row in ledger.rows()] == [Part(0, ROUNDS), None]
        spent = ledger.spent("patients", ledger.rows()[0].universe).mu
        assert np.isclose(spent, np.hypot(*(row.event.mu for row in ledger.rows())))


def test_a_site_cannot_finish_in_another_part(tmp_path: Path, run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part is that of the release: files of two rounds don't go together."""
    found = four_sites(tmp_path, run, monkeypatch, {"rounds": ROUNDS, "parts": ROUNDS})
    found.plan()
    first = [found.sketch(shard, 0) for shard in SHARDS]
    found.pool(0, first)
    found.release(0)
    second = [found.sketch(shard, 1) for shard in SHARDS]
    sums = [read_file(path).arrays["sums"] for path in (first[0], second[0])]
    assert not np.array_equal(*sums)
    curator = found.at(found.curator)
    mixed = [*second[:3], first[3], "--out", "new.h5"]
    curator.distqexp("pool", "plan.h5", *mixed).refused(3, "round 0", "round 1")
    assert not os.path.exists(found.curator / "new.h5")
