"""Live modules over MPI, and what a killed script leaves behind: no record."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from live_records import OwnNet
from mpi_harness import run_environ, run_ranks

from distqexp.artefacts.plan import Plan

pytestmark = [pytest.mark.process, pytest.mark.slow]

SCRIPT = """
import numpy as np
import torch
import distqexp
from live_records import BUDGET, EVALUATION, PRIVATE, PUBLIC, OwnNet

from mpi4py import MPI

rank, size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
torch.manual_seed(rank)  # ranks draw other initial weights: those of the first one count
shard = slice(rank * 400 // size, (rank + 1) * 400 // size)
private = (PRIVATE[0][shard], PRIVATE[1][shard])
result = distqexp.fit(
    OwnNet(), private, public=PUBLIC if rank == 0 else None, out="run", callback=lambda event: None, insecure_noise_seed=3, **BUDGET
)
weights = torch.cat([parameter.reshape(-1) for parameter in result.model.parameters()])
np.save(f"weights-{rank}-of-{size}.npy", weights.detach().numpy())
assert result.predict(EVALUATION[0]).shape == (300,)
print(rank, result.certificate["units"], len(result.history))
"""

KILLED = """
import os, signal
import distqexp
from live_records import BUDGET, PRIVATE, PUBLIC, linear

def kill(event):
    if event.stage == "sketch":
        (folder,) = [name for name in os.listdir(".") if name.startswith(".run.records-")]
        print(os.listdir(folder), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

distqexp.fit(linear(), PRIVATE, public=PUBLIC, out="run", callback=kill, **BUDGET)
"""


def test_every_rank_passes_its_own_shard(tmp_path: Path) -> None:
    done = run_ranks(2, tmp_path, SCRIPT, timeout=150)
    assert done.code == 0, done.err
    assert sorted(done.out.splitlines()) == ["0 400 2", "1 400 2"]
    one, other = (np.load(tmp_path / f"weights-{rank}-of-2.npy") for rank in range(2))
    np.testing.assert_array_equal(one, other)
    assert sorted(path.name for path in tmp_path.iterdir() if "records" in path.name) == []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = torch.cat([parameter.reshape(-1) for parameter in OwnNet().parameters()]).detach().numpy()
    np.testing.assert_array_equal(Plan.read(tmp_path / "run" / "plan.h5").state.theta, start)
    assert not np.array_equal(one, start)


def test_a_rank_that_fails_ends_all_and_leaves_no_record(tmp_path: Path) -> None:
    broken = SCRIPT.replace("private = (", "private = (PRIVATE[0][:3], PRIVATE[1]) if rank else (")
    done = run_ranks(2, tmp_path, broken, timeout=150)
    assert done.code == 2
    assert "expected one length" in done.err
    deadline = time.monotonic() + 20
    while any("records" in path.name for path in tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sorted(path.name for path in tmp_path.iterdir() if "records" in path.name) == []


@pytest.mark.parametrize(
    ("shard", "words"),
    [
        ("(PRIVATE[0][:, :3], PRIVATE[1])", "private of rank 1: records of another shape"),
        ("(PRIVATE[0], PRIVATE[1].repeat(2).reshape(-1, 2))", "private of rank 1: records of another shape"),
    ],
)
def test_what_all_ranks_refuse_is_told_in_one_line(shard: str, words: str, tmp_path: Path) -> None:
    """Before a plan is made, and without the traceback of each rank."""
    done = run_ranks(2, tmp_path, SCRIPT.replace("private = (", f"private = {shard} if rank else ("), timeout=150)
    assert done.code != 0
    assert [line for line in done.err.splitlines() if "distqexp" in line] == [
        f"distqexp: {words}, or other columns, than rank 0's; expected the same on every rank"
    ]
    assert "Traceback" not in done.err
    assert not (tmp_path / "run" / "plan.h5").exists()


def test_a_script_that_is_killed_leaves_no_record(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(KILLED, "utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=run_environ(), capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert "private-0000.h5" in done.stdout
    deadline = time.monotonic() + 20
    while list(tmp_path.glob(".run.records-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(tmp_path.glob(".run.records-*")) == []
    assert (tmp_path / "run" / "plan.h5").exists()


STREAMED = """
import resource, sys
import numpy as np
import torch
import distqexp
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

COUNT = int(sys.argv[1])

class Stream(IterableDataset):
    def __iter__(self):
        random = np.random.default_rng(0)
        for _ in range(COUNT // 1000):
            features = random.normal(size=(1000, 64)).astype(np.float32)
            yield torch.from_numpy(features), torch.from_numpy((features[:, 0] > 0).astype(np.int64))

random = np.random.default_rng(1)
public = random.normal(size=(500, 64)).astype(np.float32)
peak = []
result = distqexp.fit(
    nn.Sequential(nn.Linear(64, 2)), DataLoader(Stream(), batch_size=None), public=(public, (public[:, 0] > 0).astype(int)),
    epsilon=1, delta=1e-8, callback=lambda event: peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss),
    settings={"mechanism.clip_natural": 1.0, "engine.micro_batch": 1000, "precision.kind": "kronecker"},
)
print(result.certificate["units"], peak[-1] // 1024)
"""


def test_a_loader_of_a_million_records_streams_in_constant_memory(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(STREAMED, "utf-8")
    peaks = []
    for count in (20_000, 1_000_000):
        command = [sys.executable, "script.py", str(count)]
        environ = run_environ({"DISTQEXP_LEDGER": str(tmp_path / f"{count}.sqlite")})
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
        units, peak = done.stdout.split()
        assert int(units) == count
        peaks.append(int(peak))
    assert peaks[1] - peaks[0] < 100  # MiB, where the features alone are 244
