"""Whole runs on images with nothing but path and format, in every format that holds them: the same public and private records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from image_folders import write_folder
from numpy.typing import NDArray
from safetensors.numpy import load_file

from distqexp import api
from distqexp.config import Config, config_from_tree

ROWS = 30
LABELS = np.sort(np.arange(ROWS) % 3)
"""Ascending, as a folder's rows are."""


def _images(role: str) -> NDArray[np.uint8]:
    random = np.random.default_rng({"public": 0, "private": 1}[role])
    return random.integers(0, 256, (ROWS, 28, 28), dtype=np.uint8)


def _hdf5(stem: Path, images: NDArray[Any], labels: NDArray[Any]) -> Path:
    with h5py.File(stem.with_suffix(".h5"), "w") as file:
        file["images"], file["labels"] = images, labels
        file["patient"] = np.arange(ROWS)
    return stem.with_suffix(".h5")


def _npz(stem: Path, images: NDArray[Any], labels: NDArray[Any]) -> Path:
    np.savez(stem.with_suffix(".npz"), x=images, y=labels)
    return stem.with_suffix(".npz")


def _npy(stem: Path, images: NDArray[Any], labels: NDArray[Any]) -> Path:
    np.save(stem.with_name(f"{stem.name}-y.npy"), labels)
    np.save(stem.with_name(f"{stem.name}-x.npy"), images)
    return stem.with_name(f"{stem.name}-x.npy")


def _folder(stem: Path, images: NDArray[Any], labels: NDArray[Any]) -> Path:
    return write_folder(stem, images, [str(label) for label in labels])


WRITERS = {"hdf5": _hdf5, "npz": _npz, "npy": _npy, "images": _folder}


def _config(folder: Path, format: str) -> Config:
    folder.mkdir(exist_ok=True)
    sources = {
        role: {"format": format, "path": str(WRITERS[format](folder / role, _images(role), LABELS))}
        for role in ("public", "private")
    }
    return config_from_tree({
        "model": {
            "factory": "distqexp.problem.models:cnn", "args": {"outputs": 3}, "loss": "cross-entropy", "pretrain": {"epochs": 1},
        },
        "data": {"population": format, **sources},
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": ROWS},
        "subspace": {"kind": "gaussian", "k": 5},
        "precision": {"kind": "identity"},
        "mechanism": {"clip": 0.05, "rounds": 1},
        "engine": {"kind": "serial", "micro_batch": 16},
    })  # fmt: skip


def _model(config: Config, folder: Path) -> bytes:
    api.fit(config, folder, insecure_noise_seed=3)
    return b"".join(values.tobytes() for _, values in sorted(load_file(folder / "model.safetensors").items()))


@pytest.mark.parametrize("format", ["npz", "npy", "images"])
def test_formats_of_the_same_images_release_the_same_bytes(tmp_path: Path, own_ledger: Path, format: str) -> None:
    expected = _model(_config(tmp_path / "hdf5", "hdf5"), tmp_path / "out-hdf5")
    assert _model(_config(tmp_path / format, format), tmp_path / "out") == expected
