"""Fixtures of consortia."""

from __future__ import annotations

from pathlib import Path

import pytest
from consortium import ROUNDS, SHARDS, Consortium, gather
from run_harness import Commands, table_source, table_tree, write_table


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(capsys)


@pytest.fixture
def consortium(tmp_path: Path, run: Commands, monkeypatch: pytest.MonkeyPatch) -> Consortium:
    """Four sites of generated patients with one to four records each."""
    tree = table_tree(mechanism={"rounds": ROUNDS}, data={"eval": table_source("eval.csv")})
    tree["mechanism"] = {"rounds": ROUNDS, "clip_quantile": 0.8}
    tree["data"]["private"] = [table_source(f"../{shard}/{shard}.csv", unit=True, shard=shard) for shard in SHARDS]
    found = gather(tmp_path, tree, SHARDS, run, monkeypatch)
    write_table(found.curator / "public.csv", 1, 80)
    write_table(found.curator / "eval.csv", 2, 40)
    for number, shard in enumerate(SHARDS):
        write_table(found.site(shard) / f"{shard}.csv", 10 + number, 12 + 7 * number, records=4, shift=0.3)
    return found
