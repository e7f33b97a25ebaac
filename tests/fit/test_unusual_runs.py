"""Runs of models whose records are taken one at a time: the same bytes on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
from fit_harness import pooled, released
from mpi_harness import MpiRun, mpi_command
from run_harness import to_toml
from unusual_tasks import SERIES, tree_of

from distqexp import fit


@pytest.mark.process
def test_the_bytes_don_t_depend_on_the_number_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mechanism = {"rounds": 2, "clip_quantile": 0.8}
    tree = tree_of(tmp_path, "Last", {}, SERIES, mechanism=mechanism, output={"keep_sketches": True})
    del tree["engine"]["kind"]
    config = tmp_path / "c.toml"
    config.write_text(to_toml(tree))
    monkeypatch.setenv("DISTQEXP_LEDGER", str(tmp_path / "one.sqlite"))
    assert fit.main([str(config), "--out", str(tmp_path / "one"), "--insecure-noise-seed", "7"]) == 0
    arguments = ["-m", "distqexp.fit", str(config), "--out", str(tmp_path / "two"), "--insecure-noise-seed", "7"]
    environ = {"DISTQEXP_LEDGER": str(tmp_path / "two.sqlite")}
    with MpiRun(mpi_command(2, *arguments), tmp_path, environ) as job:
        done = job.finish(240)
    assert done.code == 0, done
    one, two = tmp_path / "one", tmp_path / "two"
    assert {**pooled(one), **released(one)} == {**pooled(two), **released(two)}
