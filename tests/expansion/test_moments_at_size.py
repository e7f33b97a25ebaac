"""Second moments of large models: streamed passes, sums in float32, heads over a vocabulary."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from moment_cases import ROUND, SEED, Twice, images, layered, moments_of
from torch import nn

from distqexp.engines.serial import SerialEngine
from distqexp.expansion.moments import FisherMoments
from distqexp.expansion.passes import _sums_of, moments_in_order, moments_of_group, public_moments
from distqexp.geometry import moments as geometry_moments
from distqexp.geometry.packing import add_packed, moments_size, pack, unpack
from distqexp.geometry.subspaces.kronecker import leading_factors, whole_space
from distqexp.gradients.layers import Form, block_layout, layout
from distqexp.gradients.raw import RawGradients
from distqexp.problem.losses import CrossEntropy
from distqexp.problem.network import Network
from distqexp.problem.records import Records


def test_a_streamed_pass_holds_the_gradients_of_one_block_at_a_time() -> None:
    """Each is taken in the middle of the backward pass, the last layer's first; those of a layer used twice after its second use."""
    network = Network(Twice().double())
    blocks = block_layout(network)
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    records = Records(x, torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool))
    raw = RawGradients(network=network, loss=CrossEntropy(), blocks=blocks, micro_batch=4)
    events: list[tuple[str, int]] = []

    def shrink(number: int, form: Form) -> Form:
        events.append(("use", number))
        return form

    assert raw.stream(records, records.targets, lambda number, *_: events.append(("taken", number)), shrink)
    assert events == [("use", 1), ("taken", 1), ("use", 0), ("use", 0), ("taken", 0)]


def test_moments_of_large_blocks_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here 'large' is a side of 7: the figures are those of float64 up to rounding, and odd sizes are packed as well."""
    network, records = Network(layered()), images(7)
    blocks = block_layout(network)
    exact = moments_of(network, whole_space(blocks), records)
    monkeypatch.setattr(geometry_moments, "LARGE_SIDE", 7)
    found = moments_of(network, whole_space(blocks), records)
    types = set()
    for block, part, whole in zip(blocks, found, exact, strict=True):
        large = max(block.rows, block.columns) >= 7
        types.add(large)
        assert part.row.dtype == part.column.dtype == (np.float32 if large else np.float64)
        assert part.energy.dtype == np.float64
        for one, other in ((part.row, whole.row), (part.column, whole.column), (part.energy, whole.energy)):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())
    assert types == {True, False}
    packed_again = pack(blocks, found)
    total = packed_again.copy()
    add_packed(blocks, total, packed_again)
    for part, whole in zip(unpack(blocks, total), found, strict=True):
        assert np.array_equal(part.row, 2 * whole.row)
        assert np.array_equal(part.column, 2 * whole.column)


def test_a_head_over_a_vocabulary_has_no_square_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a vocabulary has more than 2 words. The diagonal is that of the dense moment, and all else is as it was."""
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(5, 2), nn.Tanh(), nn.Linear(2, 30)).double())
    dense = block_layout(network)
    monkeypatch.setattr(layout, "LARGEST_SIDE", 2)
    monkeypatch.setattr(layout, "SPARSE_ROWS", 2)
    blocks = block_layout(network)
    assert [block.sparse_rows for block in blocks] == [False, True]
    assert moments_size(blocks) == moments_size(dense) - 30**2 + 30
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    records = Records(x, torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.bool))
    found, whole = (moments_of(network, whole_space(parts), records)[1] for parts in (blocks, dense))
    np.testing.assert_allclose(found.row[0], np.diag(whole.row[0]), rtol=1e-12)
    np.testing.assert_allclose(found.column, whole.column, rtol=1e-12)
    np.testing.assert_allclose(found.energy, whole.energy, rtol=1e-12)
    rows = leading_factors(blocks, moments_of(network, whole_space(blocks), records), None, 4)[1].row
    assert np.array_equal(np.asarray(rows)[0], np.sort(np.argsort(-found.row[0])[:4]))
    large = Network(nn.Linear(2, 8193))
    monkeypatch.undo()
    assert block_layout(large)[0].sparse_rows
    assert not block_layout(Network(nn.Linear(2, 8192)))[0].sparse_rows


def test_a_group_with_a_record_that_is_not_finite_is_passed_again() -> None:
    network = Network(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    subspace = whole_space(block_layout(network))
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    broken = x.clone()
    broken[6, 0] = math.inf
    present = torch.ones(8, dtype=torch.bool)
    without = present.clone()
    without[6] = False
    moments = FisherMoments(network=network, loss=CrossEntropy(), subspace=subspace, micro_batch=4)
    found = []
    for inputs, there in ((broken, present), (x, without)):
        records = Records(inputs, torch.zeros(8, dtype=torch.int64), there)
        batches = [
            (first, Records(*(side[first : first + 4] for side in (inputs, records.targets, there))), None)
            for first in (0, 4)
        ]
        config = SimpleNamespace(subspace=SimpleNamespace(seed=SEED), engine=SimpleNamespace(threads=1))
        context: Any = SimpleNamespace(
            moments=moments, pieces=[(0, 0, 8)], config=config, round=ROUND, on=lambda worker: None,
            numbered_batches=lambda piece, batches=batches: iter(batches),
        )  # fmt: skip
        assert (_sums_of(context, range(1), streamed=True) is None) == (inputs is broken)
        worker: Any = None
        found.append(moments_of_group(worker, 0, context=context))
    assert np.array_equal(*found)
    assert found[0].any()


def test_one_process_adds_batches_up_in_one_sum_to_the_same_bits() -> None:
    network = Network(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    subspace = whole_space(block_layout(network)).by_blocks()
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    moments = FisherMoments(network=network, loss=CrossEntropy(), subspace=subspace, micro_batch=4)
    config = SimpleNamespace(subspace=SimpleNamespace(seed=SEED), engine=SimpleNamespace(threads=1, micro_batch=4))
    found = []
    for last in (12, 10):
        inputs = x.clone()
        if last == 10:
            inputs[6, 0] = math.inf  # then the batches have to be passed again
        records = Records(inputs, torch.zeros(12, dtype=torch.int64), torch.arange(12) < last)

        def batches(piece: int, sides: Any = (records.inputs, records.targets, records.present)) -> Any:
            yield 4 * piece, Records(*(side[4 * piece : 4 * piece + 4] for side in sides)), None

        context: Any = SimpleNamespace(
            moments=moments, pieces=[(0, 0, 4), (0, 4, 8), (0, 8, 12)], config=config, round=ROUND, on=lambda worker: None,
            numbered_batches=batches, moment_subspace=subspace, worker=None,
        )  # fmt: skip
        groups = (moments_of_group(context.worker, group, context=context) for group in range(3))
        expected, engine = moments_in_order(context, groups), SerialEngine()
        actual = public_moments(context, engine)
        assert actual is not None
        assert expected is not None
        assert actual.tobytes() == expected.tobytes()
        found.append(actual)
    assert not np.array_equal(*found)
