"""Reading and writing weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray

from distqexp.errors import FileContentError, UsageError
from distqexp.problem.admission import plain_names
from distqexp.problem.checkpoints import read_checkpoint
from distqexp.problem.huggingface import LORA_PREFIX, base_weights, plain_name
from distqexp.problem.network import Network
from distqexp.storage.atomic import write_atomic

_FOUND_OUT = (".num_batches_tracked", ".position_ids")
"""Ends of names of buffers that no output depends on, and that older files lack or have."""


def write_weights(path: Path, weights: Mapping[str, NDArray[Any]]) -> bytes:
    """Store named arrays as a .safetensors file, atomically, and return the bytes written. Raises StorageError."""
    content: bytes = safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in weights.items()})
    write_atomic(path, content)
    return content


def begins_anew(name: str, new_head: Sequence[str]) -> bool:
    """Whether ``model.new_head`` means the tensor of this name: by its own, or by that of the model without low-rank factors."""
    return any(fnmatch.fnmatchcase(one, pattern) for one in (name, plain_name(name)) for pattern in new_head)


def load_weights(network: Network, path: str | Path, new_head: Sequence[str] = ()) -> None:
    """Load all parameters and buffers from a .safetensors file, a torch file of named tensors, or a folder (no code is run).

    What DataParallel, torch.compile and training programs put around names and tables is taken off. A model with low-rank factors
    (peft) also takes the weights of the model without them, and a Hugging Face model those of its body. Numbers are rounded or
    widened to the model's own type.

    Args:
        network: the model.
        path: the file, or a folder that ``save_pretrained``, peft or a run wrote.
        new_head: patterns (fnmatch) of names that begin anew: the model keeps its own values of them, and what the file has of
            such names is left out.

    Raises:
        UsageError: the file is missing, or a pattern matches nothing.
        FileContentError: the file is damaged, has other names or shapes than the model, or has values that aren't finite.
    """
    state: Mapping[str, Any] = read_checkpoint(path)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FileContentError(f"{path}: {name} holds values that aren't finite; expected numbers; export it again")
    own = network.module.state_dict()
    names = plain_names(list(state), set(own))
    state = _with_prefix(network, {names[name]: tensor for name, tensor in state.items()})
    state = _with_new_head(own, _with_adapter(own, state), new_head)
    fillers = {name: tensor for name, tensor in own.items() if name.endswith(_FOUND_OUT) and name not in state}
    kept = {name: tensor for name, tensor in state.items() if name in own or not name.endswith(_FOUND_OUT)}
    try:
        network.load_state({**fillers, **kept})
    except FileContentError as error:
        raise FileContentError(f"{path}: {error}{_advice(own, kept)}") from None


def _with_adapter(own: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state of an adapter on that of its base as that of the model with both, and any other as ``base_weights`` does."""
    adapter = {name: tensor for name, tensor in state.items() if name.startswith(LORA_PREFIX)}
    base = {name: tensor for name, tensor in state.items() if name not in adapter}
    if not adapter or not base:
        return base_weights(own, state)
    complete = dict(base_weights(own, base))
    for name, tensor in adapter.items():
        layer, _, last = name.rpartition(".")
        saved = f"{layer}.modules_to_save.default.{last}"
        complete[saved if saved in own else name] = tensor
    return complete


def _with_prefix(network: Network, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state of a Hugging Face body as that of the model around it, and any other as it is."""
    prefix = getattr(network.module, "base_model_prefix", "")
    if not (isinstance(prefix, str) and prefix) or any(name.startswith((f"{prefix}.", LORA_PREFIX)) for name in state):
        return state
    own = {plain_name(name) for name in network.module.state_dict()}
    return {f"{prefix}.{name}" if f"{prefix}.{name}" in own else name: tensor for name, tensor in state.items()}


def _with_new_head(
    own: Mapping[str, torch.Tensor], state: Mapping[str, Any], patterns: Sequence[str]
) -> Mapping[str, Any]:
    """Return the state with the model's own values of the names that begin anew."""
    for pattern in patterns:
        if not any(begins_anew(name, (pattern,)) for name in [*own, *state]):
            raise UsageError(
                f"model.new_head: {pattern!r} matches no name of the model or its weights; expected patterns such as of "
                f"{', '.join(list(own)[-4:])}"
            )
    kept = {name: tensor for name, tensor in state.items() if not begins_anew(name, patterns)}
    return kept | {name: tensor for name, tensor in own.items() if begins_anew(name, patterns)}


def _advice(own: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> str:
    """Return what to do where a state doesn't fit; empty where nothing is known that would help."""
    wrong = [name for name in own if name not in state or tuple(state[name].shape) != tuple(own[name].shape)]
    wrong += [name for name in state if name not in own]
    modules = sorted({f"{name.rpartition('.')[0]}.*" if "." in name else name for name in wrong})
    if not wrong or len(wrong) > len(own) // 2 + 2:
        return ""
    quoted = ", ".join(f'"{pattern}"' for pattern in modules[:6])
    return f"; where these begin anew, as a new head does, set model.new_head = [{quoted}]"
