"""``torch.func.vmap`` without torch's remark on its speed, which nobody who runs a plan or a private pass can do anything about."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

_SLOW = "There is a performance drop because we have not yet implemented the batching rule"


def vmap(function: Any, in_dims: Any = 0) -> Callable[..., Any]:
    """Return ``torch.func.vmap(function, in_dims)``; of all warnings that one alone is left out, inside of a call."""
    mapped = torch.func.vmap(function, in_dims=in_dims)

    def call(*arguments: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_SLOW)
            return mapped(*arguments)

    return call
