"""Predictions from a model's folder: by the command, by ``load_model``, for every form of records, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
import stat
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas
import pytest
import torch
from live_records import EVALUATION, PUBLIC, records
from run_harness import FEATURES, Commands, table_source, table_tree, write_task

import distqexp
from distqexp.api import fit as run_config
from distqexp.api import load_config
from distqexp.artefacts.card import ModelCard
from distqexp.config import config_from_tree
from distqexp.errors import FileContentError, UsageError
from distqexp.live.predictor import Predictor
from distqexp.problem.network import Network


@pytest.fixture(scope="module")
def table_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on CSV tables, with its tables beside it."""
    folder = tmp_path_factory.mktemp("table")
    config = load_config(write_task(folder, table_tree(data={"eval": table_source("eval.csv")})))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
        assert run_config(config, folder / "run", callback=lambda _: None) is not None
    return folder


def expected(run: Path, table: pandas.DataFrame) -> Any:
    """The logits by hand: moments and medians of the public table, weights of the file."""
    public = pandas.read_csv(run / "public.csv")[list(FEATURES)]
    middle = public.median()
    public = public.fillna(middle)
    values = (table[list(FEATURES)].fillna(middle) - public.mean()) / public.std(ddof=0)
    state = torch.load(run / "run" / "model.pt", weights_only=True)
    return values.to_numpy() @ state["1.weight"].double().numpy().T + state["1.bias"].double().numpy()


def test_the_command_predicts_for_a_table_without_labels(table_run: Path, tmp_path: Path, run: Commands) -> None:
    table = pandas.read_csv(table_run / "eval.csv")
    table.drop(columns=["died", "patient"]).assign(extra=1.0).to_csv(tmp_path / "new.csv", index=False)
    said = run.done("predict", table_run / "run", tmp_path / "new.csv", "--out", tmp_path / "out.csv")
    assert said.out.splitlines() == [f"{tmp_path / 'out.csv'}: a row for each record, as private as the records"]
    assert said.err == ""
    assert stat.S_IMODE((tmp_path / "out.csv").stat().st_mode) == 0o600
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    logits = expected(table_run, table)[:, 0]
    assert list(rows[0]) == ["prediction", "probability_0", "probability_1"]
    assert [int(row["prediction"]) for row in rows] == (logits > 0).astype(int).tolist()
    chances = np.array([float(row["probability_1"]) for row in rows])
    np.testing.assert_allclose(chances, 1 / (1 + np.exp(-logits)), rtol=1e-4)


def test_the_command_says_which_records_have_no_prediction(table_run: Path, tmp_path: Path, run: Commands) -> None:
    """Row numbers and the column at fault; a file of blanks alone isn't kept."""
    table = pandas.read_csv(table_run / "eval.csv")[list(FEATURES)].astype(object)
    count = len(table)
    table.loc[1, "dose"], table.loc[4, "rate"] = "much", "inf"
    table.to_csv(tmp_path / "new.csv", index=False)
    said = run.done("predict", table_run / "run", tmp_path / "new.csv", "--out", tmp_path / "out.csv")
    why = "has no number that can be read, or one that is infinite"
    assert said.err == (
        f"distqexp: warning: 2 of {count} records have no prediction: row 2: column 'dose' {why}; row 5: column 'rate' {why}\n"
    )
    blank = [place for place, line in enumerate((tmp_path / "out.csv").read_text().splitlines()[1:]) if line == ",,"]
    assert blank == [1, 4]
    table.assign(age="old").to_csv(tmp_path / "words.csv", index=False)
    arguments = ("predict", table_run / "run", tmp_path / "words.csv", "--out", tmp_path / "none.csv")
    words = ("no record has a prediction (rows 1, 2, 3, 4, 5 and", "column 'age'", "decimal sign '.'")
    run.distqexp(*arguments).refused(3, *words)
    assert not (tmp_path / "none.csv").exists()


def test_arrays_frames_and_files_of_other_formats_agree(table_run: Path, tmp_path: Path) -> None:
    model = distqexp.load_model(table_run / "run")
    table = pandas.read_csv(table_run / "eval.csv")
    whole = model.outputs(table_run / "eval.csv")
    np.testing.assert_array_equal(model.outputs(table[list(FEATURES)].to_numpy()), whole)
    table.to_parquet(tmp_path / "eval.parquet")
    np.testing.assert_array_equal(model.outputs(tmp_path / "eval.parquet"), whole)
    np.save(tmp_path / "eval.npy", table[list(FEATURES)].to_numpy())
    np.testing.assert_array_equal(model.outputs_of_file(tmp_path / "eval.npy"), whole)
    distqexp.api.predict(table_run / "run", tmp_path / "eval.npy", tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), model.probabilities_of(whole))
    assert "differentially private" in repr(model)
    assert model.predict(table[list(FEATURES)].to_numpy().tolist()).dtype == np.int64


def test_a_record_that_the_model_cannot_take_has_no_prediction(table_run: Path, tmp_path: Path) -> None:
    lines = (table_run / "eval.csv").read_text().splitlines()
    header = lines[0].split(",")
    row = lines[2].split(",")
    row[header.index("age")] = "inf"
    (tmp_path / "odd.csv").write_text("\n".join([lines[0], lines[1], ",".join(row)]) + "\n")
    distqexp.api.predict(table_run / "run", tmp_path / "odd.csv", tmp_path / "out.csv")
    written = (tmp_path / "out.csv").read_text().splitlines()
    assert written[2] == ",,"
    assert written[1].split(",")[0] in ("0", "1")


def test_what_is_refused(table_run: Path, tmp_path: Path, run: Commands) -> None:
    eval_file = table_run / "eval.csv"
    for arguments, code, word in (
        ((table_run, eval_file, "--out", tmp_path / "a.csv"), 2, "no model.json"),
        ((table_run / "run", eval_file, "--out", tmp_path / "a.txt"), 2, "expected .csv or .npy"),
        ((table_run / "run", tmp_path / "gone.csv", "--out", tmp_path / "a.csv"), 2, "gone.csv"),
        ((table_run / "run", tmp_path / "gone.npy", "--out", tmp_path / "a.csv"), 2, "gone.npy"),
        ((table_run / "run", eval_file, "--out", eval_file), 2, "nothing is overwritten"),
    ):
        run.distqexp("predict", *arguments).refused(code, word)
    (tmp_path / "short.csv").write_text("age,dose\n1,2\n")
    run.distqexp("predict", table_run / "run", tmp_path / "short.csv", "--out", tmp_path / "a.csv").refused(3, "'rate'")
    (tmp_path / "text.npy").write_text("no array")
    run.distqexp("predict", table_run / "run", tmp_path / "text.npy", "--out", tmp_path / "a.csv").refused(3, ".npy")
    assert not (tmp_path / "a.csv").exists()
    model = distqexp.load_model(table_run / "run")
    with pytest.raises(UsageError, match=r"shape \(2,\)"):
        model.predict(np.zeros((3, 2)))
    with pytest.raises(UsageError, match="'rate'"):
        model.predict(pandas.DataFrame({"age": [1.0], "dose": [1.0]}))


def test_a_folder_from_elsewhere_runs_no_code_of_its_own(table_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "model.json", "certificate.json"):
        shutil.copy(table_run / "run" / name, folder)
    card = json.loads((folder / "model.json").read_text())
    card["model"]["factory"] = "os:system"
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(FileContentError, match="not built in"):
        distqexp.load_model(folder)
    assert distqexp.load_model(folder, model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 1)))
    with pytest.raises(FileContentError, match=r"model\.safetensors"):
        distqexp.load_model(folder, model=torch.nn.Linear(3, 1))
    for text in ("{}", "[1]", "no json", json.dumps({**card, "schema": {}})):
        (folder / "model.json").write_text(text)
        with pytest.raises(FileContentError, match=r"model\.json|schema"):
            distqexp.load_model(folder)


def test_an_exported_folder_predicts_like_the_run(
    table_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTQEXP_LEDGER", str(table_run / "ledger.sqlite"))
    out = table_run / "run"
    distqexp.api.export(out / "plan.h5", sorted(out.glob("release-*.h5")), tmp_path / "model")
    assert (tmp_path / "model" / "model.json").read_bytes() == (out / "model.json").read_bytes()
    one, other = distqexp.load_model(out), distqexp.load_model(tmp_path / "model")
    np.testing.assert_array_equal(one.outputs(table_run / "eval.csv"), other.outputs(table_run / "eval.csv"))


def test_arrays_in_a_file_by_their_names(tmp_path: Path) -> None:
    for name, (features, labels) in (("public", PUBLIC), ("private", records(4, 100))):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["x"], file["y"] = features, labels
    source = {"format": "hdf5", "columns": {"features": ["x"], "target": "y", "standardise": False}}
    tree = table_tree(
        data={"public": source | {"path": "public.h5"}, "private": [source | {"path": "private.h5"}]},
        model={
            "factory": "distqexp.problem.models:logistic",
            "args": {"inputs": 4, "outputs": 2},
            "loss": "cross-entropy",
        },
    )
    tree["model"].pop("pretrain", None)
    assert run_config(config_from_tree(tree, tmp_path), tmp_path / "run", callback=lambda _: None) is not None
    with h5py.File(tmp_path / "new.h5", "w") as file:
        file["x"] = EVALUATION[0]
    model = distqexp.load_model(tmp_path / "run")
    np.testing.assert_array_equal(model.predict(tmp_path / "new.h5"), model.predict(EVALUATION[0]))
    again = Predictor(Network(model.model), ModelCard.of_tree(model.card.tree()))
    np.testing.assert_array_equal(again.predict(EVALUATION[0]), model.predict(EVALUATION[0]))
