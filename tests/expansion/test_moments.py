"""Second moments by positions against loops over records, layers and positions, without hooks and in float64."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from moment_cases import Twice, images, layered, moments_of, packed, sampled
from numpy.typing import NDArray
from sketching_oracle import make_problem
from torch import nn

from distqexp.errors import UsageError
from distqexp.expansion import moments as block_moments
from distqexp.expansion.moments import FisherMoments
from distqexp.geometry.moments import BlockMoments, explicit_moments
from distqexp.geometry.packing import unpack
from distqexp.geometry.subspaces.kronecker import (
    BlockFactors,
    KroneckerSubspace,
    leading_factors,
    random_kronecker,
    whole_space,
)
from distqexp.gradients.layers import block_layout
from distqexp.gradients.raw import RawGradients
from distqexp.problem.derivatives import per_example_gradients
from distqexp.problem.losses import CrossEntropy
from distqexp.problem.network import Network
from distqexp.problem.records import Records

Factors = list[list[tuple[NDArray[np.float64], NDArray[np.float64]]]]


class Words(nn.Module):
    """Means of tanh of word vectors; word 0 is padding."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, 4, padding_idx=0)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(torch.tanh(self.words(tokens)).mean(dim=1))
        return found


def explicit(network: Network, subspace: KroneckerSubspace, records: Records) -> list[BlockMoments]:
    gradients = per_example_gradients(
        network, CrossEntropy(), records.inputs, sampled(network, CrossEntropy(), records)
    )
    parts = subspace.project_blocks(gradients)
    return [explicit_moments(block, part).arrays() for block, part in zip(subspace.coordinates, parts, strict=True)]


def layer_factors(module: nn.Sequential, x: torch.Tensor, target: torch.Tensor) -> Iterator[Factors]:
    """Of one record (1, ...): for each layer with parameters, copy and position the row and column, in float64."""
    inputs, outputs, layers = [], [], []
    for layer in module:
        before, x = x, layer(x)
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.LayerNorm):
            layers.append(layer)
            inputs.append(before.detach())
            outputs.append(x)
    gradients = torch.autograd.grad(CrossEntropy().value(x, target).sum(), outputs)
    for layer, a, e in zip(layers, inputs, gradients, strict=True):
        if isinstance(layer, nn.Conv2d):
            patches = nn.functional.unfold(a, layer.kernel_size, padding=layer.padding, stride=layer.stride)
            columns = patches[0].reshape(layer.groups, -1, patches.shape[2]).transpose(1, 2)
            rows = e[0].reshape(layer.groups, -1, patches.shape[2]).transpose(1, 2)
        elif isinstance(layer, nn.Linear):
            rows, columns = e.reshape(1, -1, e.shape[-1]), a.reshape(1, -1, a.shape[-1])
        else:
            normal = nn.functional.layer_norm(a, layer.normalized_shape, eps=layer.eps)
            yield [[((e * normal).sum(dim=(0, 1)).numpy(), e.sum(dim=(0, 1)).numpy())]]  # its gradient's two columns
            continue
        if layer.bias is not None:
            columns = torch.cat([columns, torch.ones_like(columns[..., :1])], dim=2)
        yield [list(zip(r.numpy(), c.numpy(), strict=True)) for r, c in zip(rows, columns, strict=True)]


def looped(network: Network, subspace: KroneckerSubspace, records: Records) -> list[list[list[NDArray[np.float64]]]]:
    """Row moment, column moment and energy of every block and copy, summed in plain loops."""
    sums: list[list[list[NDArray[np.float64]]]] = [
        [[np.zeros((b.rows, b.rows)), np.zeros((b.columns, b.columns)), np.zeros(())] for _ in range(b.copies)]
        for b in subspace.coordinates
    ]
    targets = sampled(network, CrossEntropy(), records)
    assert isinstance(network.module, nn.Sequential)
    for j in np.flatnonzero(records.present.numpy()):
        found = layer_factors(network.module, records.inputs[j : j + 1], targets[j : j + 1])
        for block, factor, layer, total in zip(subspace.blocks, subspace.factors, found, sums, strict=True):
            for copy, pairs in enumerate(layer):
                r, c = (
                    np.eye(n) if side is None else side[0]
                    for n, side in ((block.rows, factor.row), (block.columns, factor.column))
                )
                if block.columns == 2:  # the normalisation
                    g = r @ np.stack(pairs[0], axis=1) @ c.T
                    total[copy][0] += g @ g.T
                    total[copy][1] += g.T @ g
                else:
                    g = np.zeros((len(r), len(c)))
                    for row, column in pairs:
                        row, column = r @ row, c @ column
                        total[copy][0] += np.outer(row, row)
                        total[copy][1] += np.outer(column, column)
                        g += np.outer(row, column)
                total[copy][2] += np.square(g).sum()
    return sums


@pytest.mark.parametrize("sides", [(None, None), (3, 2), (None, 4), (7, None)])
def test_moments_are_loops_over_positions(sides: tuple[int | None, int | None]) -> None:
    network = Network(layered())
    subspace = random_kronecker(block_layout(network), *sides, seed=1, round=0)
    records = images(7)
    records.present[4] = False
    found = moments_of(network, subspace, records)
    for part, copies in zip(found, looped(network, subspace, records), strict=True):
        assert len(part.energy) == len(copies)
        for copy, (row, column, energy) in enumerate(copies):
            np.testing.assert_allclose(part.row[copy], row, rtol=1e-10, atol=1e-10 * np.abs(row).max())
            np.testing.assert_allclose(part.column[copy], column, rtol=1e-10, atol=1e-10 * np.abs(column).max())
            assert float(energy) > 0
            assert part.energy[copy] == pytest.approx(float(energy), rel=1e-10)


@pytest.mark.parametrize("sides", [(None, None), (3, 2)])
def test_energies_are_those_of_whole_gradients(sides: tuple[int | None, int | None]) -> None:
    """So the Kronecker product has the trace of the Fisher matrix: its scale is the energy alone."""
    words = torch.randint(0, 30, (6, 11), generator=torch.Generator().manual_seed(4))
    vectors = torch.randn(6, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for module, inputs in ((layered(), images(6).inputs), (Words(30), words), (Twice(), vectors)):
        network = Network(module.double())
        subspace = random_kronecker(block_layout(network), *sides, seed=1, round=0)
        records = Records(inputs, torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.bool))
        pairs = zip(moments_of(network, subspace, records), explicit(network, subspace, records), strict=True)
        for part, whole in pairs:
            np.testing.assert_allclose(part.energy, whole.energy, rtol=1e-10)


@pytest.mark.parametrize("projected", [False, True])
def test_moments_average_to_those_of_the_fisher_matrix(projected: bool) -> None:
    """Of one record: sum_c p_c e_c e_c^T and sum_c p_c ||G_c||^2 against 6,400 draws of its label, every figure within 6
    standard errors. False alarm below 1e-6: at most 60 figures at 2e-9 each.
    """
    problem = make_problem("mlp", [1])
    network, loss, x = problem.network, problem.loss, problem.records.inputs
    blocks = block_layout(network)
    subspace = random_kronecker(blocks, 3, 2, 0, 0) if projected else whole_space(blocks)
    records = Records(x.repeat(64, 1), torch.zeros(64, dtype=torch.int64), torch.ones(64, dtype=torch.bool))
    moments = FisherMoments(network=network, loss=loss, subspace=subspace, micro_batch=64)
    sums = moments.sums()
    for i in range(100):
        assert moments.add_records(sums, records, seed=4, round=0, first_slot=64 * i)
    share = torch.softmax(network.module(x)[0], dim=0).detach().numpy()
    gradients = per_example_gradients(network, loss, x.repeat(3, 1), torch.arange(3))
    parts = subspace.project_blocks(gradients)
    for block, part, found in zip(subspace.coordinates, parts, unpack(subspace.coordinates, sums.flat()), strict=True):
        by_class = [explicit_moments(block, g[None]).arrays() for g in part]
        # One position: G = e a^T, so that G G^T over ||a||^2 is e e^T, and the column moment is no matter of chance.
        size = np.trace(found.column[0]) / 6400
        assert found.column[0] / size == pytest.approx(6400 * by_class[0].column[0] / by_class[0].energy[0], rel=1e-9)
        for values, draws in (
            (np.stack([moment.row for moment in by_class]) / size, found.row / 6400),
            (np.stack([moment.energy for moment in by_class]), found.energy / 6400),
        ):
            weights = share.reshape(-1, *[1] * (values.ndim - 1))
            mean = (weights * values).sum(axis=0)
            spread = np.sqrt((weights * (values - mean) ** 2).sum(axis=0))
            assert (np.abs(draws - mean) <= 6 * spread / 80 + 1e-12).all()
            assert spread.max() > 0


@pytest.mark.parametrize("sides", [(None, None), (3, None), (3, 8)])
def test_a_vocabulary_by_its_diagonal_is_the_dense_one(sides: tuple[int | None, int | None]) -> None:
    network = Network(Words(1100).double())
    blocks = block_layout(network)
    assert blocks[0].sparse_rows
    dense = [dataclasses.replace(blocks[0], sparse_rows=False), *blocks[1:]]
    tokens = torch.randint(0, 40, (6, 11), generator=torch.Generator().manual_seed(4)) * 27
    tokens[:, -2:] = 0
    records = Records(tokens, torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.bool))
    records.present[3] = False
    small, whole = (
        moments_of(network, random_kronecker(layout, *sides, seed=1, round=0), records)[0] for layout in (blocks, dense)
    )
    if sides[1] is None:
        counts = np.bincount(tokens[records.present].flatten().numpy(), minlength=1100)
        counts[0] = 0  # padding
        assert np.array_equal(small.row[0], counts)
        assert np.array_equal(np.diag(counts), whole.row[0])
    else:
        np.testing.assert_allclose(small.row, whole.row, rtol=1e-10)
    np.testing.assert_allclose(small.column, whole.column, rtol=1e-10)
    np.testing.assert_allclose(small.energy, whole.energy, rtol=1e-10)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_record_that_is_not_finite_in_one_block_is_left_out_of_all(value: float) -> None:
    network = Network(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    subspace = whole_space(block_layout(network))
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets, everyone = torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.bool)
    absent = everyone.clone()
    absent[2] = False
    broken = x.clone()
    broken[2, 0] = value
    with torch.no_grad():  # tanh hides the infinity: only the first layer's activations tell of it
        assert bool(torch.isfinite(network.module(broken)[2]).all()) == (value == math.inf)
    without = packed(network, subspace, Records(x, targets, absent), 8)
    assert np.array_equal(packed(network, subspace, Records(broken, targets, everyone), 8), without)
    assert not np.array_equal(packed(network, subspace, Records(x, targets, everyone), 8), without)
    first, last = subspace.coordinates
    rows = first.rows**2 + first.columns**2 + 1
    whole = packed(network, subspace, Records(x, targets, everyone), 8)
    assert not np.isclose(whole[rows + last.rows**2 :], without[rows + last.rows**2 :]).all()


def test_what_absent_records_hold_changes_no_bit() -> None:
    network = Network(layered())
    subspace = random_kronecker(block_layout(network), 3, 2, seed=1, round=0)
    records = images(8)
    records.present[[1, 6]] = False
    found = []
    for filler in (0.0, 1e9, math.nan):
        records.inputs[~records.present] = filler
        found.append(packed(network, subspace, records, 8))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    records.present[:] = False
    assert not packed(network, subspace, records, 8).any()


def test_micro_batches_and_parts_change_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(layered())
    subspace = whole_space(block_layout(network))
    records = images(7)
    once = packed(network, subspace, records, 7)
    np.testing.assert_allclose(packed(network, subspace, records, 10), once, rtol=1e-10, atol=1e-12)
    monkeypatch.setattr(block_moments, "CHUNK", 1)  # record by record
    np.testing.assert_allclose(packed(network, subspace, records, 7), once, rtol=1e-10, atol=1e-12)


def test_a_single_precision_network_has_double_precision_sums() -> None:
    network = Network(layered().float())
    blocks, records = block_layout(network), images(8)
    records.inputs = records.inputs.float()
    targets = sampled(network, CrossEntropy(), records)
    found = moments_of(network, whole_space(blocks), records)
    raw = RawGradients(network=network, loss=CrossEntropy(), blocks=blocks, micro_batch=8)
    for number, *sides in raw.raw_factors(records, targets):
        assert all(side.dtype == torch.float32 for side in sides)
        for side, moment in zip(sides, (found[number].row, found[number].column), strict=False):
            if len(sides) == 2:
                exact = torch.einsum("bcti,bctj->cij", side.double(), side.double()).numpy()
                np.testing.assert_allclose(moment, exact, rtol=1e-12, atol=1e-13 * np.abs(exact).max())


def test_unused_parameters_have_no_moments_and_picked_rows_are_refused() -> None:
    module = Twice()
    module.unused = nn.Linear(2, 2)
    network = Network(module.double())
    blocks = block_layout(network)
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    records = Records(x, torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool))
    for block, part in zip(blocks, moments_of(network, whole_space(blocks), records), strict=True):
        assert bool(part.energy.any()) == (block.name != "unused.weight")
    words = Network(Words(1100).double())
    vocabulary = block_layout(words)
    whole = [
        BlockMoments(np.ones((1, 1100)), np.eye(4)[None], np.ones(1)),
        BlockMoments(np.eye(3)[None], np.eye(5)[None], np.ones(1)),
    ]
    picked: list[BlockFactors] = leading_factors(vocabulary, whole, None, 8)
    with pytest.raises(UsageError, match="picked rows"):
        FisherMoments(network=words, loss=CrossEntropy(), subspace=KroneckerSubspace(vocabulary, picked), micro_batch=2)


def test_blocks_of_the_model_above_are_what_it_says() -> None:
    shapes = {(block.copies, block.rows, block.columns) for block in block_layout(Network(layered()))}
    assert shapes == {(2, 3, 13), (1, 5, 21), (1, 5, 2), (1, 3, 30)}
