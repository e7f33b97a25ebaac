"""What can't start over Dask ends at once, in one line: a script without a main guard, an address without a port."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from mpi_harness import run_environ, write_script

from distqexp.config import config_from_tree
from distqexp.engines.dask import DaskEngine
from distqexp.errors import UsageError

pytest.importorskip("distributed")

FIT = """
import numpy as np
import torch
import distqexp

features = np.random.default_rng(0).normal(size=(60, 4))
labels = (features[:, 0] > 0).astype(int)

def fitted():
    return distqexp.fit(
        torch.nn.Linear(4, 2), (features, labels), public=(features + 0.1, labels), epsilon=1, delta=1e-3,
        settings={"engine.kind": "dask", ENGINE, "mechanism.rounds": 1, "mechanism.clip": 0.1}, insecure_noise_seed=1,
    )
"""
ALONE, GUARDED = "fitted()\n", 'if __name__ == "__main__":\n    print(fitted().left)\n'


def outcome(folder: Path, end: str, engine: str = '"engine.workers": 1') -> subprocess.CompletedProcess[str]:
    script = write_script(folder, FIT.replace("ENGINE", engine) + end)
    environ = run_environ({"DISTQEXP_LEDGER": str(folder / "ledger.sqlite")})
    return subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=environ, capture_output=True, text=True, timeout=60
    )


@pytest.mark.process
def test_a_script_without_a_main_guard_ends_before_a_process_starts(tmp_path: Path) -> None:
    done = outcome(tmp_path, ALONE)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if "distqexp.errors" in line]
    assert line == done.stderr.splitlines()[-1]
    assert re.search(r"UsageError: .*: found a fit with engine.kind = dask outside the main guard.*put it there$", line)
    assert "bootstrapping" not in done.stderr
    assert not (tmp_path / "ledger.sqlite").exists()


@pytest.mark.process
@pytest.mark.slow
def test_with_a_guard_it_runs(tmp_path: Path) -> None:
    done = outcome(tmp_path, GUARDED)
    assert done.returncode == 0, done.stderr


@pytest.mark.process
def test_an_address_without_a_port_ends_at_once(tmp_path: Path) -> None:
    done = outcome(tmp_path, GUARDED, '"engine.scheduler": "node1"')
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].endswith(
        "UsageError: settings: engine.scheduler: found 'node1'; expected host:port, such as tcp://node1:8786"
    )
    command = [sys.executable, "-m", "distqexp.fit", "--out", "run", "--set", "engine.kind=dask"]
    done = subprocess.run(
        [*command, "--set", "engine.scheduler=tcp://node1"], cwd=tmp_path, env=run_environ(), capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "distqexp: config key engine.scheduler: found 'tcp://node1'; expected host:port, such as tcp://node1:8786"
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("node1:8786", True), ("tcp://node1:8786", True), ("tls://10.0.0.1:8786", True), ("[::1]:8786", True),
        ("ws://node1.site:80/path", True), ("node1", False), ("tcp://node1", False), ("node1:", False), (":8786", False),
        ("node1:port", False), ("", False),
    ],
)  # fmt: skip
def test_addresses(address: str, good: bool) -> None:
    tree = {
        "model": {"factory": "m:f", "loss": "cross-entropy"},
        "data": {"population": "p", "private": {"format": "digits"}},
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": 9},
        "engine": {"kind": "dask", "scheduler": address},
    }
    if good:
        assert config_from_tree(tree).engine.scheduler == address
        assert DaskEngine(address).kind == "dask"
        return
    for attempt in (lambda: config_from_tree(tree), lambda: DaskEngine(address)):
        with pytest.raises(UsageError, match=r"engine\.scheduler: found .*; expected host:port"):
            attempt()


HEAD = "import sys\nfrom distqexp.engines.main_guard import refuse_unguarded_main\n"


@pytest.mark.process
@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ("refuse_unguarded_main()\n", True),
        ("def work():\n    refuse_unguarded_main()\nwork()\n", True),
        ("def work():\n    refuse_unguarded_main()\nif __name__ == '__main__':\n    print()\n    work()\n", False),
        ("if __name__ == '__main__':\n    print()\nrefuse_unguarded_main()\n", True),
        ("if __name__ != '__main__':\n    sys.exit()\nrefuse_unguarded_main()\n", False),
        ("if True:\n    refuse_unguarded_main()\n", True),
        ("try:\n    if __name__ == '__main__':\n        refuse_unguarded_main()\nfinally:\n    pass\n", False),
    ],
)
def test_where_a_statement_is_guarded(body: str, refused: bool, tmp_path: Path) -> None:
    script = write_script(tmp_path, HEAD + body)
    done = subprocess.run([sys.executable, str(script)], env=run_environ(), capture_output=True, text=True, timeout=60)
    assert (done.returncode != 0) == refused, done.stderr
    assert ("outside the main guard" in done.stderr) == refused
    if not refused:  # nor without a file
        again = [sys.executable, "-c", HEAD + "refuse_unguarded_main()"]
        assert subprocess.run(again, env=run_environ(), capture_output=True, timeout=60).returncode == 0
