"""FLARE's own simulator, with a process for each client; where the extra ``nvflare`` is not installed these are skipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flare_parties import CLIENTS, ROUNDS, by_files, make_parties

pytest.importorskip("nvflare", reason="needs the extra nvflare")

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.process]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run by files, and the plan."""
    return by_files(tmp_path_factory.mktemp("files") / "run")


@pytest.mark.parametrize("masks", [False, True])
def test_the_simulator_gives_the_integers_of_the_files_way(files: Path, tmp_path: Path, masks: bool) -> None:
    from distqexp.adapters.nvflare.job import make_job

    local = tmp_path / "workspace" / "local"
    parties = make_parties(tmp_path / "parties", files / "plan.h5", masks=masks, local=local)
    (local / "resources.json").write_text(json.dumps({"class_allow_list": ["distqexp.adapters.nvflare"]}))
    make_job(len(CLIENTS)).export_job(str(tmp_path / "jobs"))
    job = tmp_path / "jobs" / "distqexp"
    assert {path.suffix for path in job.rglob("*") if path.is_file()} == {".json"}  # no code travels

    words = [sys.executable, "-m", "nvflare.cli", "simulator", str(job), "-w", str(tmp_path / "workspace")]
    words += ["-c", ",".join(CLIENTS), "-t", str(len(CLIENTS))]
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(words, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    for name in (f"{kind}-{round:03d}.h5" for kind in ("quadratic", "release") for round in range(ROUNDS)):
        assert (parties.out / name).read_bytes() == (files / name).read_bytes(), name
    assert (parties.out / "model" / "model.safetensors").exists()
