"""Built-in model factories, and the way from "package.module:function" to a module."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from distqexp.errors import FileContentError, UsageError
from distqexp.problem.user_code import imported, own_code

_BUILT_IN = (
    *(f"distqexp.problem.models:{name}" for name in ("logistic", "mlp", "cnn", "mean_of_words")),
    "distqexp.problem.huggingface:from_config",
    "distqexp.problem.efficientnet:lite0",
    "distqexp.problem.scattering:scattering",
    "distqexp.problem.layers:build",
)
_ALLOW_VARIABLE = "DISTQEXP_ALLOW_FACTORIES"


def logistic(inputs: int, outputs: int = 1, bias: bool = True) -> nn.Module:
    """Make a linear model on flattened inputs: (n, ...), with ``inputs`` numbers a record, to (n, outputs)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs, bias=bias))


def mlp(inputs: int, outputs: int, hidden: Sequence[int] = (64,)) -> nn.Module:
    """Make a perceptron on flattened inputs, with a ReLU after every hidden layer: (n, ...) to (n, outputs)."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = inputs
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def cnn(outputs: int = 10) -> nn.Module:
    """Make a small convolutional network: (n, 1, 28, 28) images to (n, outputs); 26,010 parameters at 10 outputs."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, stride=2, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.ReLU(),
        nn.Linear(32, outputs),
    )


class MeanOfWords(nn.Module):
    """The mean of a text's embeddings, and a linear layer: tokens and mask, int64 (n, 2, L), to (n, outputs)."""

    def __init__(self, words: int, outputs: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Compute the outputs; a text without a token has the mean zero."""
        seen = records[:, 1].unsqueeze(2).to(self.head.weight.dtype)
        total = (self.words(records[:, 0]) * seen).sum(dim=1)
        outputs: torch.Tensor = self.head(total / seen.sum(dim=1).clamp(min=1.0))
        return outputs


def mean_of_words(words: int, outputs: int = 1, width: int = 16) -> nn.Module:
    """Make a model of token numbers below ``words``, which knows no order: (n, 2, L) to (n, outputs)."""
    return MeanOfWords(words, outputs, width)


def build_model(factory: str, args: Mapping[str, Any]) -> nn.Module:
    """Import "package.module:function" and call it with the keyword arguments ``args``.

    Weights are drawn from torch's global generator: seed it around the call. Raises UsageError when the factory can't be imported,
    doesn't take the arguments, or returns something else than a torch.nn.Module.
    """
    function = imported(factory, "model.factory")
    with own_code(f"model.args: {factory!r} refused {dict(args)!r}", "see the factory's signature"):
        module = function(**args)
    if not isinstance(module, nn.Module):
        raise UsageError(f"model.factory: {factory!r} returned {type(module).__name__}; expected a torch.nn.Module")
    return module


def is_allowed(factory: str) -> bool:
    """Return whether a factory that a file names is run: it is built in, or DISTQEXP_ALLOW_FACTORIES lists it."""
    patterns = [text.strip() for text in os.environ.get(_ALLOW_VARIABLE, "").split(",") if text.strip()]
    return factory in _BUILT_IN or any(fnmatch.fnmatchcase(factory, pattern) for pattern in patterns)


def require_allowed_factory(factory: str, key: str = "model.factory") -> None:
    """Raise FileContentError for a factory, or a loss, named in a file from elsewhere, unless it is built in or allowed locally.

    The local list of allowed ones is the environment variable DISTQEXP_ALLOW_FACTORIES: comma-separated fnmatch patterns, such as
    "ourmodels.*:*".

    Args:
        factory: What the file names.
        key: The key of the config that names it.
    """
    if is_allowed(factory):
        return
    raise FileContentError(
        f"{key}: the file names {factory!r}, which is not built in; expected one of {', '.join(_BUILT_IN)}; "
        f"if you trust it, add it to {_ALLOW_VARIABLE}"
    )
