"""A newcomer's first week: the configs that somebody writes with nothing set but rounds and clip, which used to ruin a model.

What else went wrong in such a week stands elsewhere: text columns told all at once in tests/problem/test_tables.py and
tests/api/test_init.py, ids without ``unit`` in tests/fit/test_table_warnings.py, a factory beside the config and ``load_config`` of a text
in tests/api/test_cli.py, an audit without matplotlib in tests/audit/test_without_plots.py; separators, encodings, packing and inch marks
in tests/problem/test_dialects.py, labels of one column in tests/fit/test_table_warnings.py, models that torch.func can't take and factories
that freeze parameters in tests/gradients/test_unusual_models.py, and wrong calls from Python in tests/live/test_wrong_calls.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from run_harness import Commands, Outcome, overrides, to_toml, write_task
from sklearn.datasets import load_breast_cancer, load_digits

PRETRAIN: dict[str, Any] = {"epochs": 100, "optimiser": "lbfgs", "learning_rate": 1.0}
NAMES = ("mean radius", "mean texture", "mean smoothness", "worst area", "mean compactness", "worst fractal dimension")


def cohort(path: Path, patients: int, shift: float, seed: int) -> None:
    """A hospital's table of one to four visits a patient, with gaps, an unbalanced label and a number to predict."""
    random = np.random.default_rng(seed)
    data = load_breast_cancer()
    values = data.data[:, [list(data.feature_names).index(name) for name in NAMES]]
    lines = [",".join(["patient_id", *(name.replace(" ", "_") for name in NAMES), "malignant", "days"])]
    for patient in range(patients):
        ill = random.random() < 0.2
        source = random.choice(np.flatnonzero(data.target == (0 if ill else 1)))
        for _ in range(random.integers(1, 5)):
            row = values[source] * (1 + 0.15 * random.normal(size=len(NAMES))) * (1 + shift * np.resize([0.1, -0.1], 6))
            entries = ["" if random.random() < 0.08 else f"{value:.5g}" for value in row]
            days = 2 + 6 * ill + 0.1 * row[0] + 1.5 * random.normal()
            lines.append(",".join([f"{path.stem}{patient}", *entries, str(int(ill)), f"{days:.1f}"]))
    path.write_text("\n".join(lines) + "\n", "utf-8")


def table_task(folder: Path, target: str, loss: str) -> Path:
    """Public, private and test tables, the last two moved a little, and a config with rounds and clip alone."""
    for name, patients, shift, seed in (("public", 300, 0.0, 1), ("patients", 600, 0.6, 2), ("test", 300, 0.6, 3)):
        cohort(folder / f"{name}.csv", patients, shift, seed)
    columns = {"target": target, "exclude": ["days" if target == "malignant" else "malignant"]}
    sources = {
        role: {"format": "csv", "path": f"{name}.csv", "unit": "patient_id", "columns": columns}
        for role, name in (("public", "public"), ("private", "patients"), ("eval", "test"))
    }
    model = {"factory": "distqexp.problem.models:logistic", "args": {"inputs": 6, "outputs": 1}, "loss": loss}
    return write_config(folder, {**model, "pretrain": PRETRAIN}, sources, units=600, epsilon=1.0)


def image_task(folder: Path, kind: str, pretrained: bool = False) -> Path:
    """Digits, the private and test ones moved by two pixels, and a network of one's own."""
    data = load_digits()
    images, labels = (data.images[:, None] / 16).astype("f4"), data.target
    for name, rows, moved in (
        ("public", slice(0, 500), 0),
        ("private", slice(500, 1300), 2),
        ("test", slice(1300, 1797), 2),
    ):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["images"], file["labels"] = np.roll(images[rows], moved, axis=3), labels[rows]
            file["patient"] = np.arange(len(labels[rows])) // 2
    columns = {"features": ["images"], "target": "labels"}
    sources = {
        role: {"format": "hdf5", "path": f"{name}.h5", "columns": columns}
        for role, name in (("public", "public"), ("private", "private"), ("eval", "test"))
    }
    sources["private"]["unit"] = "patient"
    model = {"factory": "own_networks:Residual", "args": {"kind": kind}, "loss": "cross-entropy"}
    pretrain = {} if pretrained else {"pretrain": {"epochs": 4, "learning_rate": 0.003}}
    return write_config(folder, {**model, **pretrain}, sources, units=400, epsilon=2.0)


def write_config(folder: Path, model: dict[str, Any], sources: dict[str, Any], *, units: int, epsilon: float) -> Path:
    tree = {
        "model": model,
        "data": {"population": "mine", **sources},
        "privacy": {"epsilon": epsilon, "delta": 1e-5, "units": units},
        "mechanism": {"rounds": 4, "clip_quantile": 0.8},
        "engine": {"kind": "serial"},
    }
    path = folder / "mine.toml"
    path.write_text(to_toml(tree), "utf-8")
    return path


def metrics_of(outcome: Outcome) -> tuple[dict[str, float], dict[str, float]]:
    """Before and after, from the last line, by a parser that takes no NaN."""

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    assert outcome.code == 0, outcome
    metrics = json.loads(outcome.out.splitlines()[-1], parse_constant=refuse)["metrics"]
    return metrics["before"], metrics["after"]


@pytest.mark.parametrize(
    ("target", "loss", "metric", "noise"),
    [
        ("malignant", "binary-cross-entropy", "log_loss", 0.05),
        ("days", "mean-squared-error", "mean_squared_error", 0.5),
    ],
)
def test_a_table_of_ones_own(target: str, loss: str, metric: str, noise: float, tmp_path: Path, run: Commands) -> None:
    """The regression went from 4.3 to 274,094, with exit code 0. ``noise`` is about two standard errors of the evaluation."""
    before, after = metrics_of(
        run.fit(table_task(tmp_path, target, loss), "--out", tmp_path / "run", "--insecure-noise-seed", "1", "--json")
    )
    assert after[metric] < before[metric] + noise


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_a_network_of_ones_own(kind: str, tmp_path: Path, run: Commands) -> None:
    """Accuracy went from 0.51 to 0.09, with weights of 1e8. The model that a run gave is one that another begins with."""
    task = image_task(tmp_path, kind)
    words = ("--insecure-noise-seed", "1", "--json")
    before, after = metrics_of(run.fit(task, "--out", tmp_path / "run", *words))
    assert after["log_loss"] < before["log_loss"] + 0.2
    assert after["accuracy"] > before["accuracy"] - 0.04
    task = image_task(tmp_path, kind, pretrained=True)
    more = overrides(f"model.weights={tmp_path / 'run' / 'model.pt'}", "mechanism.rounds=1", "data.population=others")
    again, _ = metrics_of(run.fit(task, "--out", tmp_path / "more", *more, *words))
    assert again["accuracy"] == pytest.approx(after["accuracy"])


def test_a_config_for_a_gpu_where_there_is_none(tmp_path: Path, run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    task = table_task(tmp_path, "malignant", "binary-cross-entropy")
    run.fit(task, "--out", tmp_path / "run", "--set", "engine.device=cuda").refused(2, "engine.device: cuda", "no GPU")


@pytest.mark.parametrize("kind", ["table", "network"])
def test_a_first_config_can_be_tuned(kind: str, tmp_path: Path, run: Commands) -> None:
    """Small public tables ended every trial with a grid that overflows; a frozen body's batch normalisation ended the rest."""
    table = kind == "table"
    task = table_task(tmp_path, "malignant", "binary-cross-entropy") if table else image_task(tmp_path, "batch")
    trainable = () if table else ("--set", 'model.trainable=["head.*"]')
    outcome = run.distqexp(
        "tune", task, "--epsilon", "1", "--out", tmp_path / "tuned", "--set", "tune.trials=2", *trainable
    )
    assert outcome.code == 0, outcome
    assert (tmp_path / "tuned" / "tuned-eps1.toml").is_file()
    assert "overflow" not in outcome.out


def test_fit_takes_a_factory_of_the_folder_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Commands, own_ledger: Path
) -> None:
    text = "from distqexp.problem.models import logistic\n\n\ndef net(inputs):\n    return logistic(inputs)\n"
    (tmp_path / "nets_of_this_folder.py").write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    task = write_task(tmp_path)
    run.done("fit", task, "--out", "run", "--set", "model.factory=nets_of_this_folder:net")
    assert Path("run/model.safetensors").is_file()
