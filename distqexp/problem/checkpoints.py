"""Weights as people have them: files and folders of several kinds, read without a network and without running code from them."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from distqexp.errors import FileContentError, UsageError
from distqexp.problem.readers.base import existing_file

_IN_FOLDERS = (
    "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "adapter_model.bin", "model.pt",
)  # fmt: skip
"""What a folder of weights may hold, the first one found is read: of save_pretrained, whole or in shards, of peft, of a run."""

_NESTED = ("state_dict", "model_state_dict", "model", "module", "ema_state_dict", "weights")
"""Where training programs keep the weights in a file that has more."""


def existing_weights(path: str) -> Path:
    """Return the path of weights, of a file or a folder, if it can be read; else raise UsageError."""
    folder = Path(path)
    if not folder.is_dir():
        return existing_file(path, "model.weights")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UsageError(f"model.weights: {path}: not readable; change its permissions")
    if not any((folder / name).is_file() for name in _IN_FOLDERS):
        raise UsageError(
            f"model.weights: {path}: a folder without weights; expected one of {', '.join(_IN_FOLDERS)} in it; correct the path"
        )
    return folder


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the named tensors of a file or a folder of weights.

    Raises:
        UsageError: it is missing.
        FileContentError: it is damaged, or holds something else than named tensors.
    """
    file = existing_weights(str(path))
    if file.is_dir():
        file = next(file / name for name in _IN_FOLDERS if (file / name).is_file())
    if file.name.endswith(".index.json"):
        return _read_shards(file)
    state = _read_file(file)
    if file.name.startswith("adapter_model."):
        return {**_base_of(file.parent), **_adapter(state)}
    return state


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    tree = read_json(index)
    places = tree.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()) or not places:
        raise FileContentError(
            f"{index}: no weight_map of names to files; expected that of save_pretrained; copy it again"
        )
    state: dict[str, torch.Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise FileContentError(f"{index}: names the file {name!r}; expected one in the same folder; copy it again")
        state |= _read_file(existing_file(str(index.parent / name), "model.weights"))
    missing = sorted(set(places) - set(state))
    if missing:
        raise FileContentError(f"{index}: its shards lack {', '.join(missing[:3])}; copy all of the folder again")
    return state


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError):
        raise FileContentError(f"{file}: not a whole safetensors file; fetch or export it again") from None


def _read_torch(file: Path) -> dict[str, torch.Tensor]:
    try:
        tree: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError):
        raise FileContentError(
            f"{file}: not a torch file of tensors alone; expected torch.save(module.state_dict(), ...) or .safetensors"
        ) from None
    state = _named_tensors(tree)
    if state is None:
        raise FileContentError(
            f"{file}: holds more than named tensors; expected torch.save(module.state_dict(), ...), or that under one of "
            f"{', '.join(_NESTED[:4])}"
        )
    return state


def _named_tensors(tree: Any) -> dict[str, torch.Tensor] | None:
    """Return the named tensors of a tree from a file, or of the part of it that holds the weights; None without any."""
    if not isinstance(tree, Mapping):
        return None
    if all(isinstance(value, torch.Tensor) for value in tree.values()):
        return {str(name): value for name, value in tree.items()}
    parts = [_named_tensors(tree[name]) for name in _NESTED if isinstance(tree.get(name), Mapping)]
    return next((part for part in parts if part), None)


def _adapter(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of an adapter's file under the names that they have in a model."""
    sides = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
    renamed = {}
    for name, tensor in state.items():
        side = next((side for side in sides if name.endswith(side)), None)
        head, _, last = name.rpartition(".") if side and side.endswith(".weight") else (name, "", "")
        renamed[name if side is None else f"{head}.default{'.' + last if last else ''}"] = tensor
    return renamed


def _base_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the model that an adapter is for, where it names a folder; else none."""
    config = folder / "adapter_config.json"
    base = read_json(config).get("base_model_name_or_path") if config.is_file() else None
    if not isinstance(base, str) or not base:
        return {}
    place = folder / base if (folder / base).is_dir() else Path(base)
    return read_checkpoint(place) if place.is_dir() and place.resolve() != folder.resolve() else {}


def read_json(file: Path) -> dict[str, Any]:
    """Return the table in a JSON file. Raises FileContentError for anything else."""
    try:
        tree = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        raise FileContentError(f"{file}: not a JSON file; copy the folder again") from None
    if not isinstance(tree, dict):
        raise FileContentError(f"{file}: not a JSON table; copy the folder again")
    return tree
