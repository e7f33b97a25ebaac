"""Models that end in a softmax or a sigmoid, while the loss wants what goes into it. Found on synthetic records; public."""

from __future__ import annotations

import torch

from distqexp.errors import UsageError
from distqexp.problem.network import Network
from distqexp.problem.probes import synthetic_records
from distqexp.problem.schema import Schema

_PROBES = 32
_TOGETHER = 8
_DRAWS = 2
_ROUNDING = 1e-3
"""Half precision adds a row of probabilities to one within this."""


def ending_warning(network: Network, schema: Schema) -> str | None:
    """Return a line of warning where a model gives probabilities to a loss of logits; None where it doesn't, or can't be tried.

    The model is called on synthetic records under random parameters, where logits are of any size and probabilities still are none. A
    log-softmax before cross-entropy is no fault: that of log-probabilities is the same number, with the same gradient.

    Args:
        network: The model; its parameters stay as they are.
        schema: What a record looks like, and the loss.
    """
    if schema.loss not in ("cross-entropy", "binary-cross-entropy"):
        return None
    found = _outputs(network, schema)
    if found is None or not bool(torch.isfinite(found).all()) or bool((found == found.flatten()[0]).all()):
        return None
    single = schema.loss == "binary-cross-entropy"
    if single and bool((found <= 0).all()):
        return _line("logarithms of probabilities (none above 0)", "the log-sigmoid", single)
    if not _within(found):
        return None
    if single:
        return _line("probabilities (all from 0 to 1)", "the sigmoid", single)
    of_rows = bool((found.sum(dim=1) - 1).abs().max() <= _ROUNDING)
    return _line(
        "probabilities (from 0 to 1, with sum 1)" if of_rows else "probabilities (all from 0 to 1)",
        "the softmax" if of_rows else "the sigmoid",
        single,
    )


def _line(found: str, layer: str, single: bool) -> str:
    loss = "binary-cross-entropy" if single else "cross-entropy"
    return (
        f"model: its outputs are {found} whatever its parameters; {loss} expects logits, and predictions turn them into probabilities: "
        f"take {layer} off the end, else gradients nearly vanish"
    )


def _outputs(network: Network, schema: Schema) -> torch.Tensor | None:
    """Return outputs (n, C) of synthetic records under random parameters; None as soon as some show that nothing is to be warned of."""
    try:
        inputs = network.prepare(synthetic_records(schema, _PROBES, seed=0, round=0, first=0).inputs)
    except UsageError:  # the shape of a record or the vocabulary isn't known
        return None
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(_DRAWS):
        parameters = {
            name: torch.randn(tensor.shape, generator=generator).to(tensor)
            for name, tensor in network.trainable_tensors().items()
        }
        for some in torch.split(inputs, _TOGETHER):
            try:
                with torch.no_grad():
                    found = network.functional(parameters, some).reshape(len(some), -1).cpu().double()
            except Exception:  # noqa: BLE001 - a module of any kind may refuse random parameters
                return None
            if not (_within(found) or bool((found <= 0).all())):
                return None  # the first few say it of nearly every model
            parts.append(found)
    return torch.cat(parts)


def _within(outputs: torch.Tensor) -> bool:
    """Return whether all outputs are from 0 to 1."""
    return bool(((outputs >= 0) & (outputs <= 1)).all())
