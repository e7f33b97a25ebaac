"""Labels that are words in saved datasets and texts: numbered by declaration, never by what private records hold."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from saved_datasets import save_dataset
from tokenizer_folders import WORDS, write_tokenizer

from distqexp.config import ColumnsConfig, DataConfig, config_from_tree
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.faults import Fault
from distqexp.problem.schema import Schema, fit_schema, schema_from_config

CLASSES = ("no", "yes")
LABELS = ["no", "yes", "yes", " no "] * 3
NUMBERS = [0, 1, 1, 0] * 3
ODD = ["no", "yes", None, "maybe"] * 3
TEXTS = ["the patient is well", "ill", "very ill", "well"] * 3
LISTS = [[4, 5], [6], [7, 8, 9], [5]] * 3
FORMS = ["tokens", "table", "text csv", "text parquet", "text arrow"]


def source(folder: Path, form: str, labels: list[Any], **roles: Any) -> DataConfig:
    """A source of 12 records in one of FORMS."""
    kind, _, stored = form.partition(" ")
    columns: dict[str, Any] = {"state": labels}
    if kind == "text":
        columns["note"] = TEXTS
        roles = {"features": ("note",), "length": 6} | roles
    elif kind == "tokens":
        columns["ids"] = LISTS
        roles = {"features": ("ids",), "tokens": True, "length": 3} | roles
    else:
        columns["age"] = np.arange(12.0)
    path = folder / form.replace(" ", "-")
    if stored in ("csv", "parquet"):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"texts.{stored}"
        getattr(pandas.DataFrame(columns), f"to_{stored}")(path, index=False)
    else:
        save_dataset(path, columns)
    more = {"tokenizer": str(write_tokenizer(folder / "tokenizer"))} if kind == "text" else {}
    format: Any = "text" if kind == "text" else "arrow"
    return DataConfig(format=format, path=str(path), columns=ColumnsConfig(target="state", **roles), **more)


def opened(data: DataConfig, schema: Schema, *, private: bool = False) -> Dataset:
    vocabulary = len(WORDS) if schema.tokens else None
    return open_dataset(data, dataclasses.replace(schema, classes=2, vocabulary=vocabulary), private=private)


@pytest.mark.parametrize("form", FORMS)
def test_words_become_numbers_in_the_declared_order(form: str, tmp_path: Path) -> None:
    data = source(tmp_path / "public", form, LABELS, classes=CLASSES)
    schema = fit_schema(data, loss="cross-entropy")
    assert Schema.from_tree(schema.to_tree()) == schema
    dataset = opened(data, schema)
    assert dataset.read(np.arange(12)).targets.tolist() == NUMBERS
    assert pickle.loads(pickle.dumps(dataset)).read([1, 0]).targets.tolist() == [1, 0]
    private = source(tmp_path / "private", form, ODD)  # the plan's classes are the site's
    records = opened(private, schema, private=True)
    assert records.read(np.arange(12)).present.tolist() == [True, True, False, False] * 3
    faults = records.faults(np.arange(4))
    assert faults[2] != Fault.NONE
    assert faults[3] == Fault.LABEL_OUT_OF_RANGE


@pytest.mark.parametrize("form", ["tokens", "text csv"])
def test_without_public_records_they_are_declared_too(form: str, tmp_path: Path) -> None:
    data = source(tmp_path, form, ODD, classes=CLASSES)
    schema = schema_from_config(data, loss="cross-entropy")
    targets = opened(data, schema, private=True).read([0, 1]).targets
    assert targets.tolist() == [0, 1]


@pytest.mark.parametrize("form", ["tokens", "text csv"])
def test_what_is_refused(form: str, tmp_path: Path) -> None:
    data = source(tmp_path / "a", form, ODD, classes=CLASSES)
    with pytest.raises(FileContentError, match="'state': a label is out of range"):
        opened(data, fit_schema(data, loss="cross-entropy")).read(np.arange(12))
    schema = fit_schema(source(tmp_path / "b", form, LABELS, classes=CLASSES), loss="cross-entropy")
    with pytest.raises(UsageError, match="'state' in categorical, levels, dates, booleans or classes"):
        opened(source(tmp_path / "c", form, LABELS, classes=("yes", "no")), schema)


def test_a_config_may_declare_them_and_arrays_have_none() -> None:
    columns = {"target": "y", "features": ["note"], "length": 6, "classes": ["no", "yes"]}
    text = {"format": "text", "path": "a.csv", "tokenizer": "t", "columns": columns}
    tree: dict[str, Any] = {
        "model": {"factory": "m:f", "loss": "cross-entropy"},
        "data": {"population": "p", "private": text},
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": 9},
        "mechanism": {"clip": 1.0},
    }
    assert config_from_tree(tree).data.private[0].columns.classes == CLASSES
    tree["data"]["private"] = {"format": "npz", "path": "a.npz", "columns": {"target": "y", "classes": ["no", "yes"]}}
    with pytest.raises(
        UsageError, match=r"classes: .*; expected format = csv, parquet, arrow, text or images with them"
    ):
        config_from_tree(tree)
