"""Networks, records and packed second moments, for tests of moments."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distqexp.expansion.moments import FisherMoments
from distqexp.geometry.moments import BlockMoments
from distqexp.geometry.packing import unpack
from distqexp.geometry.subspaces.kronecker import KroneckerSubspace
from distqexp.gradients.labels import label_noise
from distqexp.problem.losses import CrossEntropy, Loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records

SEED, ROUND, FIRST = 5, 2, 30


def layered() -> nn.Sequential:
    """A grouped convolution, a linear layer with several positions, a normalisation, a head without a bias."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2),
        nn.Tanh(),
        nn.Flatten(2),
        nn.Linear(20, 5),
        nn.LayerNorm(5),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(30, 3, bias=False),
    ).double()


class Twice(nn.Module):
    """One layer applied two times in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(torch.tanh(self.again(torch.tanh(self.again(x)))))
        return found


def images(count: int, seed: int = 1) -> Records:
    x = torch.randn(count, 4, 9, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Records(x, torch.zeros(count, dtype=torch.int64), torch.ones(count, dtype=torch.bool))


def sampled(network: Network, loss: Loss, records: Records) -> torch.Tensor:
    outputs = network.module(records.inputs).detach()
    return loss.sample(outputs, label_noise(SEED, ROUND, FIRST, len(records), 1))


def packed(network: Network, subspace: KroneckerSubspace, records: Records, micro_batch: int) -> NDArray[np.float64]:
    """Of a pass that stores all gradients. A streamed one gives the same bits, or finds out that it can't."""
    moments = FisherMoments(network=network, loss=CrossEntropy(), subspace=subspace, micro_batch=micro_batch)
    found = []
    for streamed in (False, True):
        sums = moments.sums()
        good = moments.add_records(sums, records, seed=SEED, round=ROUND, first_slot=FIRST, streamed=streamed)
        found.append(sums.flat())
        assert good or streamed
    finite = torch.isfinite(records.inputs[records.present].double()).all()
    assert good == bool(finite)
    assert np.array_equal(*found) or not good
    return found[0]


def moments_of(
    network: Network, subspace: KroneckerSubspace, records: Records, micro_batch: int = 8
) -> list[BlockMoments]:
    return unpack(subspace.coordinates, packed(network, subspace, records, micro_batch))
