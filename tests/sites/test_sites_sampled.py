"""Sampled rounds by files: each site tosses coins for its own units, keeps them while it sketches, and hands none of them on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from consortium import ROUNDS, SHARDS, Consortium, four_sites
from kills import Killed, killing
from numpy.typing import NDArray
from run_harness import Commands

from distqexp import api
from distqexp.artefacts.plan import Plan
from distqexp.privacy.events import GaussianRelease
from distqexp.privacy.ledger import Ledger
from distqexp.stages import by_hand
from distqexp.stages import sampling as sampling_stage
from distqexp.storage.hdf5 import read_file

SAMPLING = 0.5


@pytest.fixture(params=["zero-out", "add-remove"])
def sites(request: pytest.FixtureRequest, tmp_path: Path, run: Commands, monkeypatch: pytest.MonkeyPatch) -> Consortium:
    mechanism = {"rounds": ROUNDS, "sampling": SAMPLING}
    return four_sites(tmp_path, run, monkeypatch, mechanism, request.param)


@pytest.mark.process
def test_three_rounds_by_files_are_one_run(sites: Consortium) -> None:
    sites.all_rounds(own_processes=1)
    sites.check_against(sites.as_one_run())
    for shard in SHARDS:
        rows = Ledger.open(sites.site(shard) / "books" / "ledger.sqlite").rows()
        assert [row.event.sampling for row in rows if isinstance(row.event, GaussianRelease)] == [SAMPLING] * ROUNDS


def coin_files(folder: Path) -> list[Path]:
    return sorted((folder / "books" / "ledger.sqlite.files").glob("coins-*"))


def sketched(sites: Consortium, name: str) -> NDArray[np.int64]:
    """The sums of the northern site's sketch of round 0, with real coins."""
    folder = sites.site("north")
    sites.at(folder)
    api.sketch(folder / "plan.h5", data=folder / "north.csv", out=folder / name)
    assert coin_files(folder) == []
    file = read_file(folder / name)
    assert file.arrays["done"].tolist() == [True]
    found: NDArray[np.int64] = file.arrays["sums"]
    return found


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("function", ["charge", "whole_sketch", "forget_coins"])
def test_an_interrupted_sketch_goes_on_with_the_same_coins(
    function: str, before: bool, sites: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites.plan()
    folder, tosses, original = sites.site("north"), [], sampling_stage.toss_coins

    def toss(units: int, sampling: float) -> NDArray[np.bool_]:
        tosses.append(units)
        return original(units, sampling)

    monkeypatch.setattr(sampling_stage, "toss_coins", toss)
    with monkeypatch.context() as patch:
        patch.setattr(by_hand, function, killing(getattr(by_hand, function), lambda *_, **__: True, before))
        sites.at(folder)
        with pytest.raises(Killed):
            api.sketch(folder / "plan.h5", data=folder / "north.csv", out=folder / "first.h5")
    if function == "forget_coins":  # the sketch is on its way already
        assert (folder / "first.h5").exists()
        assert len(coin_files(folder)) == before
        return
    assert len(coin_files(folder)) == 1
    sketched(sites, "first.h5")
    assert len(tosses) == 1
    assert len(sites.charges(folder)) == 1


def test_a_second_sketch_of_a_round_is_another_sample_and_costs_again(sites: Consortium) -> None:
    sites.plan()
    first, second = sketched(sites, "north-a.h5"), sketched(sites, "north-b.h5")
    plan = Plan.read(sites.site("north") / "plan.h5")
    assert plan.config.mechanism.sampling == SAMPLING
    # Twelve units: the same ones twice with a probability of 2^-12.
    assert sites.charges(sites.site("north")) == [("site-north", "0")] * (1 if np.array_equal(first, second) else 2)


def test_coins_of_earlier_rounds_are_erased_with_a_later_sketch(sites: Consortium) -> None:
    """Left behind by a kill just before they would have been erased."""
    sites.plan()
    folder = sites.site("north")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_hand, "forget_coins", lambda *_: None)
        sites.at(folder)
        api.sketch(folder / "plan.h5", data=folder / "north.csv", out=folder / "kept.h5")
    assert len(coin_files(folder)) == 1
    (folder / "kept.h5").unlink()
    sketched(sites, "north-0.h5")
    assert sites.charges(folder) == [("site-north", "0")]
