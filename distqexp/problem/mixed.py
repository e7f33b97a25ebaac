"""Forward passes in half precision (torch.autocast), around parameters, outputs and gradients in float32. Public."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""The types of ``engine.mixed_precision``, by their names in a config."""


@dataclass(frozen=True)
class Mixed:
    """The type that matrix products of a forward pass are taken in.

    Attributes:
        type: torch.bfloat16 or torch.float16.
    """

    type: torch.dtype

    @staticmethod
    def named(name: str) -> Mixed | None:
        """Return the type of ``engine.mixed_precision``; None for "off"."""
        return Mixed(TYPES[name]) if name in TYPES else None

    @property
    def eps(self) -> float:
        """The distance from 1 to the next number."""
        return torch.finfo(self.type).eps

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context of one forward pass. Casts are not cached: a cached one would outlive the parameters of its round."""
        return torch.autocast(device.type, dtype=self.type, cache_enabled=False)


def widened(values: Any) -> Any:
    """Return a tensor in half precision as float32, exactly, and anything else as it is."""
    half = isinstance(values, torch.Tensor) and values.dtype in TYPES.values()
    return values.float() if half else values


__all__ = ["TYPES", "Mixed", "widened"]
