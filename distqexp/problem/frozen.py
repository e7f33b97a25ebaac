"""The frozen part of a model: everything below the one module that trains. What it gives for a record never changes. Public."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.func import functional_call

from distqexp.errors import UsageError
from distqexp.problem.hiding import private_rows
from distqexp.problem.network import Network
from distqexp.problem.probes import synthetic_records
from distqexp.problem.schema import Schema

_PROBES = 3
_TOLERANCE = 1e-5
"""The largest difference, relative to the largest output, between the head on what reached it and the whole model."""


class FrozenPart:
    """The part of a model that no round changes, and the module on top of it, whose parameters all trainable ones are.

    Attributes:
        head: The module that trains; it shares its parameters with the whole model, in the same order.
        shape: The shape of one record's features.
    """

    def __init__(self, network: Network, path: str, shape: tuple[int, ...]) -> None:
        self._network = network
        self._module = network.module.get_submodule(path)
        names = [name.removeprefix(f"{path}.") for name, _ in network.names_shapes]
        self.head = Network(self._module, names, network.device, network.mixed)
        self.shape = shape

    def private_features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the features of private records; those of one that the model raises an exception for are NaN."""
        blank = torch.zeros(self.shape, dtype=self.head.dtype)
        return private_rows(self.features, [inputs], len(inputs), blank)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what reaches the head for a batch of records: (n, ...) becomes (n, *shape), on the CPU."""
        received: list[torch.Tensor] = []
        handle = self._module.register_forward_pre_hook(lambda _, args: received.append(args[0]))
        try:
            with torch.no_grad():
                self._network.call(inputs)
        finally:
            handle.remove()
        return torch.cat(received).cpu().to(self.head.dtype)


def frozen_part(network: Network, schema: Schema) -> FrozenPart | None:
    """Return the frozen part of a model, or None where rounds can't do without the whole.

    There is one where all trainable parameters lie in one module of several, which is called once, with one tensor, and whose outputs
    are the model's, untouched. This is tried on synthetic records with random trainable parameters, so that a head of zeros hides
    nothing.

    Args:
        network: The model; its parameters are not changed.
        schema: The schema of its records.
    """
    path = _common_module([name for name, _ in network.names_shapes])
    if not path or schema.input_shape is None or not _holds_more(network, path) or _used_outside(network, path):
        return None
    try:
        inputs = synthetic_records(schema, _PROBES, seed=0, round=0, first=0).inputs
    except UsageError:  # the shape of a record or the vocabulary isn't known
        return None
    module = network.module.get_submodule(path)
    generator = torch.Generator().manual_seed(0)
    parameters = {
        name: torch.randn(tensor.shape, generator=generator).to(tensor)
        for name, tensor in network.trainable_tensors().items()
    }
    try:
        with torch.no_grad():
            passed = _pass(network, module, parameters, inputs)
            if passed is None or not passed.received.is_floating_point() or len(passed.received) != _PROBES:
                return None
            own = {name.removeprefix(f"{path}."): tensor for name, tensor in parameters.items()}
            with network.autocast():
                again = functional_call(module, own, (passed.received,))
    except Exception:  # noqa: BLE001 - a module of any kind may refuse random parameters; rounds then run the whole of it
        return None
    if not bool((again - passed.outputs).abs().max() <= _TOLERANCE * passed.outputs.abs().max()):
        return None
    return FrozenPart(network, path, tuple(passed.received.shape[1:]))


class _Pass(NamedTuple):
    """One pass through a model.

    Attributes:
        received: The argument of the module's only call.
        outputs: What that call returned, which is what the model returned.
    """

    received: torch.Tensor
    outputs: torch.Tensor


def _pass(
    network: Network, module: nn.Module, parameters: Mapping[str, torch.Tensor], inputs: torch.Tensor
) -> _Pass | None:
    """Run the model; None unless it calls ``module`` once, with one tensor, and returns the very tensor that this call gave.

    An output that is another tensor, or was changed in place, has been worked on after the module.
    """
    calls: list[tuple[Any, ...]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append((args, kwargs, output, getattr(output, "_version", None)))

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        outputs = network.functional(parameters, network.prepare(inputs))
    finally:
        handle.remove()
    if len(calls) != 1:
        return None
    args, kwargs, output, version = calls[0]
    single = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor)
    untouched = isinstance(output, torch.Tensor) and _is_same(network, outputs, output) and output._version == version
    return _Pass(args[0], output) if single and untouched else None


def _is_same(network: Network, outputs: torch.Tensor, output: torch.Tensor) -> bool:
    """Return whether the model's outputs are what a module gave: the very tensor or, in mixed precision, one that was widened."""
    if network.mixed is None or outputs.dtype == output.dtype or outputs.shape != output.shape:
        return outputs is output
    return torch.equal(outputs, output.to(outputs.dtype))


def _common_module(names: list[str]) -> str:
    """Return the path of the innermost module that holds all these parameters; empty for the whole model."""
    paths = [name.split(".")[:-1] for name in names]
    common = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) != 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _holds_more(network: Network, path: str) -> bool:
    """Return whether the model has parameters or buffers outside the module at ``path``: else there is hardly any work below it."""
    module = network.module
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return any(not name.startswith(f"{path}.") for name, _ in tensors)


def _used_outside(network: Network, path: str) -> bool:
    """Return whether a trainable parameter is tied to one outside the module at ``path``."""
    chosen = {id(network.module.get_parameter(name)) for name, _ in network.names_shapes}
    everywhere = network.module.named_parameters(remove_duplicate=False)
    return any(id(parameter) in chosen and not name.startswith(f"{path}.") for name, parameter in everywhere)
