"""The noise behind labels that are sampled from the model: a function of seed, round and slot. Public."""

from __future__ import annotations

import torch

from distqexp.geometry.philox import raw_words, stream_key


def label_noise(seed: int, round: int, first_slot: int, count: int, width: int) -> torch.Tensor:
    """Return float64 numbers uniform on (0, 1), (count, width), for ``count`` slots from ``first_slot`` on.

    Slot s has the words from s * width on of the random stream of (seed, round).
    """
    words = raw_words(stream_key("labels", seed, round), first_slot * width, count * width)
    return torch.from_numpy((words + 0.5) * 2.0**-32).reshape(count, width)
