"""Reading and writing weights."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray

from distqexp.errors import FileContentError
from distqexp.problem.huggingface import base_weights
from distqexp.problem.network import Network
from distqexp.problem.readers.base import existing_file
from distqexp.storage.atomic import write_atomic


def write_weights(path: Path, weights: Mapping[str, NDArray[Any]]) -> bytes:
    """Store named arrays as a .safetensors file, atomically, and return the bytes written. Raises StorageError."""
    content: bytes = safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in weights.items()})
    write_atomic(path, content)
    return content


def load_weights(network: Network, path: str | Path) -> None:
    """Load all parameters and buffers from a .safetensors file, or a torch file of named tensors (no code is run).

    A model with low-rank factors (peft) also takes the weights of the model without them.

    Raises:
        UsageError: the file is missing.
        FileContentError: the file is damaged, has other names or shapes than the model, or has values that aren't finite.
    """
    file = existing_file(str(path), "model.weights")
    state = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FileContentError(f"{file}: {name} holds values that aren't finite; expected numbers; export it again")
    try:
        network.load_state(base_weights(network.module.state_dict(), state))
    except FileContentError as error:
        raise FileContentError(f"{file}: {error}") from None


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError):
        raise FileContentError(f"{file}: not a whole safetensors file; fetch or export it again") from None


def _read_torch(file: Path) -> dict[str, torch.Tensor]:
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError):
        raise FileContentError(
            f"{file}: not a torch file of tensors alone; expected torch.save(module.state_dict(), ...) or .safetensors"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise FileContentError(f"{file}: holds more than named tensors; expected torch.save(module.state_dict(), ...)")
    return {str(name): value for name, value in state.items()}
