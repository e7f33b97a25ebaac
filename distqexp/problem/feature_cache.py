"""Features of public records, kept in memory: rounds look at the same ones again and again, and a frozen part gives them the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch

from distqexp.storage.canonical import array_digest

LARGEST = 256 * 2**20
"""At most so many bytes of features are kept in a process."""


class FeatureCache:
    """What the frozen part of one model gave for batches of public records, found again by what the batches hold.

    A batch is known by all its bytes, so that records that are turned or drawn anew in every round are other batches. Where there is
    no more room, what was asked for longest ago goes first. Public: features of private records don't belong here.

    Args:
        largest: The most bytes of features that are kept.
    """

    def __init__(self, largest: int = LARGEST) -> None:
        self._largest = largest
        self._kept: OrderedDict[tuple[torch.dtype, str], torch.Tensor] = OrderedDict()
        self._bytes = 0

    def of(self, inputs: torch.Tensor, features: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return ``features(inputs)`` for a batch (n, ...), which is called only for one that isn't kept.

        Callers must not write into what they get.
        """
        raw = inputs.detach().cpu().contiguous().view(torch.uint8)  # NumPy has no bfloat16
        key = inputs.dtype, array_digest(raw.numpy())
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = features(inputs)
        if made.nbytes <= self._largest:
            self._kept[key] = made
            self._bytes += made.nbytes
        while self._bytes > self._largest:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return made

    def clear(self) -> None:
        """Forget all features."""
        self._kept.clear()
        self._bytes = 0
