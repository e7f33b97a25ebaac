"""The guard: points that would ruin the model are held back, on public records or probes alone, and whoever reads a release knows."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import make_config, plan_of, random_table

from distqexp.artefacts.moves import HALVINGS, halved
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.config import Config
from distqexp.engines.serial import SerialEngine
from distqexp.errors import FileContentError, UsageError
from distqexp.geometry.precisions import precision_from_arrays
from distqexp.geometry.whitening import Whitening
from distqexp.gradients.setup import subspace_of
from distqexp.gradients.worker import Worker
from distqexp.report.certificate import write_certificate
from distqexp.stages.chain import check_follows
from distqexp.stages.export import certificate_of
from distqexp.stages.guard import Guard
from distqexp.stages.release import Draw, make_release
from distqexp.storage.inspect import describe


def setting(folder: Path, public: bool = True, **mechanism: Any) -> tuple[Config, Plan]:
    random_table("logistic", [1] * 40, seed=1).write(folder / "public.h5")
    data = {} if public else {"record_shape": [6]}
    config = make_config(folder, "logistic", public=public, mechanism={"guard": True, **mechanism})
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, record_shape=(6,) if data else None))
    return config, plan_of(config)


def released(config: Config, plan: Plan, size: int) -> Release:
    """A release whose noisy sums are all of this size."""
    noisy_sums = np.full(plan.k, size, dtype=np.int64)
    return make_release(plan, plan.state, Draw(noisy_sums, 3), config.data.public, SerialEngine())


@pytest.mark.parametrize("public", [True, False], ids=["public", "probes"])
def test_a_small_move_is_made_and_one_that_leaves_the_numbers_is_not(public: bool, tmp_path: Path) -> None:
    config, plan = setting(tmp_path, public)
    assert released(config, plan, 1).halvings == 0
    start = plan.state.theta
    guard = Guard(plan, config.data.public, Worker.of_plan(plan))
    for end in (np.full(plan.d, np.nan), np.full(plan.d, np.inf), np.full(plan.d, 1e308)):
        point, halvings = guard.moved(start, end)
        assert halvings == HALVINGS
        np.testing.assert_array_equal(point, start)


def test_a_move_that_ruins_the_public_loss_is_halved_until_it_does_not(tmp_path: Path) -> None:
    config, plan = setting(tmp_path)
    guard = Guard(plan, config.data.public, Worker.of_plan(plan))
    end = plan.state.theta + 3.0
    point, halvings = guard.moved(plan.state.theta, end)
    assert 0 < halvings < HALVINGS
    np.testing.assert_array_equal(point, halved(plan.state.theta, end, halvings))
    assert guard.loss(point) <= guard.bound < guard.loss(halved(plan.state.theta, end, halvings - 1))
    first = guard.loss(plan.state.theta)
    assert first + 0.05 <= guard.bound < first + 0.1


def test_the_bound_is_the_plans_and_a_wider_one_holds_less_back(tmp_path: Path) -> None:
    cut = []
    for place, rise in enumerate((0.0, 0.05, 0.5, 1e6)):
        folder = tmp_path / str(place)
        folder.mkdir()
        config, plan = setting(folder, guard_rise=rise)
        plan.write(folder / "plan.h5")
        plan = Plan.read(folder / "plan.h5")
        assert plan.header()["config"]["mechanism"]["guard_rise"] == rise
        guard = Guard(plan, config.data.public, Worker.of_plan(plan))
        assert guard.bound - guard.loss(plan.state.theta) == pytest.approx(rise, abs=1e-12)
        cut.append(guard.moved(plan.state.theta, plan.state.theta + 3.0)[1])
    assert cut == sorted(cut, reverse=True)
    assert cut[0] > cut[2] > cut[3] == 0


@pytest.mark.parametrize("rise", [-0.1, math.inf])
def test_a_bound_that_is_none_is_refused(rise: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mechanism\.guard_rise: found .*; expected 0 or more"):
        setting(tmp_path, guard_rise=rise)


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    config, plan = setting(tmp_path, guard=False)
    guard = Guard(plan, config.data.public, Worker.of_plan(plan))
    end = plan.state.theta + 1e6
    assert guard.moved(plan.state.theta, end) == (end, 0)


def test_the_release_says_so_and_is_read_back_and_followed(tmp_path: Path) -> None:
    config, plan = setting(tmp_path, rounds=2, momentum=0.5)
    release = released(config, plan, -(2**24))
    assert 0 < release.halvings < HALVINGS
    assert release.next_state is not None
    assert release.next_state.velocity is not None
    np.testing.assert_array_equal(release.next_state.velocity, release.theta - plan.state.theta)
    release.write(tmp_path / "release.h5")
    again = Release.read(tmp_path / "release.h5", plan)
    assert again.halvings == release.halvings
    check_follows(plan, plan.state, again)
    with pytest.raises(FileContentError, match="theta"):
        check_follows(plan, plan.state, dataclasses.replace(again, halvings=again.halvings - 1))
    assert released(config, plan, 1).header()["halvings"] == 0


def test_the_certificate_and_inspect_say_so(tmp_path: Path) -> None:
    config, plan = setting(tmp_path)
    for size, told in ((1, []), (-(2**24), ["halved"])):
        release = released(config, plan, size)
        certificate = certificate_of(plan, [release], "ab" * 32, {"entry": 1, "hash": "cd" * 32}, [None])
        assert certificate["rounds"][0]["halvings"] == release.halvings
        write_certificate(tmp_path / "certificate.json", certificate)
        lines = [line for line in describe(tmp_path / "certificate.json").splitlines() if "halved" in line]
        assert len(lines) == len(told)
        assert all(f"round 1 {release.halvings} times" in line for line in lines)
        assert certificate["kept"]["share"] == 1
        assert "noise alone" not in describe(tmp_path / "certificate.json")
        part = certificate_of(
            plan, [dataclasses.replace(release, kept=5)], "ab" * 32, {"entry": 1, "hash": "cd" * 32}, [None]
        )
        write_certificate(tmp_path / "certificate.json", part)
        assert "62.5% of the way that the rounds went is kept: noise alone" in describe(tmp_path / "certificate.json")
        release.write(tmp_path / "release.h5")
        assert f"halvings = {release.halvings}\n" in describe(tmp_path / "release.h5")


def test_a_release_of_a_plan_without_guard_was_never_halved(tmp_path: Path) -> None:
    config, plan = setting(tmp_path, guard=False)
    release = dataclasses.replace(released(config, plan, 1), halvings=1)
    with pytest.raises(FileContentError, match="halvings"):
        Release.restore(plan, release.header(), release.arrays())


def test_the_cost_of_noise_is_that_of_its_quadratic(tmp_path: Path) -> None:
    """Against dense arithmetic: half the trace of the Hessian of the public loss times the noise's covariance."""
    random_table("double logistic", [1] * 60, seed=1).write(tmp_path / "public.h5")
    config = make_config(
        tmp_path, "double logistic", mechanism={"clip": 1e-3}, precision={"kind": "dense"}, privacy={"units": 4000}
    )
    plan = plan_of(config)
    guard = Guard(plan, config.data.public, Worker.of_plan(plan))
    precision = precision_from_arrays("dense", plan.k, dict(plan.state.precision))
    whitening = Whitening(subspace_of(plan.config, plan.d, plan.k, 0), precision)
    factor = np.stack([whitening.lift(axis) for axis in np.eye(plan.k)], axis=1)
    step = 1e-3
    axes = np.eye(plan.d) * step
    theta, first = plan.state.theta, guard.loss(plan.state.theta)
    hessian = np.array(
        [
            [
                (guard.loss(theta + a + b) - guard.loss(theta + a - b) - guard.loss(theta - a + b) + guard.loss(theta - a - b))
                / (4 * step**2)
                for b in axes
            ]
            for a in axes
        ]
    )  # fmt: skip
    expected = plan.state.grid.temperature * np.trace(factor.T @ hessian @ factor) / 2
    share = math.sqrt(1e-3 / expected)  # so small that the loss is quadratic
    found = guard.cost_of_noise(plan.state, share) / share**2
    assert math.isfinite(first)
    # Four draws of chi-square with k = 7 degrees of freedom: within a factor of 3 except once in 10^6 seeds.
    assert expected / 3 < found < expected * 3


def test_classes_that_no_public_record_has_may_be_learnt(tmp_path: Path) -> None:
    """Their outputs rise beside all public records, which is no harm; what those records have is guarded as before."""
    table = random_table("mlp", [1] * 40, seed=1)
    dataclasses.replace(table, y=np.minimum(table.y, 1)).write(tmp_path / "public.h5")
    config = make_config(tmp_path, "mlp", mechanism={"guard": True})
    plan = plan_of(config)
    assert plan.schema.classes == 3
    worker = Worker.of_plan(plan)
    guard = Guard(plan, config.data.public, worker)
    start = plan.state.theta
    moves = {name: start.copy() for name in ("unseen", "seen")}
    moves["unseen"][-1] += 50.0  # the bias of the class 2
    moves["seen"][-2] += 50.0
    assert guard.moved(start, moves["unseen"]) == (pytest.approx(moves["unseen"]), 0)
    assert guard.moved(start, moves["seen"])[1] > 0
    (tmp_path / "all").mkdir()
    table.write(tmp_path / "all" / "public.h5")
    public = make_config(tmp_path / "all", "mlp").data.public
    assert Guard(plan, public, Worker.of_plan(plan)).moved(start, moves["unseen"])[1] > 0
