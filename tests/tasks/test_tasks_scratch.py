"""Settings for MNIST from scratch are chosen on scikit-learn's digits, enlarged: the script that writes them, and who plays whom."""

from __future__ import annotations

import gzip
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from fitted_tasks import CONFIGS
from sklearn.datasets import load_digits

from distqexp.config import load_config
from distqexp.problem.dataset import open_dataset
from distqexp.problem.schema import fit_schema
from distqexp.tuning.roles import assign_roles

SCRIPT = CONFIGS.parent / "scripts" / "prepare_digits.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared files."""
    out = tmp_path_factory.mktemp("digits28")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT), "--out", str(out)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return out


def test_digits_are_enlarged_into_the_middle_of_an_image(folder: Path) -> None:
    images = np.frombuffer(gzip.decompress((folder / "images.gz").read_bytes()), np.uint8, offset=16)
    images = images.reshape(-1, 28, 28)
    labels = np.frombuffer(gzip.decompress((folder / "labels.gz").read_bytes()), np.uint8, offset=8)
    digits = load_digits()
    np.testing.assert_array_equal(labels[:12933].reshape(9, 1437), np.tile(digits.target[:1437], (9, 1)))
    np.testing.assert_array_equal(labels[12933:], digits.target[1437:])
    assert images.max() == 255
    # The stand-ins come in nine places, the fifth of which is the middle.
    placed = images[:12933].reshape(3, 3, 1437, 28, 28)
    for down, across in np.ndindex(3, 3):
        unmoved = np.roll(placed[down, across], (1 - down, 1 - across), axis=(1, 2))
        np.testing.assert_array_equal(unmoved, placed[1, 1])
    images = np.concatenate([placed[1, 1], images[12933:]])
    inner = images[:, 4:24, 4:24]
    assert inner.sum(dtype=np.int64) == images.sum(dtype=np.int64)  # the margin is black
    # The mean over a quarter of an image is kept, but for what interpolation moves over its edge.
    quarters = inner.reshape(-1, 2, 10, 2, 10).mean(axis=(2, 4)) * (16 / 255)
    expected = digits.images.reshape(-1, 2, 4, 2, 4).mean(axis=(2, 4))
    assert np.abs(quarters - expected).max() < 1.5
    assert np.abs(quarters - expected).mean() < 0.3


def test_settings_are_chosen_without_a_private_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTQEXP_DATA", str(folder / "absent"))
    shipped = (CONFIGS / "mnist-scratch" / "tune.toml").read_text("utf-8")
    assert shipped.count("../../runs/digits28/") == 6
    (folder / "tune.toml").write_text(shipped.replace("../../runs/digits28/", ""), "utf-8")
    config = load_config(folder / "tune.toml")
    roles = assign_roles(config)
    assert (roles.units, roles.test_units) == (12933, 300)
    sources = (roles.reference, *roles.stand_ins, *roles.test)
    assert all(data.path == str(folder / "images.gz") for data in sources)
    records = open_dataset(roles.reference, fit_schema(roles.reference, loss=config.model.loss)).read(
        np.arange(13233, 13293)
    )
    assert records.inputs.shape == (60, 1, 28, 28)
    assert float(records.inputs.max()) == 1.0


@pytest.mark.parametrize("name", ["eps0.5", "eps1", "eps3", "eps8"])
def test_what_is_tuned_is_what_ships(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the values that are chosen, the target, and the public digits."""
    monkeypatch.setenv("DISTQEXP_DATA", str(tmp_path))
    tuned, shipped = (load_config(CONFIGS / "mnist-scratch" / f"{stem}.toml") for stem in ("tune", name))
    assert tuned.tune is not None
    assert shipped.mechanism.step in tuned.tune.step
    assert (tuned.model, tuned.precision, tuned.subspace) == (shipped.model, shipped.precision, shipped.subspace)
    assert (tuned.privacy.delta, tuned.privacy.units) == (shipped.privacy.delta, shipped.privacy.units)
    assert tuned.mechanism.rounds == shipped.mechanism.rounds
    assert tuned.mechanism.sampling == shipped.mechanism.sampling
