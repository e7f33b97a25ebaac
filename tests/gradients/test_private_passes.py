"""A private record that a model keeps, raises for or warns of: it changes nothing but its own row, on every path, and nobody is told."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from forgetful_models import MARK
from small_runs import context_of, plan_of, sums_of, unit_integers
from unusual_tasks import VECTORS, tree_of

from distqexp.config import Config, config_from_tree
from distqexp.engines.serial import SerialEngine
from distqexp.gradients.worker import Worker
from distqexp.sketching.choice import sketcher_of
from distqexp.sketching.counters import UnitCounters
from distqexp.sketching.curvature_sketcher import CurvatureSketcher
from distqexp.stages.features import keep_features
from distqexp.stages.shards import open_shards

BAD = 5
KRONECKER: dict[str, Any] = {"subspace": {"kind": "identity"}, "precision": {"kind": "kronecker"}}
PATHS: dict[str, dict[str, Any]] = {
    "torch.func": {"precision": {"kind": "diagonal"}},
    "layer by layer": KRONECKER,
}


def config_of(folder: Path, factory: str, args: dict[str, Any] | None = None, **sections: Any) -> Config:
    tree = tree_of(folder, factory, args or {}, VECTORS, **sections)
    tree["model"]["factory"] = f"forgetful_models:{factory}"
    return config_from_tree(tree)


def spoiled(config: Config, *, whole: bool = True) -> Config:
    """The config with other files of records, in which MARK stands in a private record."""
    old = Path(config.data.private[0].path)
    path = old.with_name("spoiled.h5")
    shutil.copyfile(old, path)
    with h5py.File(path, "r+") as file:
        file["x"][BAD, slice(None) if whole else 2] = MARK
    data = dataclasses.replace(config.data.private[0], path=str(path))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, private=(data,)))


def check_alone(usual: np.ndarray, found: np.ndarray, *, counts: bool) -> None:
    others = np.arange(len(usual)) != BAD
    assert np.array_equal(found[others], usual[others])
    assert bool(found[BAD].any()) == counts
    assert usual[others].any()


@pytest.mark.parametrize("path", ["torch.func", "layer by layer"])
@pytest.mark.parametrize("kind", ["number", "buffer", "frozen"])
def test_what_a_record_leaves_in_a_model_reaches_no_other(path: str, kind: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, "Keeper", {"kind": kind}, **PATHS[path])
    plan = plan_of(config)
    usual = unit_integers(config, plan)
    check_alone(usual, unit_integers(spoiled(config, whole=False), plan), counts=True)


def test_what_a_record_leaves_in_a_looped_layer_reaches_no_other(tmp_path: Path) -> None:
    config = config_of(tmp_path, "looped", **KRONECKER)
    plan = plan_of(config)
    context = context_of(config, plan)
    taps = context.worker.taps_of(next(context.batches(0))[0].inputs[:1])
    assert [fallback.looped for fallback in taps.routing.fallbacks.values()] == [True]
    usual = unit_integers(config, plan)
    check_alone(usual, unit_integers(spoiled(config, whole=False), plan), counts=True)


@pytest.mark.parametrize("path", ["torch.func", "layer by layer"])
def test_a_record_that_a_batch_raises_for_is_left_out(path: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, "Solver", **PATHS[path])
    plan = plan_of(config)
    usual, sums = unit_integers(config, plan), sums_of(config, plan, tmp_path / "usual")
    changed = spoiled(config)
    check_alone(usual, unit_integers(changed, plan), counts=False)
    moved = sums_of(changed, plan, tmp_path / "found") - sums
    if path == "torch.func":
        assert np.array_equal(moved, -usual[BAD])
    else:  # clipped sums of a micro-batch are rounded as a whole
        assert np.abs(moved + usual[BAD]).max() <= 3


def test_private_curvature_and_diagnostics_leave_it_out(tmp_path: Path) -> None:
    mechanism = {"curvature": "private", "trust_radius": 1.0, "clip_quantile": 0.8, "noise": "gaussian"}
    sections = {"mechanism": mechanism, "subspace": {"kind": "gaussian", "k": 4}, "precision": {"kind": "diagonal"}}
    config = config_of(tmp_path, "Solver", **sections)
    plan = plan_of(config)
    rows, losses = [], []
    for each in (config, spoiled(config)):
        context = context_of(each, plan)
        sketcher = sketcher_of(context, plan.state)
        assert isinstance(sketcher, CurvatureSketcher)
        batches = list(context.batches(0))
        linear, factors, unit = sketcher.unit_integers(batches)
        rows.append(
            np.concatenate([linear, np.stack([np.abs(factors[unit == n]).sum(axis=0) for n in range(8)])], axis=1)
        )
        counters = UnitCounters(context.network, context.loss, 8, 100, 4.0)
        losses.append(counters.losses(batches[0])[0])
    check_alone(rows[0], rows[1], counts=False)
    assert losses[1][BAD] == 4.0
    others = np.arange(8) != BAD
    assert np.array_equal(losses[0][others], losses[1][others])


def test_nothing_is_written_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, sections in enumerate([PATHS["torch.func"], KRONECKER]):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = config_of(folder, "Loud", **sections)
        plan = plan_of(config)
        config = spoiled(config)
        caplog.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            unit_integers(config, plan)
            sums_of(config, plan, folder / "sums")
        assert not caught
        assert not caplog.records
        assert logging.root.manager.disable == logging.NOTSET


def test_features_of_it_are_nan_and_nothing_stays_in_the_body(tmp_path: Path) -> None:
    for number, (factory, kept) in enumerate([("frozen_solver", None), ("frozen_keeper", 0.0)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = config_of(folder, factory, precision={"kind": "diagonal"})
        plan = plan_of(config)
        found = []
        for name, each in {"usual": config, "found": spoiled(config)}.items():
            worker, scratch = Worker.of_plan(plan), folder / name
            scratch.mkdir()
            shards = open_shards(plan, each.data.private, SerialEngine())
            source = keep_features(plan, shards, scratch, SerialEngine(), worker).sources[0]
            assert source.features is not None
            found.append(source.features.read(source.slots.rows))
        others = np.arange(12) != BAD
        assert torch.equal(found[0][others], found[1][others])
        assert bool(torch.isnan(found[1][BAD]).all()) == (kept is None)
        if kept is not None:
            assert worker.network.module[0].kept() == kept
        integers = unit_integers(each, plan)
        assert bool(integers[BAD].any()) == (kept is not None)


def test_a_public_record_that_it_raises_for_is_shown(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Solver", **KRONECKER)
    public = spoiled(config).data.private[0]
    with pytest.raises(torch.linalg.LinAlgError):
        plan_of(dataclasses.replace(config, data=dataclasses.replace(config.data, public=public)))
