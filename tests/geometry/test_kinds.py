"""Kinds of subspaces and precisions that somebody else brings: a file and a registration each, and every stage takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_precision
import toy_subspace
from run_harness import Commands, overrides, write_task

from distqexp.artefacts.plan import Plan
from distqexp.errors import UsageError
from distqexp.geometry.precisions import kind as precision_kinds
from distqexp.geometry.precisions import precision_kind, register_precision
from distqexp.geometry.subspaces import kind as subspace_kinds
from distqexp.geometry.subspaces import register_subspace, subspace_kind
from distqexp.kinds import PRECISIONS, SUBSPACES
from distqexp.stages import rounds
from distqexp.storage.hdf5 import read_file

TOYS = overrides(
    "subspace.kind=toy-coordinates", "subspace.k=3", "precision.kind=toy-two-level", "mechanism.rounds=2",
    "mechanism.parts=1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are known for the length of a test."""
    subspace, precision = toy_subspace.CoordinateKind(), toy_precision.TwoLevelKind()
    monkeypatch.setitem(SUBSPACES, subspace.traits.name, subspace.traits)
    monkeypatch.setitem(PRECISIONS, precision.traits.name, precision.traits)
    monkeypatch.setattr(subspace_kinds, "_KINDS", dict(subspace_kinds._KINDS))
    monkeypatch.setattr(precision_kinds, "_KINDS", dict(precision_kinds._KINDS))
    register_subspace(subspace)
    register_precision(precision)


def released(folder: Path) -> list[bytes]:
    files = [read_file(folder / f"release-{round:03d}.h5", kind="release").arrays for round in (0, 1)]
    return [arrays[name].tobytes() for arrays in files for name in ("noisy_sums", "theta")]


@pytest.fixture
def serial(run: Commands, tmp_path: Path) -> tuple[Path, list[bytes]]:
    """A config, and what a serial run of it with the toys releases."""
    task = write_task(tmp_path)
    assert run.fit(task, "--out", tmp_path / "serial", "--insecure-noise-seed", "3", *TOYS).code == 0
    return task, released(tmp_path / "serial")


def test_plan_sketch_and_release_know_the_toys(serial: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    plan = Plan.read(tmp_path / "serial" / "plan.h5")
    assert (plan.config.subspace.kind, plan.config.precision.kind, plan.k) == ("toy-coordinates", "toy-two-level", 3)
    assert set(plan.state.precision) == {"inverse_root"}
    theta = np.frombuffer(serial[1][1])
    assert np.count_nonzero(theta != plan.state.theta) == plan.k < plan.d


@pytest.mark.process
@pytest.mark.slow
def test_dask_workers_learn_the_toys_from_the_work(
    run: Commands, serial: tuple[Path, list[bytes]], tmp_path: Path
) -> None:
    """The worker processes have imported neither file."""
    dask = overrides("engine.kind=dask", "engine.workers=2")
    task, expected = serial
    outcome = run.fit(task, "--out", tmp_path / "dask", "--insecure-noise-seed", "3", *TOYS, *dask)
    assert outcome.code == 0, outcome.err
    assert released(tmp_path / "dask") == expected


def test_a_killed_run_goes_on_with_the_toys(
    run: Commands, serial: tuple[Path, list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    task, expected = serial
    arguments = [task, "--out", tmp_path / "killed", "--insecure-noise-seed", "3", *TOYS]
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "make_release", killed)
        with pytest.raises(Killed):
            run.fit(*arguments)
    assert run.fit(*arguments, "--resume").code == 0
    assert released(tmp_path / "killed") == expected


def test_registered_kinds_are_known_by_name_and_others_are_refused() -> None:
    assert isinstance(subspace_kind("toy-coordinates"), toy_subspace.CoordinateKind)
    assert isinstance(precision_kind("toy-two-level"), toy_precision.TwoLevelKind)
    assert {"toy-coordinates"} <= set(SUBSPACES)
    assert {"toy-two-level"} <= set(PRECISIONS)
    with pytest.raises(UsageError, match=r"unknown kind 'polar'; expected identity, gaussian, .*toy-coordinates"):
        subspace_kind("polar")
    with pytest.raises(UsageError, match="unknown kind 'polar'; expected identity, diagonal"):
        precision_kind("polar")


def test_an_unknown_kind_in_a_config_names_the_known_ones(run: Commands, tmp_path: Path) -> None:
    task = write_task(tmp_path)
    for key in ("subspace", "precision"):
        run.fit(task, "--out", tmp_path / "out", "--set", f"{key}.kind=polar").refused(
            2, f"config key {key}.kind: found 'polar'; expected one of auto, identity"
        )
