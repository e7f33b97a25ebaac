"""Records that are not finite, or whose gradients are not: they contribute nothing, and nobody else notices.

Warnings count as errors throughout: a warning of an overflow would tell of the private records.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sketching_oracle import Problem, make_geometry, make_problem, record_gradient
from small_runs import Table, first_appearance, make_config, plan_of, random_table, sums_of, unit_integers, with_blank
from torch import nn

from distqexp.errors import FileContentError
from distqexp.geometry.whitening import Whitening
from distqexp.gradients.autodiff import UnitGradients
from distqexp.problem.losses import get_loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records
from distqexp.problem.slots import SlotMap
from distqexp.sketching.sketcher import Sketcher

pytestmark = pytest.mark.filterwarnings("error")

MICRO_BATCH = 4
SIZES = (1, 2, 1, 10, 1, 3, 1, 1)
BAD = 3  # the slot of the lone record of unit 2
FIRST_OF_MANY, BAD_IN_MANY = 4, 13  # the first and the last slot of unit 3, in its first and third micro-batch


def vectors_of(
    problem: Problem, subspace: str, precision: str, k: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whitened vectors, finite marks and integers of every unit."""
    chosen, whitening, _ = make_geometry(subspace, precision, problem.network.d, k)
    gradients = UnitGradients(
        network=problem.network, loss=problem.loss, whitening=Whitening(chosen, whitening), micro_batch=MICRO_BATCH
    )
    sketcher = Sketcher(gradients, clip=0.05, step=2.0**-16, clip_integer=int(0.05 * 2**16))
    pieces = [problem.batches(piece, MICRO_BATCH) for piece in problem.slots.pieces(MICRO_BATCH)]
    vectors, finite = zip(*(gradients.of_piece(piece) for piece in pieces), strict=True)
    integers = np.concatenate([sketcher.unit_integers(piece) for piece in pieces])
    return np.concatenate(vectors), np.concatenate(finite), integers


def check_only_these_vanish(
    make: Callable[[], Problem], spoil: Callable[[Problem], None], units: list[int], subspace: str, precision: str
) -> None:
    """Units ``units`` of a spoiled problem contribute exact zeros; every other unit keeps every bit."""
    vectors, finite, integers = vectors_of(make(), subspace, precision)
    assert finite.all()
    assert integers[units].any(axis=1).all()
    spoiled = make()
    spoil(spoiled)
    found_vectors, found_finite, found = vectors_of(spoiled, subspace, precision)
    others = [unit for unit in range(len(SIZES)) if unit not in units]
    assert not found_finite[units].any()
    assert found_finite[others].all()
    assert not found[units].any()
    assert found_vectors[others].tobytes() == vectors[others].tobytes()
    assert np.array_equal(found[others], integers[others])


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("subspace", ["identity", "gaussian", "rademacher", "sjlt", "srht"])
@pytest.mark.parametrize("precision", ["identity", "diagonal", "dense"])
def test_a_record_that_is_not_finite(value: float, subspace: str, precision: str) -> None:
    def spoil(problem: Problem) -> None:
        problem.records.inputs[BAD, 0] = value

    check_only_these_vanish(lambda: make_problem("mlp", SIZES, dtype=torch.float32), spoil, [2], subspace, precision)


def steep(model: str) -> Problem:
    """A float32 problem whose weights are large, so that large inputs overflow inside the network."""
    problem = make_problem(model, SIZES, dtype=torch.float32)
    problem.records.inputs = problem.records.inputs.float()
    with torch.no_grad():
        for parameter in problem.network.module.parameters():
            parameter.mul_(8.0)
    return problem


def overflow(problem: Problem, slot: int) -> None:
    """Blow one finite record up until its gradient, by plain differentiation, is no longer finite."""
    for sign in (1, -1):
        for target in range(3):
            problem.records.inputs[slot] = sign * 3e38 * torch.sign(problem.records.inputs[slot])
            if not problem.records.targets.is_floating_point():
                problem.records.targets[slot] = target
            if not np.isfinite(record_gradient(problem, slot)).all():
                return
    raise AssertionError("expected an overflow")


@pytest.mark.parametrize("model", ["mlp", "regression", "cnn"])
def test_a_finite_record_whose_gradient_overflows(model: str) -> None:
    def spoil(problem: Problem) -> None:
        overflow(problem, BAD)
        overflow(problem, 1)  # one of the two records of unit 1

    for subspace in ("gaussian", "sjlt"):
        check_only_these_vanish(lambda: steep(model), spoil, [1, 2], subspace, "dense")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite(value: float) -> None:
    def spoil(problem: Problem) -> None:
        problem.records.inputs[BAD, 0, 10:18, 10:18] = value

    check_only_these_vanish(lambda: steep("cnn"), spoil, [2], "sjlt", "dense")


@pytest.mark.parametrize("slot", [FIRST_OF_MANY, BAD_IN_MANY])
def test_a_bad_record_takes_its_whole_unit_out_even_over_several_micro_batches(slot: int) -> None:
    def spoil(problem: Problem) -> None:
        problem.records.inputs[slot, 1] = float("nan")

    for subspace in ("identity", "srht"):
        check_only_these_vanish(lambda: make_problem("mlp", SIZES), spoil, [3], subspace, "dense")


@pytest.mark.parametrize("subspace", ["identity", "gaussian", "rademacher", "sjlt", "srht"])
@pytest.mark.parametrize("precision", ["identity", "diagonal", "dense"])
def test_finite_gradients_whose_sum_projection_or_whitening_overflows(subspace: str, precision: str) -> None:
    """In float64: every gradient is finite and up to 1.7e308; together, or once mapped, they are not."""

    def spoil(problem: Problem) -> None:
        problem.records.inputs[BAD_IN_MANY - 1 : BAD_IN_MANY + 1] = 1.7e308
        problem.records.inputs[1:3] = -1.7e308
        problem.records.targets[problem.records.inputs[:, 0] > 1e300] = 0.0
        problem.records.targets[problem.records.inputs[:, 0] < -1e300] = 1.0

    def make() -> Problem:
        problem = make_problem("logistic", SIZES)
        with torch.no_grad():
            problem.network.module.get_parameter("1.weight").fill_(1.0)
        problem.network.module.get_parameter("1.bias").data.fill_(0.0)
        return problem

    vectors, _, integers = vectors_of(make(), subspace, precision, k=6)
    spoiled = make()
    spoil(spoiled)
    found_vectors, finite, found = vectors_of(spoiled, subspace, precision, k=6)
    others = [0, 2, 4, 5, 6, 7]
    assert found_vectors[others].tobytes() == vectors[others].tobytes()
    assert np.array_equal(found[others], integers[others])
    assert finite[others].all()
    assert not found[1].any()
    assert not found[3].any()


class _Logarithms(nn.Module):
    """Not differentiable at the zeros that blank records and padding are fed as."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (torch.log(inputs.abs()) * self.scale).sum(dim=1, keepdim=True)


def test_a_model_without_a_gradient_at_zero_still_serves_present_records() -> None:
    """Blank slots and padding contribute nothing, whatever the model makes of zeros."""
    present = torch.tensor([True, True, False, True, False, True])
    inputs = torch.rand(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    inputs[~present] = 0
    problem = Problem(
        Network(_Logarithms()),
        get_loss("mean-squared-error"),
        Records(inputs, torch.zeros(6), present),
        SlotMap(np.arange(6), np.array([0, 1, 1, 1, 2, 3])),
    )
    assert not np.isfinite(record_gradient(problem, 2)).all()
    for subspace in ("identity", "gaussian"):
        vectors, finite, integers = vectors_of(problem, subspace, "dense", k=4)
        assert finite.all()
        assert np.isfinite(vectors).all()
        assert integers.any(axis=1).tolist() == [True, True, False, True]


def test_a_huge_finite_record_is_clipped_not_dropped() -> None:
    problem = make_problem("logistic", SIZES, dtype=torch.float32)
    problem.records.inputs[BAD] = 1e30
    problem.records.targets[BAD] = float(problem.network.outputs(problem.records.inputs[BAD : BAD + 1])[0, 0] < 0)
    _, finite, integers = vectors_of(problem, "identity", "diagonal")
    assert finite.all()
    norm = sum(int(x) ** 2 for x in integers[2])
    assert (0.99 * 0.05 * 2**16) ** 2 < norm <= int(0.05 * 2**16) ** 2


# --- through files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_file_with_records_that_are_not_finite(model: str, tmp_path: Path) -> None:
    """Infinities in a file blank their record: the sum is that of the same file with those records masked out."""
    table, public = random_table(model, [1, 2, 1, 9, 1, 3], seed=1), random_table(model, [1] * 6, seed=2)
    public.write(tmp_path / "public.h5")
    table.write(tmp_path / "private.h5")
    config = make_config(tmp_path, model, subspace={"kind": "sjlt", "k": 16})
    plan = plan_of(config)
    whole = unit_integers(config, plan)
    order = first_appearance(table.u)
    bad = np.zeros(len(table.u), dtype=np.bool_)
    bad[np.flatnonzero(table.u == 3)[4]] = True  # one of nine
    bad[table.u == 2] = True  # a unit of one record
    spoiled = Table(table.x.copy(), table.y, table.u)
    spoiled.x[bad] = np.where(np.arange(spoiled.x[0].size).reshape(spoiled.x[0].shape) == 5, np.inf, spoiled.x[bad])
    spoiled.write(tmp_path / "private.h5")
    found = unit_integers(config, plan)
    assert not found[order.index(2)].any()
    assert found[order.index(3)].any()
    untouched = [order.index(unit) for unit in order if unit not in (2, 3)]
    assert np.array_equal(found[untouched], whole[untouched])
    zeroed = Table(np.where(bad.reshape(-1, *[1] * (table.x.ndim - 1)), 0, table.x), table.y, table.u)
    zeroed.write(tmp_path / "private.h5")
    assert unit_integers(config, plan)[order.index(2)].any()  # blank is not the same as zero features
    np.save(tmp_path / "blank.npy", bad)
    masked = make_config(
        tmp_path,
        model,
        subspace={"kind": "sjlt", "k": 16},
        data={
            "population": "somebody",
            "private": {
                "format": "hdf5", "path": str(tmp_path / "private.h5"), "unit": "u", "blank": str(tmp_path / "blank.npy"),
                "columns": {"features": ["x"], "target": "y", "standardise": False},
            },
        },
    )  # fmt: skip
    assert np.array_equal(unit_integers(masked, plan), found)


def test_nothing_is_said_about_records_that_overflow(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The whole sketch stage on wild records, under warnings as errors, prints nothing."""
    table, public = random_table("mlp", [1, 2, 1, 9, 1, 3], seed=1), random_table("mlp", [1] * 6, seed=2)
    public.write(tmp_path / "public.h5")
    table.x[::4, 0], table.x[1::4, 1], table.x[2::4, 2] = np.inf, 3e38, -3e38
    table.write(tmp_path / "private.h5")
    config = make_config(tmp_path, "mlp", subspace={"kind": "srht", "k": 16})
    plan = plan_of(config)
    capfd.readouterr()
    sums = sums_of(config, plan, tmp_path / "parts")
    assert sums.any()
    assert capfd.readouterr() == ("", "")


def test_a_private_label_out_of_range_is_as_good_as_blank_and_a_public_one_is_refused(tmp_path: Path) -> None:
    table, public = random_table("mlp", [1] * 9, seed=1), random_table("mlp", [1] * 6, seed=2)
    public.write(tmp_path / "public.h5")
    table.y[4] = 77
    table.write(tmp_path / "private.h5")
    config = make_config(tmp_path, "mlp")
    plan = plan_of(config)
    np.save(tmp_path / "blank.npy", np.arange(9) == 4)
    blank = sums_of(with_blank(config, tmp_path / "blank.npy"), plan, tmp_path / "blank")
    assert np.array_equal(sums_of(config, plan, tmp_path / "parts"), blank)
    public.y[4] = 77
    public.write(tmp_path / "public.h5")
    with pytest.raises(FileContentError, match="column 'y': a label is out of range") as caught:
        plan_of(make_config(tmp_path, "mlp", mechanism={"clip": None, "clip_quantile": 0.5}))
    assert "77" not in str(caught.value).replace(str(tmp_path), "")
