"""Predictions for every form of records that a run reads, without labels: what the model says is that of the training's own way to read."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas
import pytest
from image_folders import BAD, picture, write_folder
from numpy.typing import NDArray
from run_harness import Commands
from saved_datasets import save_dataset
from tokenizer_folders import WORDS, write_tokenizer

import distqexp
from distqexp import api
from distqexp.artefacts.plan import Plan
from distqexp.config import Config, config_from_tree
from distqexp.errors import DistqexpError, FileContentError, UsageError
from distqexp.live import LoadedModel
from distqexp.problem.dataset import open_dataset

ROWS = 24
NAMES = ("benign", "malignant", "unclear")
CNN = {"factory": "distqexp.problem.models:cnn", "args": {"outputs": 3}, "loss": "cross-entropy"}
BERT = {
    "factory": "distqexp.problem.huggingface:from_config",
    "args": {
        "model": "BertForSequenceClassification",
        "config": {
            "vocab_size": len(WORDS), "num_labels": 2, "pad_token_id": 3, "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 8,
        },
    },
    "loss": "cross-entropy",
}  # fmt: skip


def images(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (ROWS, 28, 28), dtype=np.uint8)


def finish(folder: Path, model: Mapping[str, Any], source: Mapping[str, Any], private: str, public: str) -> Config:
    """A finished run in folder/run, and its config; its ledger is that of the test."""
    config = config_from_tree(
        {
            "model": model,
            "data": {
                "population": "somebody",
                "public": {**source, "path": public},
                "private": {**source, "path": private},
            },
            "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": ROWS},
            "subspace": {"kind": "gaussian", "k": 5},
            "precision": {"kind": "identity"},
            "mechanism": {"clip": 0.05, "rounds": 1},
            "engine": {"kind": "serial", "micro_batch": 16},
        },
        folder,
    )
    api.fit(config, folder / "run", insecure_noise_seed=3, callback=lambda _: None)
    return config


def by_training(config: Config, model: LoadedModel, folder: Path) -> NDArray[np.float64]:
    """The logits of the private records, read with their labels as a round reads them."""
    plan = Plan.read(folder / "run" / "plan.h5")
    dataset = open_dataset(config.data.private[0], plan.schema, private=True)
    records = dataset.read(dataset.slot_map().rows)
    assert records.present.all()
    return model.network.outputs(records.inputs).double().numpy()


@pytest.fixture(scope="module")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A run on image folders whose classes have names."""
    folder = tmp_path_factory.mktemp("images")
    labels = sorted(NAMES[number % 3] for number in range(ROWS))
    for role, seed in (("public", 0), ("private", 1)):
        write_folder(folder / role, images(seed), labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
        return folder, finish(folder, CNN, {"format": "images"}, "private", "public")


def test_images_in_every_form(image_run: tuple[Path, Config], tmp_path: Path) -> None:
    folder, config = image_run
    model = distqexp.load_model(folder / "run")
    expected, pictures = by_training(config, model, folder), images(1)
    flat = tmp_path / "flat"
    flat.mkdir()
    for place, values in enumerate(pictures):
        (flat / f"{place:03d}.png").write_bytes(picture(values))
    np.save(tmp_path / "new.npy", pictures)
    np.savez(tmp_path / "new.npz", images=pictures[..., None])
    with h5py.File(tmp_path / "new.h5", "w") as file:
        file["x"] = pictures
    for form in (folder / "private", flat, *(tmp_path / f"new.{suffix}" for suffix in ("npy", "npz", "h5"))):
        np.testing.assert_array_equal(model.outputs(form), expected, err_msg=str(form))
    for form in (pictures, pictures[:, None], pictures[..., None]):
        np.testing.assert_array_equal(model.outputs(form), expected)
    assert set(model.predict(flat)) <= set(NAMES)


def test_the_command_names_images_and_classes(image_run: tuple[Path, Config], tmp_path: Path, run: Commands) -> None:
    folder, config = image_run
    model, flat = distqexp.load_model(folder / "run"), tmp_path / "flat"
    flat.mkdir()
    for place, values in enumerate(images(1)[:4]):
        (flat / f"{place}.png").write_bytes(picture(values))
    (flat / "broken.png").write_bytes(BAD["cut"])
    said = run.done("predict", folder / "run", flat, "--out", tmp_path / "out.csv").err
    assert said.endswith("1 of 5 records have no prediction: file 'broken.png': no picture that can be read\n")
    rows = list(csv.DictReader((tmp_path / "out.csv").open(newline="")))
    assert list(rows[0]) == ["file", "prediction", *(f"probability_{name}" for name in NAMES)]
    assert [row["file"] for row in rows] == [*(f"{place}.png" for place in range(4)), "broken.png"]
    logits = by_training(config, model, folder)[:4]
    assert [row["prediction"] for row in rows] == [*(NAMES[place] for place in logits.argmax(axis=1)), ""]
    (tmp_path / "names.csv").write_text("file_name\n3.png\n0.png\ngone.png\n")
    run.done("predict", folder / "run", flat, "--labels", tmp_path / "names.csv", "--out", tmp_path / "two.csv")
    two = list(csv.DictReader((tmp_path / "two.csv").open(newline="")))
    assert [row["file"] for row in two] == ["3.png", "0.png", "gone.png"]
    assert [row["prediction"] for row in two[:2]] == [rows[3]["prediction"], rows[0]["prediction"]]
    chances = [[float(row["probability_unclear"]) for row in some] for some in (two[:2], (rows[3], rows[0]))]
    np.testing.assert_allclose(*chances, rtol=1e-5)
    assert two[2]["prediction"] == ""


@pytest.mark.parametrize("format", ["hdf5", "npz", "npy", "idx"])
def test_arrays_of_bytes_without_labels(format: str, tmp_path: Path, own_ledger: Path) -> None:
    labels = np.arange(ROWS) % 3
    source: dict[str, Any] = {"format": format}
    for role, seed in (("public", 0), ("private", 1)):
        if format == "hdf5":
            with h5py.File(tmp_path / f"{role}.h5", "w") as file:
                file["scans"], file["truth"] = images(seed), labels
            source["columns"] = {"features": ["scans"], "target": "truth", "images": True}
        elif format == "npz":
            np.savez(tmp_path / f"{role}.npz", x=images(seed), y=labels)
        elif format == "npy":
            np.save(tmp_path / f"{role}-x.npy", images(seed))
            np.save(tmp_path / f"{role}-y.npy", labels)
        else:
            header = bytes([0, 0, 8, 3]) + np.array([ROWS, 28, 28], ">u4").tobytes()
            (tmp_path / f"{role}.idx").write_bytes(header + images(seed).tobytes())
            source["labels"] = str(tmp_path / "labels.idx")
            head = bytes([0, 0, 8, 1]) + np.array([ROWS], ">u4").tobytes()
            (tmp_path / "labels.idx").write_bytes(head + labels.astype(np.uint8).tobytes())
    suffix = {"hdf5": ".h5", "npz": ".npz", "npy": "-x.npy", "idx": ".idx"}[format]
    config = finish(tmp_path, CNN, source, f"private{suffix}", f"public{suffix}")
    model = distqexp.load_model(tmp_path / "run")
    expected = by_training(config, model, tmp_path)
    new = tmp_path / "new"
    new.mkdir()
    if format == "hdf5":
        with h5py.File(new / "records.h5", "w") as file:
            file["scans"] = images(1)
    elif format == "npz":
        np.savez_compressed(new / "records.npz", x=images(1))
    else:
        (new / f"records{suffix}").write_bytes((tmp_path / f"private{suffix}").read_bytes())
    (path,) = new.iterdir()
    np.testing.assert_array_equal(model.outputs(path), expected)
    api.predict(tmp_path / "run", path, tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), model.probabilities_of(expected))


def texts(seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS[4:], random.integers(1, 6))) for _ in range(ROWS)]


@pytest.mark.parametrize("stored", ["csv", "parquet", "arrow"])
def test_raw_texts_with_their_tokenizer(stored: str, tmp_path: Path, own_ledger: Path, run: Commands) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    words = ["ill" if number % 2 else "well" for number in range(ROWS)]

    def write(name: str, columns: dict[str, list[str]]) -> str:
        if stored == "arrow":
            return str(save_dataset(tmp_path / name, columns))
        path = tmp_path / f"{name}.{stored}"
        getattr(pandas.DataFrame(columns), f"to_{stored}")(path, index=False)
        return str(path)

    columns = {"target": "state", "features": ["note"], "length": 6, "classes": ["well", "ill"]}
    source = {"format": "text", "tokenizer": str(tokenizer), "columns": columns}
    private, public = (write(name, {"note": texts(seed), "state": words}) for name, seed in (("a", 1), ("b", 2)))
    config = finish(tmp_path, BERT, source, private, public)
    model = distqexp.load_model(tmp_path / "run")
    expected = by_training(config, model, tmp_path)
    new = write("new", {"note": texts(1)})
    run.done("predict", tmp_path / "run", new, "--tokenizer", tokenizer, "--out", tmp_path / "out.csv")
    said = pandas.read_csv(tmp_path / "out.csv")
    assert list(said) == ["prediction", "probability_well", "probability_ill"]
    assert said["prediction"].tolist() == [["well", "ill"][place] for place in expected.argmax(axis=1)]
    run.distqexp("predict", tmp_path / "run", new, "--out", tmp_path / "no.csv").refused(2, "--tokenizer")
    other = write_tokenizer(tmp_path / "other", words=(*WORDS, "more"))
    run.distqexp("predict", tmp_path / "run", new, "--tokenizer", other, "--out", tmp_path / "no.csv").refused(
        3, "digest"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):  # as it lies beside the weights of a pretrained folder
        (tmp_path / "run" / name).write_bytes((tokenizer / name).read_bytes())
    np.testing.assert_array_equal(distqexp.load_model(tmp_path / "run").outputs(Path(new)), expected)


def test_saved_datasets_of_tokens(tmp_path: Path, own_ledger: Path) -> None:
    def columns(seed: int) -> dict[str, Any]:
        random = np.random.default_rng(seed)
        ids = [random.integers(4, 10, random.integers(1, 7)).tolist() for _ in range(ROWS)]
        return {"input_ids": ids, "seen": [[1] * len(row) for row in ids]}

    labels = {"state": ["no" if number % 2 else "yes" for number in range(ROWS)]}
    for role, seed in (("public", 1), ("private", 2)):
        save_dataset(tmp_path / role, columns(seed) | labels)
    roles = {"target": "state", "features": ["input_ids"], "mask": "seen", "tokens": True, "length": 6}
    source = {"format": "arrow", "columns": {**roles, "classes": ["no", "yes"]}}
    config = finish(tmp_path, BERT, source, "private", "public")
    model = distqexp.load_model(tmp_path / "run")
    expected = by_training(config, model, tmp_path)
    new = save_dataset(tmp_path / "new", columns(2))
    np.testing.assert_array_equal(model.outputs(new), expected)
    assert set(model.predict(new)) <= {"no", "yes"}
    padded = np.zeros((2, ROWS, 6), dtype=np.int64)
    for place, row in enumerate(columns(2)["input_ids"]):
        padded[:, place, : len(row)] = row, [1] * len(row)
    np.savez(tmp_path / "new.npz", input_ids=padded[0], seen=padded[1])
    np.testing.assert_array_equal(model.outputs(tmp_path / "new.npz"), expected)


def worded(seed: int) -> pandas.DataFrame:
    """A table with a column of words, and labels in words."""
    random = np.random.default_rng(seed)
    return pandas.DataFrame({
        "ward": random.choice(["north", "south", "east"], ROWS),
        "age": random.normal(60, 9, ROWS).round(2),
        "died": random.choice(["no", "yes"], ROWS),
    })  # fmt: skip


@pytest.fixture(scope="module")
def worded_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A run on such tables."""
    folder = tmp_path_factory.mktemp("words")
    for role, seed in (("public", 1), ("private", 2)):
        worded(seed).to_csv(folder / f"{role}.csv", index=False)
    columns = {"target": "died", "categorical": ["ward"], "classes": ["no", "yes"]}
    model = {
        "factory": "distqexp.problem.models:logistic", "args": {"inputs": 5}, "loss": "binary-cross-entropy",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
        return folder, finish(folder, model, {"format": "csv", "columns": columns}, "private.csv", "public.csv")


def test_a_table_with_words_and_labels_in_words(worded_run: tuple[Path, Config], tmp_path: Path) -> None:
    folder, config = worded_run
    model = distqexp.load_model(folder / "run")
    expected, new = by_training(config, model, folder), worded(2).drop(columns="died")
    new.to_csv(tmp_path / "new.csv", index=False)
    new.to_csv(tmp_path / "new.csv.gz", index=False, sep=";", decimal=",")
    new.iloc[:10].to_csv(tmp_path / "part-1.csv", index=False)
    new.iloc[10:].to_csv(tmp_path / "part-2.csv", index=False)
    for path in (tmp_path / "new.csv", tmp_path / "new.csv.gz", tmp_path / "part-*.csv", folder / "private.csv"):
        np.testing.assert_allclose(model.outputs(path), expected, rtol=1e-6, err_msg=path.name)
    assert set(model.predict(tmp_path / "new.csv")) <= {"no", "yes"}


@pytest.mark.process
def test_a_frame_with_words(worded_run: tuple[Path, Config]) -> None:
    folder, config = worded_run
    model = distqexp.load_model(folder / "run")
    new = worded(2).drop(columns="died")
    np.testing.assert_allclose(model.outputs(new), by_training(config, model, folder), rtol=1e-6)


def test_what_is_refused(image_run: tuple[Path, Config], tmp_path: Path, own_ledger: Path) -> None:
    folder, _ = image_run
    model = distqexp.load_model(folder / "run")
    np.save(tmp_path / "floats.npy", images(1).astype(np.float64))
    np.save(tmp_path / "small.npy", images(1)[:, :20])
    np.savez(tmp_path / "two.npz", x=images(1), images=images(1))
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[str, type[DistqexpError], str]] = [
        ("floats.npy", FileContentError, "aren't images of bytes"),
        ("small.npy", FileContentError, r"shape \(1, 20, 28\); expected the plan's \(1, 28, 28\)"),
        ("two.npz", FileContentError, "2 arrays could be the features"),
        ("table.csv", UsageError, "trained on images in images format"),
        ("gone.csv", UsageError, "no such file or folder"),
        ("gone", UsageError, "no such file or folder"),
        ("empty", FileContentError, "no image in it"),
    ]
    for name, error, words in cases:
        with pytest.raises(error, match=words) as caught:
            model.predict(tmp_path / name)
        assert "\n" not in str(caught.value)
