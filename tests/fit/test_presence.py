"""Patients who are known at several sites: declared presence, and what their records can move together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import exact_norm, make_config, plan_of, random_table, sums_of

from distqexp.artefacts.plan import Plan
from distqexp.config import Config, config_from_tree, config_to_tree
from distqexp.errors import UsageError

SIZES = [1, 3, 1, 2, 5, 1]


def two_sites(folder: Path, presence: int, **mechanism: object) -> tuple[Config, Plan]:
    """Two shards with the very same records: the worst that presence at two sites can be."""
    random_table("logistic", SIZES, seed=1).write(folder / "private.h5")
    random_table("logistic", SIZES, seed=2).write(folder / "public.h5")
    tree = config_to_tree(make_config(folder, "logistic", mechanism={"clip": 0.01, **mechanism}))
    (site,) = tree["data"]["private"]
    tree["data"]["private"] = [site | {"shard": name} for name in ("north", "south")]
    tree["privacy"]["presence"] = presence
    config = config_from_tree(tree)
    return config, plan_of(config)


def without(config: Config, folder: Path, unit: int) -> Config:
    """The config with a unit's records blank at both sites."""
    table = random_table("logistic", SIZES, seed=1)
    np.save(folder / "blank.npy", table.u == unit)
    sites = tuple(replace(site, blank=str(folder / "blank.npy")) for site in config.data.private)
    return replace(config, data=replace(config.data, private=sites))


def test_a_unit_at_two_sites_moves_the_sum_by_twice_the_clip_and_pays_for_it(tmp_path: Path) -> None:
    config, plan = two_sites(tmp_path, presence=2)
    grid = plan.state.grid
    whole = sums_of(config, plan, tmp_path / "whole")
    moves = [
        exact_norm(whole - sums_of(without(config, tmp_path, unit), plan, tmp_path / f"{unit}"))
        for unit in range(len(SIZES))
    ]
    assert grid.sensitivity == 2 * grid.clip_integer
    assert max(moves) <= grid.sensitivity**2
    assert max(moves) > (1.99 * grid.clip_integer) ** 2
    alone = two_sites(tmp_path, presence=1)[1].state.grid
    # Undeclared, the noise would be calibrated to too little.
    assert max(moves) * grid.step**2 > 3.9 * (alone.sensitivity * alone.step) ** 2
    assert grid.mu == pytest.approx(plan.calibration.mu_round, rel=1e-3)
    assert grid.sigma * grid.step == pytest.approx(2 * alone.sigma * alone.step, rel=1e-3)


def test_a_run_refuses_ids_in_more_shards_than_are_declared(tmp_path: Path) -> None:
    config, plan = two_sites(tmp_path, presence=1)
    with pytest.raises(UsageError, match=r"a unit id stands in more shards than privacy.presence = 1; expected each"):
        sums_of(config, plan, tmp_path / "sums")
    # Other ids at the other site: nothing to declare.
    table = random_table("logistic", SIZES, seed=1)
    table.u += 1000
    table.write(tmp_path / "south.h5")
    north, south = config.data.private
    sites = (north, replace(south, path=str(tmp_path / "south.h5")))
    apart = replace(config, data=replace(config.data, private=sites))
    assert sums_of(apart, plan, tmp_path / "sums").any()


def test_presence_and_parts_are_refused_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mechanism.parts: found 2; expected 1 with privacy.presence"):
        two_sites(tmp_path, presence=2, parts=2, rounds=2)
    with pytest.raises(UsageError, match=r"privacy.presence: found 0"):
        two_sites(tmp_path, presence=0)
