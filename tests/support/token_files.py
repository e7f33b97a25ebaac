"""Small HDF5 files of tokens, and configs of tiny Hugging Face models on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

VOCABULARY, LENGTH, CLASSES = 20, 6, 3
COLUMNS = {"features": ["ids"], "target": "y", "tokens": True, "mask": "seen"}

_SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
_TEXT = {"vocab_size": VOCABULARY, "num_labels": CLASSES, "pad_token_id": 0}
MODELS: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": {**_TEXT, **_SIZES, "max_position_embeddings": 8},
    "GPT2ForSequenceClassification": {**_TEXT, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8},
    "LlamaForSequenceClassification": {**_TEXT, **_SIZES, "num_key_value_heads": 1, "max_position_embeddings": 8},
    "ViTForImageClassification": {
        **_SIZES, "image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10
    },
}  # fmt: skip
"""Class: the sizes of a model that takes milliseconds."""


def factory(model: str, **more: Any) -> dict[str, Any]:
    """The config's [model] of a class of MODELS."""
    return {
        "factory": "distqexp.problem.huggingface:from_config",
        "args": {"model": model, "config": MODELS[model], **more},
        "loss": "cross-entropy",
    }


def random_tokens(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Tokens (n, L), of which 0 is padding at the end, their mask and labels."""
    random = np.random.default_rng(seed)
    ids = random.integers(1, VOCABULARY, (count, LENGTH))
    mask = (np.arange(LENGTH) < random.integers(1, LENGTH + 1, (count, 1))).astype(np.int64)
    return ids * mask, mask, random.integers(0, CLASSES, count)


def write_tokens(path: Path, count: int, seed: int, **changed: NDArray[Any] | None) -> Path:
    """Store random tokens; ``changed`` replaces a dataset, or leaves it out."""
    ids, mask, labels = random_tokens(count, seed)
    with h5py.File(path, "w") as file:
        for name, values in ({"ids": ids, "seen": mask, "y": labels} | changed).items():
            if values is not None:
                file[name] = values
    return path


def token_config(folder: Path, model: Mapping[str, Any], **sections: Mapping[str, Any]) -> dict[str, Any]:
    """A config's tree on folder/private.h5 and folder/public.h5; ``sections`` override keys of its tables."""
    source = {"format": "hdf5", "columns": COLUMNS}
    tree: dict[str, Any] = {
        "model": dict(model),
        "data": {
            "population": "readers",
            "private": {**source, "path": str(folder / "private.h5")},
            "public": {**source, "path": str(folder / "public.h5")},
        },
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": 20},
        "subspace": {"kind": "gaussian", "k": 5},
        "mechanism": {"clip": 0.05},
        "engine": {"micro_batch": 8, "kind": "serial"},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return tree
