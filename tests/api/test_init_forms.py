"""``distqexp init`` for public records that are no CSV: what it writes is planned and fitted as it stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
from array_files import write_arrays
from image_folders import write_folder
from run_harness import Commands
from saved_datasets import save_dataset
from tokenizer_folders import write_tokenizer

from distqexp.config import load_config

QUICK = ("--insecure-noise-seed", "1", "--set", "mechanism.rounds=1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def frame(seed: int, count: int = 80) -> pandas.DataFrame:
    random = np.random.default_rng(seed)
    dose = random.normal(size=count)
    return pandas.DataFrame({
        "patient": np.repeat([f"p{number}" for number in range(count // 2)], 2), "dose": dose,
        "ward": random.choice(["north", "south"], count), "smoker": random.random(count) < 0.5,
        "admitted": pandas.Timestamp("2024-01-01") + pandas.to_timedelta(random.integers(0, 300, count), unit="D"),
        "note": [f"seen {number} times" for number in range(count)],
        "died": (dose + random.normal(size=count) > 0).astype(int),
    })  # fmt: skip


def parquet() -> tuple[str, ...]:
    frame(1).to_parquet("public.parquet", index=False)
    frame(2).to_parquet("private.parquet", index=False)
    return ("public.parquet", "--target", "died", "--unit", "patient")


def arrow() -> tuple[str, ...]:
    for name, seed in (("public", 1), ("private", 2)):
        table = frame(seed)
        columns = {"dose": table["dose"], "ward": table["ward"], "died": table["died"]}
        save_dataset(Path(name), {key: values.tolist() for key, values in columns.items()})
    return ("public", "--target", "died")


def tokens() -> tuple[str, ...]:
    for name, seed in (("public", 1), ("private", 2)):
        random = np.random.default_rng(seed)
        lists = [random.integers(0, 9, random.integers(1, 7)).tolist() for _ in range(60)]
        columns = {"input_ids": lists, "attention_mask": [[1] * len(entry) for entry in lists]}
        save_dataset(Path(name), {**columns, "label": [int(sum(entry) % 3) for entry in lists]})
    return ("public", "--target", "label")


def arrays(format: str, images: bool) -> Callable[[], tuple[str, ...]]:
    def write() -> tuple[str, ...]:
        for name, seed in (("public", 1), ("private", 2)):
            random = np.random.default_rng(seed)
            labels = np.arange(60) % 3
            features = random.normal(size=(60, 5)) + labels[:, None]
            if images:
                features = random.integers(0, 256, (60, 4, 4)).astype(np.uint8)
            data = write_arrays(Path("made"), format, features, labels)
            for path in Path("made").iterdir():
                path.rename(path.name.replace("t", name, 1))
        return (Path(str(data.path)).name.replace("t", "public", 1),)

    return write


def folder(sizes: int, words: tuple[str, ...]) -> Callable[[], tuple[str, ...]]:
    def write() -> tuple[str, ...]:
        for name, seed in (("public", 1), ("private", 2)):
            random = np.random.default_rng(seed)
            for size in range(sizes):
                images = random.integers(0, 256, (12, 6 + size, 5)).astype(np.uint8)
                write_folder(Path(name), images, [f"{words[place % len(words)]}" for place in range(12)], f"{'.png'}")
                for path in [*Path(name).rglob("0*.png")]:
                    path.rename(path.with_name(f"image{size}-{path.name}"))
        return ("public",)

    return write


def texts(suffix: str) -> Callable[[], tuple[str, ...]]:
    def write() -> tuple[str, ...]:
        write_tokenizer(Path("tokenizer"))
        for name, seed in (("public", 1), ("private", 2)):
            random = np.random.default_rng(seed)
            states = random.integers(0, 2, 60)
            notes = [
                f"the patient is {'very ' * random.integers(0, 3)}{'ill' if state else 'well'}" for state in states
            ]
            table = pandas.DataFrame(
                {"age": random.normal(size=60), "note": notes, "urgent": np.where(states, "yes", "no")}
            )
            table.to_parquet(f"{name}.parquet", index=False) if suffix == ".parquet" else table.to_csv(
                f"{name}.csv", index=False
            )
        return (f"public{suffix}", "--target", "urgent", "--tokenizer", "tokenizer")

    return write


FORMS: dict[str, tuple[Callable[[], tuple[str, ...]], str, str, tuple[str, ...]]] = {
    "parquet": (parquet, "parquet", "binary-cross-entropy", ("6 inputs, 40 units", "for each: ward", "as days: admitted", "note: free")),
    "saved dataset": (arrow, "arrow", "binary-cross-entropy", ("1 inputs", "left out: ward: texts")),
    "saved tokens": (tokens, "arrow", "cross-entropy", ("tokens: input_ids", "3 classes")),
    "npz": (arrays("npz", False), "npz", "cross-entropy", ("60 rows, 5 inputs", "label: 3 classes")),
    "npy": (arrays("npy", False), "npy", "cross-entropy", ("60 rows, 5 inputs",)),
    "hdf5": (arrays("hdf5", False), "hdf5", "cross-entropy", ("60 rows, 5 inputs",)),
    "images in an array": (arrays("npz", True), "npz", "cross-entropy", ("16 inputs", "images: 1 x 4 x 4")),
    "image folder": (folder(1, ("benign", "malignant")), "images", "cross-entropy", ("30 inputs", "2 classes (benign, malignant)")),
    "images of two sizes": (folder(2, ("0", "1", "2")), "images", "cross-entropy", ("24 rows, 3072 inputs", "label: 3 classes")),
    "texts": (texts(".csv"), "text", "binary-cross-entropy", ("texts: note", "2 classes (no, yes)")),
    "texts in parquet": (texts(".parquet"), "text", "binary-cross-entropy", ("texts: note",)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_what_is_written_plans_and_fits_as_it_stands(name: str, run: Commands) -> None:
    write, format, loss, words = FORMS[name]
    said = run.done("init", *write()).out
    assert [word for word in words if word not in said] == [], said
    config = load_config(Path("config.toml"))
    assert (config.data.private[0].format, config.model.loss) == (format, loss)
    assert sum(line.startswith("#") for line in Path("config.toml").read_text("utf-8").splitlines()) >= 10
    assert "privacy: epsilon 1" in run.done("plan", "config.toml", "--out", "plan.h5").out
    outcome = run.distqexp("fit", "config.toml", "--out", "run", *QUICK)
    assert outcome.code == 0, outcome


def test_no_private_file_is_looked_for(run: Commands) -> None:
    words = arrays("npz", False)()
    Path("private.npz").unlink()
    run.done("init", *words, "--private", "elsewhere/ours.npz")
    assert load_config(Path("config.toml")).data.private[0].path == str(Path("elsewhere/ours.npz").resolve())


@pytest.mark.parametrize(
    ("make", "more", "words"),
    [
        (arrays("npy", False), ("--target", "y"), "has no names"),
        (folder(1, ("a", "b")), ("--unit", "patient"), "subfolders for labels"),
        (folder(1, ("a",)), (), "one subfolder, 'a'"),
        (arrays("npz", False), ("--tokenizer", "tokenizer"), "a table of texts"),
        (arrays("npz", False), ("--encoding", "cp1252"), "a CSV file"),
        (arrays("npz", False), ("--target", "z"), "'z'"),
        (lambda: (parquet()[0],), (), "--target: not given"),
        (lambda: ("nowhere",), (), "no such file or folder"),
    ],
)
def test_what_can_not_serve_is_refused_and_nothing_is_written(
    make: Callable[[], tuple[str, ...]], more: tuple[str, ...], words: str, run: Commands
) -> None:
    outcome = run.distqexp("init", *make(), *more)
    assert outcome.refused(outcome.code, words)
    assert outcome.code in (2, 3)
    assert not Path("config.toml").exists()
