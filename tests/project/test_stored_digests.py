"""A config of every kind in configs/ gives the integer sums and the seeded releases that it gave before: byte for byte.

The digests stand in data/digests.json, by the machine's arithmetic (other kernels round otherwise, and no bits are promised across them);
on an arithmetic that isn't there the sizes are compared. ``python tests/project/test_stored_digests.py WEIGHTS`` writes them anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arithmetic import arithmetic_digest
from numpy.typing import NDArray

from distqexp import api
from distqexp.config import Config, load_config
from distqexp.storage.hdf5 import read_file

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"
STORED = REPOSITORY / "tests" / "support" / "data" / "digests.json"
PREPARED = ("sst2", "pneumonia", "mnist-scratch")
"""Configs on a large frozen model, which tests/tasks runs in part."""
FOLDERS = {path.parent for path in CONFIGS.rglob("*.toml") if path.parent.name not in PREPARED} - {CONFIGS}
NAMES = sorted(
    [*(path.name for path in CONFIGS.glob("*.toml")), *(f"{folder.name}/tuned-eps1.toml" for folder in FOLDERS)]
)
"""Those of one folder differ in figures alone."""
SEED = 5
ROUNDS = 2
TOLERANCE = 0.3
"""Relative, of sizes on another arithmetic: pretraining on other kernels ends at another start (seen: up to 15 % on MNIST)."""


def load(name: str, start: Path | None) -> Config:
    """The config; those that pretrain on images from the weights of ``start``, which are the same for all of them."""
    config = load_config(CONFIGS / name)
    if start is not None and name.startswith("mnist"):
        return replace(config, model=replace(config.model, weights=str(start), pretrain=None))
    return config


def digests_of(config: Config, folder: Path) -> dict[str, tuple[str, float]]:
    """Digest and Euclidean norm of what the first rounds of a config sum and release, through the commands by hand."""
    plan = folder / "plan.h5"
    api.plan(config, plan)
    found: dict[str, tuple[str, float]] = {}
    previous: Path | None = None
    for round in range(min(ROUNDS, config.mechanism.rounds)):
        sketches = []
        for number, data in enumerate(config.data.private):
            sketches.append(folder / f"sketch-{round}-{number}.h5")
            api.sketch(
                plan, data.path, sketches[-1], release=previous, shard=data.shard, labels=data.labels, blank=data.blank,
                ledger=folder / "site.sqlite", insecure_noise_seed=SEED,
            )  # fmt: skip
        pooled, release = folder / f"quadratic-{round}.h5", folder / f"release-{round}.h5"
        api.pool(plan, sketches, pooled)
        api.release(
            plan, pooled, release, previous=previous, config=config, ledger=folder / "ledger.sqlite",
            keep_quadratic=True, insecure_noise_seed=SEED,
        )  # fmt: skip
        released = read_file(release, kind="release").arrays
        found[f"sums {round}"] = described(read_file(pooled, kind="quadratic").arrays["sums"])
        found[f"noisy sums {round}"] = described(released["noisy_sums"])
        found[f"theta {round}"] = described(released["theta"])
        previous = release
    return found


def described(array: NDArray[Any]) -> tuple[str, float]:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest(), float(np.linalg.norm(array.astype(float)))


def compare(found: dict[str, tuple[str, float]], name: str) -> None:
    stored = json.loads(STORED.read_text("utf-8"))[name]
    assert sorted(found) == sorted(stored["norms"])
    known = stored["digests"].get(arithmetic_digest())
    if known is not None:
        assert {key: digest for key, (digest, _) in found.items()} == known
        return
    for key, (_, norm) in found.items():
        assert norm == pytest.approx(stored["norms"][key], rel=TOLERANCE), key


def test_every_config_is_stored() -> None:
    assert sorted(json.loads(STORED.read_text("utf-8"))) == NAMES


def test_the_embedded_config(tmp_path: Path) -> None:
    compare(digests_of(load("digits.toml", None), tmp_path), "digits.toml")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits.toml"])
@pytest.mark.usefixtures("data_folder")
def test_configs_of_real_data(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Only those on MNIST wait for its start to be fitted."""
    start = request.getfixturevalue("mnist_start") if name.startswith("mnist") else None
    compare(digests_of(load(name, start), tmp_path), name)


def main() -> None:
    """Write the digests of this machine's arithmetic; the norms stay where they are known."""
    stored = json.loads(STORED.read_text("utf-8")) if STORED.exists() else {}
    start = Path(sys.argv[1])
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            found = digests_of(load(name, start), Path(folder))
        entry = stored.setdefault(name, {"norms": {key: norm for key, (_, norm) in found.items()}, "digests": {}})
        entry["digests"][arithmetic_digest()] = {key: digest for key, (digest, _) in found.items()}
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
        os.makedirs(STORED.parent, exist_ok=True)
        STORED.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
