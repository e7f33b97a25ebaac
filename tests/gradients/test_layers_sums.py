"""Clipped sums of the fast path: against a slow loop, with certified norms, and blind to what doesn't count."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from layers_harness import (
    CrossEntropy,
    MeanSquaredError,
    agree,
    clipped_sum,
    fast,
    random_records,
    slow_vectors,
    whitening_for,
)
from torch import nn

from distqexp.errors import UsageError
from distqexp.geometry.whitening import BlockWhitening
from distqexp.gradients.by_layer import BlockGradients, clip_weights
from distqexp.gradients.layers import block_layout
from distqexp.gradients.layers.forms import Dense, Form, Indexed, Whole
from distqexp.gradients.layers.store import BlockStore
from distqexp.problem import models
from distqexp.problem.network import Network
from distqexp.problem.records import Records

CPU = torch.device("cpu")


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.GroupNorm(2, 6),
        nn.Flatten(),
        nn.Linear(216, 12),
        nn.ReLU(),
        nn.Linear(12, 3),
    )


def setting(dtype: torch.dtype, k: int | None = 4, micro_batch: int = 8) -> tuple[BlockGradients, Records]:
    torch.manual_seed(0)
    network = Network(small_cnn().to(dtype))
    whitening = whitening_for(block_layout(network), k)
    records = random_records((2, 6, 6), 3, 7)
    return fast(network, CrossEntropy(), whitening, micro_batch), records


def spread_of(store: BlockStore) -> torch.Tensor:
    """Position by position, in Python's own numbers."""
    form = store.form
    if isinstance(form, Whole):
        return form.matrix.double().flatten(1).norm(dim=1)
    assert isinstance(form, Dense)
    found = []
    for j in range(store.count):
        total = 0.0
        for copy in range(store.shape[0]):
            for t in range(form.row.shape[2]):
                total += float(form.row[j, copy, t].double().norm()) * float(form.column[j, copy, t].double().norm())
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("cancellation", [1e3, 1.0, 0.3])
@pytest.mark.parametrize("k", [2, 5, None])
def test_clipped_sums_are_those_of_a_slow_loop(k: int | None, cancellation: float) -> None:
    gradients, records = setting(torch.float64, k)
    expected = slow_vectors(gradients.network, gradients.loss, gradients.whitening, records)
    stores, _ = gradients._stores(records)
    spreads = sum(spread_of(store) for store in stores)
    clip = float(expected.norm(dim=1).median())
    total = np.zeros(gradients.k)
    for j in range(len(records)):
        vector = expected[j].numpy()
        total += vector * min(1.0, clip / np.linalg.norm(vector), cancellation * clip / float(spreads[j]))
    found = clipped_sum(gradients, records, clip, cancellation)
    assert np.linalg.norm(found - total) < 1e-9 * np.linalg.norm(total)


def true_norms(form: Form, count: int) -> list[float]:
    """Norms of the stored numbers' exact sums, by whole numbers: no rounding until the last root."""
    from fractions import Fraction

    found = []
    for j in range(count):
        if isinstance(form, Whole):
            entries = [Fraction(float(x)) for x in form.matrix[j].flatten()]
            found.append(math.sqrt(sum(x * x for x in entries)))
            continue
        dense = form.dense() if isinstance(form, Indexed) else form
        square = Fraction(0)
        for row, column in zip(dense.row[j], dense.column[j], strict=True):
            r = [[Fraction(float(x)) for x in line] for line in row]
            c = [[Fraction(float(x)) for x in line] for line in column]
            for a in range(len(r[0])):
                for b in range(len(c[0])):
                    square += sum(r[t][a] * c[t][b] for t in range(len(r))) ** 2
        found.append(math.sqrt(square))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_of_units_that_cancel_are_never_understated(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for steps in (2, 3, 5):
        count = 6
        row = torch.randn((count, 2, steps, 3), generator=generator, dtype=torch.float64).to(dtype) * 1e4
        column = torch.randn((count, 2, steps, 2), generator=generator, dtype=torch.float64).to(dtype) * 1e4
        # The last position takes the others back, but for the rounding of the type.
        row[:, :, -1] = -row[:, :, 0]
        column[:, :, -1] = column[:, :, 0] * (1 + torch.finfo(dtype).eps)
        if steps > 2:
            row[:, :, 1:-1] *= 1e-9
        token = torch.tensor([[0, 1, 0, 1, 0][:steps]] * count)
        token[:, -1] = 0
        scale = row[:, 0, :, 0]
        for form in (Dense(row, column), Indexed(token, scale, column[:, :1], 2), Whole(row.mT @ column)):
            store = BlockStore(count, (2, 3, 2), CPU, form)
            squared, spread = store.norms()
            truth = torch.tensor(true_norms(form, count), dtype=torch.float64)
            assert (squared.sqrt() >= truth).all()
            assert (spread >= truth).all()
            # Certified isn't loose: the surplus is far below the sizes that cancel.
            assert (squared.sqrt() - truth <= 1e-6 * spread).all()


def test_a_float32_gram_matrix_would_have_understated_them() -> None:
    generator = torch.Generator().manual_seed(1)
    row = torch.randn((200, 1, 2, 8), generator=generator)
    column = torch.randn((200, 1, 2, 8), generator=generator)
    row[:, :, 1], column[:, :, 1] = (
        -row[:, :, 0],
        column[:, :, 0] + 1e-4 * torch.randn((200, 1, 8), generator=generator),
    )
    gram = ((row @ row.mT) * (column @ column.mT)).flatten(1).sum(dim=1).clamp(min=0).sqrt().double()
    truth = (row.double().mT @ column.double()).flatten(1).norm(dim=1)
    assert (gram < 0.999 * truth).sum() > 20
    squared, _ = BlockStore(200, (1, 8, 8), CPU, Dense(row, column)).norms()
    assert (squared.sqrt() >= truth).all()


def test_every_clipped_unit_alone_is_within_the_clip() -> None:
    gradients, records = setting(torch.float32, None)
    for j in range(len(records)):
        one = Records(records.inputs[j : j + 1] * 50, records.targets[j : j + 1], records.present[j : j + 1])
        for clip in (1e-3, 0.1):
            norm = np.linalg.norm(clipped_sum(gradients, one, clip, 1e6))
            assert norm <= clip * (1 + 1e-12)
            assert norm >= clip * (1 - 1e-5)


def altered(records: Records, j: int, change: str) -> Records:
    inputs, present = records.inputs.clone(), records.present.clone()
    if change == "absent":
        present[j] = False
        inputs[j] = 0
    elif change == "absent with rubbish":
        present[j] = False
        inputs[j] = math.inf
    else:
        inputs[j] = {"nan": math.nan, "inf": math.inf, "huge": 1e300, "zero": 0.0}[change]
    return Records(inputs, records.targets, present)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("change", ["nan", "inf", "huge", "absent", "absent with rubbish"])
def test_what_does_not_count_is_exactly_zero_and_leaves_its_neighbours_bits(change: str, dtype: torch.dtype) -> None:
    for k in (3, None):
        gradients, records = setting(dtype, k)
        before, _ = gradients.of_piece([(records, np.arange(7))])
        sums = [clipped_sum(gradients, altered(records, j, change), 0.5, 1e3) for j in (0, 3)]
        for j, total in zip((0, 3), sums, strict=True):
            other = altered(records, j, change)
            vectors, finite = gradients.of_piece([(other, np.arange(7))])
            assert not vectors[j].any()
            assert finite[j] == change.startswith("absent")
            keep = np.arange(7) != j
            assert vectors[keep].tobytes() == before[keep].tobytes()
            assert finite[keep].all()
            # The sum is the sum without it, bit for bit: its terms are exact zeros.
            assert total.tobytes() == clipped_sum(gradients, altered(records, j, "absent"), 0.5, 1e3).tobytes()
            assert np.isfinite(total).all()


def test_weights_and_norms_of_a_record_do_not_depend_on_its_neighbours() -> None:
    gradients, records = setting(torch.float32)
    present = torch.ones(8, dtype=torch.bool)
    stores, _ = gradients._stores(records)
    weights, _ = clip_weights(stores, present, 0.3, 10.0)
    for change in ("nan", "huge", "zero"):
        stores, _ = gradients._stores(altered(records, 2, change))
        others, _ = clip_weights(stores, present, 0.3, 10.0)
        keep = torch.arange(8) != 2
        assert torch.equal(weights[keep], others[keep])


def test_the_same_call_gives_the_same_bits() -> None:
    gradients, records = setting(torch.float32)
    assert clipped_sum(gradients, records, 0.5, 10).tobytes() == clipped_sum(gradients, records, 0.5, 10).tobytes()


def test_units_of_several_records_and_batches_are_summed() -> None:
    gradients, records = setting(torch.float64, 3, micro_batch=4)
    expected = slow_vectors(gradients.network, gradients.loss, gradients.whitening, records).numpy()
    first, second = (
        Records(records.inputs[part], records.targets[part], records.present[part])
        for part in (slice(0, 4), slice(4, 7))
    )
    vectors, finite = gradients.of_piece([(first, np.array([0, 0, 1, 2]))])
    assert finite.tolist() == [True] * 3
    np.testing.assert_allclose(vectors, [expected[:2].sum(axis=0), expected[2], expected[3]], rtol=1e-9, atol=1e-12)
    vectors, _ = gradients.of_piece([(first, np.zeros(4, dtype=int)), (second, np.zeros(3, dtype=int))])
    np.testing.assert_allclose(vectors[0], expected.sum(axis=0), rtol=1e-9, atol=1e-12)
    with pytest.raises(UsageError, match="no records"):
        gradients.of_piece([])


def test_no_per_example_weight_gradient_is_ever_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(8, 24, 5), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 96), nn.ReLU(), nn.Linear(96, 64)
    )
    network = Network(module)
    blocks = block_layout(network)
    gradients = fast(network, CrossEntropy(), whitening_for(blocks, 8), 16)
    records = random_records((8, 8, 8), 64, 16)
    clipped_sum(gradients, records, 1.0, 10)  # the first use checks the routing

    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            found = func(*args, **(kwargs or {}))
            sizes.extend(
                t.untyped_storage().size()
                for t in torch.utils._pytree.tree_leaves(found)
                if isinstance(t, torch.Tensor)
            )
            return found

    with Sizes():
        clipped_sum(gradients, records, 1.0, 10)
    assert len(sizes) > 20
    assert max(sizes) < 4 * 16 * min(block.size for block in blocks)


def test_bad_bounds_and_whitenings_are_refused() -> None:
    gradients, records = setting(torch.float32)
    for clip, cancellation, name in ((0.0, 1.0, "clip"), (math.nan, 1.0, "clip"), (1.0, math.inf, "cancellation")):
        with pytest.raises(UsageError, match=name):
            clipped_sum(gradients, records, clip, cancellation)
    network, blocks = gradients.network, gradients.blocks
    with pytest.raises(UsageError, match="factors of 1 blocks"):
        fast(network, CrossEntropy(), whitening_for(blocks, 3)[:1], 8)
    wrong = [BlockWhitening(factors.row[..., :-1], factors.column) for factors in whitening_for(blocks, 3)]
    with pytest.raises(UsageError, match=r"block 0\.weight has factors"):
        fast(network, CrossEntropy(), wrong, 8)


def test_other_losses_and_frozen_networks_work() -> None:
    torch.manual_seed(0)
    records = random_records((5,), 2)
    records.targets = records.targets.double()
    agree(models.mlp(5, 1, [6]), records, k=2, loss=MeanSquaredError())
    agree(models.mlp(5, 1, [6]), records, loss=MeanSquaredError(), trainable=("3.*",))
