"""The slow, obvious way to block gradients: torch.func in float64, blocks gathered, dense matrices."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import torch
from torch import nn

from distqexp.arrays import FloatArray
from distqexp.geometry.blocks import Block
from distqexp.geometry.whitening import BlockWhitening
from distqexp.gradients.by_layer import BlockGradients
from distqexp.gradients.layers import block_layout
from distqexp.problem.derivatives import per_example_gradients
from distqexp.problem.losses import CrossEntropy, Loss, MeanSquaredError
from distqexp.problem.network import Network
from distqexp.problem.records import Records

Tensor = torch.Tensor


def whitening_for(blocks: list[Block], k: int | None, seed: int = 0, diagonal: bool = False) -> list[BlockWhitening]:
    """Random factors with at most k rows each; ``diagonal``: diagonals instead (every second side)."""
    generator = torch.Generator().manual_seed(seed)

    def one(copies: int, n: int, flat: bool) -> Tensor:
        size = n if k is None else min(k, n)
        if flat:
            return torch.rand((copies, n), generator=generator, dtype=torch.float64) + 0.5
        return torch.randn((copies, size, n), generator=generator, dtype=torch.float64) / n**0.5

    return [
        BlockWhitening(
            one(block.copies, block.rows, (diagonal and number % 2 == 0) or block.sparse_rows),
            one(block.copies, block.columns, diagonal and number % 2 == 1),
        )
        for number, block in enumerate(blocks)
    ]


def matrix(factor: Tensor) -> Tensor:
    """A factor as matrices, its diagonal written out."""
    return torch.diag_embed(factor) if factor.ndim == 2 else factor


def slow_gradients(network: Network, loss: Loss, records: Records) -> Tensor:
    """(n, d) float64, by torch.func, or a record at a time where it can't vectorise the module."""
    with suppress(RuntimeError):
        return per_example_gradients(network, loss, records.inputs, records.targets, private=False).double()
    parameters = [network.module.get_parameter(name) for name, _ in network.names_shapes]
    rows = []
    for j in range(len(records)):
        value = loss.value(network.module(network.prepare(records.inputs[j : j + 1])), records.targets[j : j + 1])
        found = torch.autograd.grad(value.sum(), parameters, materialize_grads=True, allow_unused=True)
        rows.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(rows).double()


def slow_vectors(network: Network, loss: Loss, whitening: list[BlockWhitening], records: Records) -> Tensor:
    """(n, k) float64: U_row G U_col^T of every block of every record."""
    blocks = block_layout(network)
    rows = slow_gradients(network, loss, records)
    parts = []
    for block, factors in zip(blocks, whitening, strict=True):
        gathered = block.gather(rows)
        parts.append((matrix(factors.row) @ gathered @ matrix(factors.column).transpose(1, 2)).flatten(1))
    return torch.cat(parts, dim=1)


def random_records(shape: tuple[int, ...], outputs: int, count: int = 4, vocabulary: int = 0, seed: int = 1) -> Records:
    generator = torch.Generator().manual_seed(seed)
    if vocabulary:
        inputs = torch.randint(vocabulary, (count, *shape), generator=generator)
    else:
        inputs = torch.randn((count, *shape), generator=generator, dtype=torch.float64)
    targets = torch.randint(outputs, (count,), generator=generator)
    return Records(inputs, targets, torch.ones(count, dtype=torch.bool))


def fast(network: Network, loss: Loss, whitening: list[BlockWhitening], micro_batch: int) -> BlockGradients:
    return BlockGradients(
        network=network, loss=loss, whitening=whitening, blocks=block_layout(network), micro_batch=micro_batch
    )


def clipped_sum(
    gradients: BlockGradients, records: Records, clip: float, cancellation: float, largest_terms: int = 2**62
) -> FloatArray:
    """The parts of ``clipped_sum``, put together, with any number of terms unless told otherwise."""
    total = np.zeros(gradients.k)
    for part, values in gradients.clipped_sum(records, clip, cancellation, largest_terms).parts:
        total[part] += values
    return total


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest over records of ||found - expected|| / ||expected||."""
    size = torch.linalg.vector_norm(expected, dim=1)
    return float((torch.linalg.vector_norm(found - expected, dim=1) / size.clamp(min=1e-12)).max())


def agree(
    module: nn.Module,
    records: Records,
    *,
    k: int | None = None,
    trainable: tuple[str, ...] = ("*",),
    diagonal: bool = False,
    loss: Loss | None = None,
    rules_only: bool = True,
) -> BlockGradients:
    """Assert that vectors, clipped sums and raw factors are those of the slow way, to 1e-9 (float64 module)."""
    torch.manual_seed(3)
    network = Network(module.double(), trainable)
    loss = loss or CrossEntropy()
    blocks = block_layout(network)
    whitening = whitening_for(blocks, k, diagonal=diagonal)
    gradients = fast(network, loss, whitening, len(records) + 1)
    vectors, finite = gradients.of_piece([(records, torch.arange(len(records)).numpy())])
    expected = slow_vectors(network, loss, whitening, records)
    assert finite.all()
    assert gradients.k == expected.shape[1]
    assert relative_error(torch.from_numpy(vectors), expected) < 1e-9
    assert gradients._taps is not None
    if rules_only:
        assert not gradients._taps[1].routing.fallbacks
    norms = torch.linalg.vector_norm(expected, dim=1)
    clip = float(norms.median())
    weights = (clip / norms).clamp(max=1.0)
    total = torch.from_numpy(clipped_sum(gradients, records, clip, 1e6))
    assert torch.linalg.vector_norm(total - weights @ expected) < 1e-6 * clip * len(records)
    rows = slow_gradients(network, loss, records)
    seen = set()
    for number, *factors in gradients.raw_factors(records, records.targets):
        block = blocks[number]
        seen.add(number)
        if len(factors) == 1:
            found = factors[0]
        else:
            row, column = factors
            if not row.is_floating_point():
                row = torch.nn.functional.one_hot(row, block.rows).to(column.dtype)
            found = row.transpose(2, 3) @ column
        assert relative_error(found.flatten(1), block.gather(rows).flatten(1)) < 1e-9
    for number in set(range(len(blocks))) - seen:
        assert not blocks[number].gather(rows).any()
    return gradients


__all__ = [
    "CrossEntropy",
    "MeanSquaredError",
    "agree",
    "clipped_sum",
    "fast",
    "random_records",
    "relative_error",
    "slow_vectors",
]
