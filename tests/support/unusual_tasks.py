"""Small tasks on files of random records, for the models of unusual_models.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from distqexp.config import Config, config_from_tree

VECTORS, SERIES, TOKENS = (6,), (4, 3), (5,)
"""The shapes of records."""


def config_of(folder: Path, factory: str, args: dict[str, Any], shape: tuple[int, ...], **sections: Any) -> Config:
    """The config of ``tree_of``."""
    return config_from_tree(tree_of(folder, factory, args, shape, **sections))


def tree_of(
    folder: Path, factory: str, args: dict[str, Any], shape: tuple[int, ...], **sections: Any
) -> dict[str, Any]:
    """A config on files of random records of this shape, which are written too."""
    random, tokens = np.random.default_rng(0), shape == TOKENS
    for name, count in (("public", 20), ("private", 12)):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["x"] = (
                random.integers(0, 11, (count, *shape)) if tokens else random.normal(size=(count, *shape)).astype("f4")
            )
            file["m"] = (np.arange(shape[0]) < random.integers(1, shape[0] + 1, (count, 1))).astype("i1")
            file["y"] = random.integers(0, 3, count)
    more = {"tokens": True, "mask": "m"} if tokens else {"standardise": False}
    columns = {"features": ["x"], "target": "y", **more}

    def source(name: str) -> dict[str, Any]:
        return {"format": "hdf5", "path": str(folder / f"{name}.h5"), "columns": columns}

    tree = {
        "model": {"factory": f"unusual_models:{factory}", "args": args, "loss": "cross-entropy"},
        "data": {"population": "people", "public": source("public"), "private": source("private")},
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": 12},
        "engine": {"micro_batch": 8, "kind": "serial"},
    }
    for name, section in {"mechanism": {"clip_quantile": 0.8}, **sections}.items():
        tree[name] = {**tree.get(name, {}), **section}
    return tree
