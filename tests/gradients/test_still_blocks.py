"""Blocks that stand still: no gradient is taken for them, and those of the others are what they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from layers_harness import fast, random_records, slow_vectors, whitening_for

from distqexp.geometry.whitening import BlockWhitening
from distqexp.gradients.layers import block_layout
from distqexp.gradients.layers.forms import Raw
from distqexp.problem import models
from distqexp.problem.losses import CrossEntropy
from distqexp.problem.network import Network


@pytest.mark.parametrize("still", [{0}, {1}, {0, 2}])
def test_the_gradients_of_still_blocks_are_zero_and_the_others_are_what_they_were(still: set[int]) -> None:
    torch.manual_seed(3)
    network = Network(models.mlp(inputs=5, outputs=3, hidden=[6, 4]).double())
    records, blocks = random_records((5,), 3), block_layout(network)
    whitening = [
        BlockWhitening(factors.row * (number not in still), factors.column)
        for number, factors in enumerate(whitening_for(blocks, 3))
    ]
    gradients = fast(network, CrossEntropy(), whitening, 4)
    vectors, finite = gradients.of_piece([(records, np.arange(4))])
    slow = slow_vectors(network, CrossEntropy(), whitening, records)
    assert finite.all()
    assert np.abs(vectors - slow.numpy()).max() < 1e-12
    assert np.abs(slow.numpy()).max() > 1e-3
    taps = gradients._taps
    assert taps is not None
    heard: set[int] = set()

    def receive(number: int, raw: Raw) -> None:
        heard.add(number)

    taps[1].run(records.inputs, lambda outputs: outputs.sum(dim=1), receive, frozenset(still))
    assert heard == set(range(3)) - still
