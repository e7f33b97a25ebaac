"""Every unit's integers and their sum against the slow oracle, over models, losses, subspaces and precisions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sketching_oracle import (
    Problem,
    dense_matrix,
    grid_integers,
    make_geometry,
    make_problem,
    record_gradient,
    whitened_units,
)

from distqexp.errors import UsageError
from distqexp.geometry.precisions import Precision
from distqexp.geometry.subspaces import Subspace
from distqexp.geometry.whitening import Whitening
from distqexp.gradients.autodiff import UnitGradients
from distqexp.sketching.sketcher import Sketcher

SUBSPACES = ("identity", "gaussian", "rademacher", "sjlt", "srht")
PRECISIONS = ("identity", "diagonal", "dense")
# Units of one record, of a whole micro-batch, of more than one (straddling batches, and full ones), and an absent one.
SIZES = (1, 1, 2, 4, 1, 9, 3, 1, 1, 8, 2, 1)
ABSENT = (0, 3, 9, 12, 20)  # unit 0 is absent as a whole, others in part
STEP = 2.0**-20


def sketcher_of(
    problem: Problem, subspace: Subspace, precision: Precision, micro_batch: int, clip: float, step: float = STEP
) -> Sketcher:
    gradients = UnitGradients(
        network=problem.network, loss=problem.loss, whitening=Whitening(subspace, precision), micro_batch=micro_batch
    )
    return Sketcher(gradients, clip=clip, step=step, clip_integer=int(clip / step))


def all_integers(problem: Problem, sketcher: Sketcher, micro_batch: int) -> np.ndarray:
    pieces = problem.slots.pieces(micro_batch)
    return np.concatenate([sketcher.unit_integers(problem.batches(piece, micro_batch)) for piece in pieces])


def check_against_oracle(problem: Problem, subspace: str, precision: str, k: int, micro_batch: int) -> None:
    """On a fine grid as in runs, and on one so coarse that rounding pushes many units over the bound."""
    chosen, whitening, a = make_geometry(subspace, precision, problem.network.d, k)
    vectors = whitened_units(problem, dense_matrix(chosen), a)
    norms = np.linalg.norm(vectors, axis=1)
    clip = float(np.quantile(norms[norms > 0], 0.4)) * 1.0001  # some units inside, most clipped, as in practice
    for step in (STEP, 2.0 ** np.floor(np.log2(clip / 40))):
        check_grid(problem, sketcher_of(problem, chosen, whitening, micro_batch, clip, step), vectors)


def check_grid(problem: Problem, sketcher: Sketcher, vectors: np.ndarray) -> None:
    micro_batch, clip, step = sketcher.gradients.micro_batch, sketcher.clip, sketcher.step
    found = all_integers(problem, sketcher, micro_batch)
    assert found.dtype == np.int64
    assert found.shape == vectors.shape
    ties = 0
    for unit, vector in enumerate(vectors):
        expected, near = grid_integers(vector, clip, step, sketcher.clip_integer)
        ties += sum(near)
        if not any(near):
            assert found[unit].tolist() == expected  # to the last integer
        else:  # a coordinate at a rounding boundary may fall either way, and with it the norm check
            assert np.abs(found[unit] - expected).max() <= 1
        assert sum(int(x) ** 2 for x in found[unit]) <= sketcher.clip_integer**2
    assert ties <= 1  # the branch above is an exception, never the rule
    assert np.count_nonzero(found.any(axis=1)) == np.count_nonzero(vectors.any(axis=1))
    pieces = problem.slots.pieces(micro_batch)
    total = sum(sketcher.sketch(problem.batches(piece, micro_batch)) for piece in pieces)
    assert isinstance(total, np.ndarray)
    assert total.dtype == np.int64
    assert total.tolist() == [sum(int(x) for x in column) for column in found.T]


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("subspace", SUBSPACES)
def test_every_geometry_gives_the_oracles_integers(subspace: str, precision: str) -> None:
    check_against_oracle(make_problem("mlp", SIZES, absent=ABSENT), subspace, precision, k=11, micro_batch=4)


@pytest.mark.parametrize("model", ["logistic", "softmax", "mlp head", "regression"])
@pytest.mark.parametrize(("subspace", "precision"), [("identity", "dense"), ("sjlt", "diagonal")])
def test_every_loss_gives_the_oracles_integers(model: str, subspace: str, precision: str) -> None:
    check_against_oracle(make_problem(model, SIZES, seed=1, absent=ABSENT), subspace, precision, k=5, micro_batch=4)


@pytest.mark.parametrize("micro_batch", [1, 3, 16, 64])
def test_every_micro_batch_gives_the_oracles_integers(micro_batch: int) -> None:
    check_against_oracle(make_problem("mlp", SIZES, seed=2, absent=ABSENT), "gaussian", "dense", 11, micro_batch)


def test_a_unit_a_record_gives_the_oracles_integers() -> None:
    check_against_oracle(make_problem("softmax", [1] * 21, seed=3, absent=[4, 20]), "rademacher", "dense", 9, 8)


def test_a_convolutional_network_gives_the_oracles_integers() -> None:
    problem = make_problem("cnn", (1, 2, 1, 5, 1), seed=4, absent=(2,))
    check_against_oracle(problem, "sjlt", "dense", k=12, micro_batch=4)


def test_the_norm_is_that_of_the_units_sum_not_of_its_records() -> None:
    """Two records whose gradients nearly cancel are not clipped one by one."""
    problem = make_problem("regression", (2,), seed=5)
    outputs = problem.network.outputs(problem.records.inputs[:1])
    problem.records.inputs[1] = problem.records.inputs[0]
    problem.records.targets[0], problem.records.targets[1] = outputs[0] + 3.0, outputs[0] - 2.9
    chosen, whitening, a = make_geometry("identity", "identity", problem.network.d, 0)
    one = np.linalg.norm(record_gradient(problem, 0) / np.sqrt(a[0, 0]))
    vectors = whitened_units(problem, dense_matrix(chosen), a)
    clip = one / 5
    assert np.linalg.norm(vectors[0]) < clip < one
    sketcher = sketcher_of(problem, chosen, whitening, 4, clip)
    expected, near = grid_integers(vectors[0], clip, STEP, sketcher.clip_integer)
    assert not any(near)
    assert all_integers(problem, sketcher, 4)[0].tolist() == expected
    assert expected == np.rint(vectors[0] / STEP).astype(int).tolist()  # nothing was clipped


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_single_precision_is_near_the_oracle(model: str) -> None:
    """The float32 model that runs use: gradients are off by rounding, the norm check is as exact as ever."""
    problem = make_problem(model, (1, 2, 5, 1, 1), seed=6, dtype=torch.float32)
    problem.records.inputs = problem.records.inputs.float()
    chosen, whitening, a = make_geometry("gaussian", "dense", problem.network.d, 8)
    vectors = whitened_units(problem, dense_matrix(chosen), a)
    clip = float(np.median(np.linalg.norm(vectors, axis=1)))
    sketcher = sketcher_of(problem, chosen, whitening, 4, clip)
    found = all_integers(problem, sketcher, 4)
    for unit, vector in enumerate(vectors):
        expected, _ = grid_integers(vector, clip, STEP, sketcher.clip_integer)
        assert np.abs(found[unit] - expected).max() <= 1 + 1e-4 * sketcher.clip_integer
        assert sum(int(x) ** 2 for x in found[unit]) <= sketcher.clip_integer**2
    assert np.abs(found).max() > 0.1 * sketcher.clip_integer


def test_pieces_that_break_the_rules_are_refused() -> None:
    problem = make_problem("logistic", (3, 3), seed=7)
    chosen, whitening, _ = make_geometry("identity", "identity", problem.network.d, 0)
    sketcher = sketcher_of(problem, chosen, whitening, 4, 1.0)
    with pytest.raises(UsageError, match="several batches hold several units"):
        sketcher.sketch(problem.batches((0, 6), 4))
    with pytest.raises(UsageError, match="several batches hold several units"):
        sketcher.sketch(problem.batches((0, 6), 3))
    with pytest.raises(UsageError, match="micro-batch: 6 records; expected at most 4"):
        sketcher.sketch(problem.batches((0, 6), 6))
    with pytest.raises(UsageError, match="no records"):
        sketcher.sketch([])
