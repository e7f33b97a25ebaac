"""Modules as people have them: wrappers taken off, settings that records need to stay apart, and what no way serves refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from distqexp.errors import UsageError

_TABLES = (nn.Embedding, nn.EmbeddingBag)


def admit(module: nn.Module) -> nn.Module:
    """Return the module that is worked on, without the wrappers around it that change no output.

    DataParallel, DistributedDataParallel and what torch.compile returns are taken off at the outside, so that parameters have their
    plain names; further inside DataParallel uses no device but the model's. Sparse gradients become dense ones of the same values.
    Fast paths of attention are switched off in this process, as they depend on the other records of the batch, and so is the
    optimiser of TorchScript, which changes its last bits after some calls.

    Args:
        module: what a factory returned.

    Raises:
        UsageError: the module has a layer that no way serves; the message names it and what to do.
    """
    while (inner := _unwrapped(module)) is not None:
        module = inner
    refuse_unfit(module)
    for part in module.modules():
        if isinstance(part, _TABLES):
            part.sparse = False
        elif isinstance(part, nn.DataParallel):
            part.device_ids = []
    if scripted(module):
        for parameter in module.parameters():
            if not parameter.is_leaf:  # as copy.deepcopy leaves those of TorchScript: they would never get a gradient
                parameter.detach_().requires_grad_()
        torch._C._set_graph_executor_optimize(False)  # torch.jit has it as a context alone
    torch.backends.mha.set_fastpath_enabled(False)
    return module


def refuse_unfit(module: nn.Module) -> None:
    """Refuse (UsageError) a module with a part that can't be trained as it is: a lazy or quantised one, or one with max_norm."""
    asleep = {
        id(part.activation_post_process)
        for part in module.modules()
        if hasattr(part, "observer_enabled") and hasattr(part, "activation_post_process")
    }
    for name, part in module.named_modules():
        if id(part) not in asleep:  # the observer of a fake quantisation, which answers for it
            _refuse(name, part)


def scripted(module: nn.Module) -> list[str]:
    """Return the names of the modules inside that TorchScript runs, the whole of one named by its type."""
    return [
        name or type(part).__name__ for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)
    ]


def plain_names(state_names: list[str], own: set[str]) -> dict[str, str]:
    """Return new names for those of a state, without what wrappers put before them, where that brings them closer to ``own``.

    Args:
        state_names: the names in a file.
        own: the names in the model.
    """
    renamed = {name: name for name in state_names}
    for _ in range(3):  # a wrapper in a wrapper
        stripped = _stripped(list(renamed.values()), own)
        if stripped is None:
            return renamed
        renamed = {name: stripped.get(new, new) for name, new in renamed.items()}
    return renamed


def _stripped(names: list[str], own: set[str]) -> dict[str, str] | None:
    for prefix in ("module.", "_orig_mod.", "model.", "network.", "net."):
        shorter = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        others = set(names) - set(shorter)
        # What isn't the module's (a loss's weights beside it, say) keeps its name. Two names must not become one.
        if shorter and not (set(shorter.values()) & others) and not any(name.startswith(prefix) for name in own):
            before, after = len(own & set(names)), len(own & (set(shorter.values()) | others))
            if after > before or (after == before == 0 and not others and prefix in ("module.", "_orig_mod.")):
                return shorter
    return None


def _unwrapped(module: nn.Module) -> nn.Module | None:
    """Return what is inside a wrapper; None where the module is none."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return module.module
    if type(module).__name__ != "OptimizedModule":  # importing torch's compiler to ask for its class would take seconds
        return None
    inner: Any = module._modules.get("_orig_mod")
    return inner if isinstance(inner, nn.Module) else None


def _refuse(name: str, part: nn.Module) -> None:
    title = f"{name or 'the module'} ({type(part).__name__})"
    if any(is_lazy(tensor) for tensor in _own_tensors(part)):
        raise UsageError(
            f"model: {title} is lazy: it has no sizes before its first call; expected parameters with sizes; call the module once "
            "before it is given or returned, such as module(torch.zeros(1, FEATURES)), or use the layer that names its sizes"
        )
    if isinstance(part, _TABLES) and part.max_norm is not None:
        raise UsageError(
            f"model: {name or 'the module'}: this {type(part).__name__} has max_norm = {part.max_norm:g}, which changes its weight at "
            "every call; expected None; remove max_norm, or scale the rows once in the factory"
        )
    if _observes(part):
        raise UsageError(
            f"model: {title} observes its inputs: it keeps their smallest and largest values, which would carry records over to others; "
            "expected none; calibrate on public records, then torch.ao.quantization.disable_observer, or take the observer out"
        )
    if isinstance(part, torch.nn.quantized.Linear | torch.nn.quantized.Conv2d):
        raise UsageError(
            f"model: {title} is quantised, and has no parameters to train; expected floating point; use the module "
            "before its conversion"
        )


def _observes(part: nn.Module) -> bool:
    """Return whether a module is one of torch's observers, or fake quantisation whose observer is switched on."""
    kinds = {kind.__name__ for kind in type(part).__mro__}  # importing their classes would take a second
    if "FakeQuantizeBase" in kinds:
        enabled: Any = getattr(part, "observer_enabled", None)
        return enabled is None or bool(enabled.any())
    return "ObserverBase" in kinds and bool(part._buffers)


def _own_tensors(part: nn.Module) -> Iterator[Any]:
    if isinstance(part, torch.jit.ScriptModule):
        return
    yield from part._parameters.values()
    yield from part._buffers.values()
