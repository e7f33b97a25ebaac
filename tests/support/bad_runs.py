"""Runs on bad private records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bad_records import FORMATS, MODELS, ROWS, Spoiled, bad_task
from run_harness import to_toml


def task(folder: Path, name: str, **sections: Any) -> tuple[Path, Spoiled]:
    """task.toml on bad private records and good public ones."""
    defaults = {"mechanism": {"clip": 0.05, "rounds": 2}, "engine": {"micro_batch": 16}}
    tree, spoiled = bad_task(folder, name, defaults, sections)
    (folder / "task.toml").write_text(to_toml(tree), "utf-8")
    return folder / "task.toml", spoiled


def public_bytes(out: Path) -> dict[str, Any]:
    """Releases by file, and the certificate without the ledger's entry, which has a time."""
    certificate = json.loads((out / "certificate.json").read_text("utf-8"))
    del certificate["ledger"]
    files = {path.name: path.read_bytes() for path in sorted(out.glob("release-*.h5"))}
    names = sorted(path.name for path in out.iterdir())
    return {**files, "certificate": certificate, "weights": (out / "model.safetensors").read_bytes(), "names": names}


def two_shards(folder: Path, name: str, damaged: Path) -> Path:
    """A config whose second shard is ``damaged``; the first is good."""
    model, private, public = FORMATS[name]
    first = private(folder).source
    second = {**first, "path": str(damaged), "shard": "south"}
    tree = {
        "model": MODELS[model],
        "data": {"population": "somebody", "private": [{**first, "shard": "north"}, second], "public": public(folder)},
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": ROWS, "presence": 2},
        "mechanism": {"clip": 0.05, "rounds": 2},
    }
    (folder / "task.toml").write_text(to_toml(tree), "utf-8")
    return folder / "task.toml"
