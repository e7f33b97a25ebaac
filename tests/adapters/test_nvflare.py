"""FLARE's own simulator, with a process for each client; where the extra ``nvflare`` is not installed these are skipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flare_parties import CLIENTS, ROUNDS, SHARDS, make_parties

from distqexp.adapters.nvflare.settings import site_file
from distqexp.artefacts.plan import Plan
from distqexp.federation.study import Trust

pytest.importorskip("nvflare", reason="needs the extra nvflare")

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("trust", [None, Trust.MASKS])
def test_the_simulator_runs_what_the_files_way_does(files: Path, tmp_path: Path, trust: Trust | None) -> None:
    from distqexp.adapters.nvflare.job import make_job

    local = tmp_path / "workspace" / "local"
    parties = make_parties(tmp_path / "parties", files / "plan.h5", trust=trust, local=local)
    (local / "resources.json").write_text(json.dumps({"class_allow_list": ["distqexp.adapters.nvflare"]}))
    make_job(len(CLIENTS)).export_job(str(tmp_path / "jobs"))
    job = tmp_path / "jobs" / "distqexp"
    assert {path.suffix for path in job.rglob("*") if path.is_file()} == {".json"}  # no code travels

    words = [sys.executable, "-m", "nvflare.cli", "simulator", str(job), "-w", str(tmp_path / "workspace")]
    words += ["-c", ",".join(CLIENTS), "-t", str(len(CLIENTS))]
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(words, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    if trust is None:
        for name in (f"{kind}-{round:03d}.h5" for kind in ("quadratic", "release") for round in range(ROUNDS)):
            assert (parties.out / name).read_bytes() == (files / name).read_bytes(), name
    else:  # its noise is real; the sums are compared in test_nvflare_studies.py
        assert len(list((parties.root / "office" / "exchange").glob("release-*"))) == ROUNDS
        assert not list(parties.root.rglob("sketch-*"))
    assert [len(parties.charges(shard)) for shard in SHARDS] == [ROUNDS] * len(SHARDS)
    assert (parties.out / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "task", "returned", "code"),
    [
        ('plan_id = "{other}"', "distqexp-sketch", "BAD_TASK_DATA", 3),
        ("shard = 3", "distqexp-sketch", "BAD_REQUEST_DATA", 2),
        ('plan_id = "{plan}"\nledger = "ledger.sqlite"\nshard = "north"', "distqexp-sketch", "OK", 0),
        ("", "train", "TASK_UNKNOWN", None),
    ],
)
def test_a_reply_has_bytes_or_an_exit_code(
    files: Path, tmp_path: Path, settings: str, task: str, returned: str, code: int | None
) -> None:
    from nvflare.apis.fl_constant import FLContextKey, ReservedKey
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable
    from nvflare.apis.signal import Signal
    from nvflare.apis.workspace import Workspace

    from distqexp.adapters.nvflare.controller import _answer_of
    from distqexp.adapters.nvflare.executor import SiteExecutor

    for folder in ("local", "startup"):
        (tmp_path / folder).mkdir()
    text = settings.format(other="0" * 64, plan=Plan.read(files / "plan.h5").plan_id)
    (tmp_path / "local" / site_file("clinic")).write_text(text)
    context = FLContext()
    context.set_prop(FLContextKey.WORKSPACE_OBJECT, Workspace(str(tmp_path), "clinic"))
    context.set_prop(ReservedKey.IDENTITY_NAME, "clinic")
    sent = Shareable({"plan": (files / "plan.h5").read_bytes(), "releases": []})
    reply = SiteExecutor().execute(task, sent, context, Signal())
    assert (reply.get_return_code(), reply.get_header("distqexp_exit_code")) == (returned, code)
    answer = _answer_of(reply)
    assert (answer.code, "sketch" in answer.payload) == ((0, True) if code == 0 else (code or 5, False))
    if code != 0:
        assert set(reply) == {"__headers__"}  # nothing but the two codes
