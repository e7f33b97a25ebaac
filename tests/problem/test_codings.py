"""Categories, days, truth values and classes that are texts: read by rules that public records and the config give."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from distqexp.config import ColumnsConfig, DataConfig, config_from_tree, config_to_tree
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.faults import Fault
from distqexp.problem.probes import synthetic_records
from distqexp.problem.readers.codings import Coding
from distqexp.problem.schema import Schema, fit_schema, schema_from_config

ROLES = ColumnsConfig(
    target="died",
    categorical=("ward",),
    dates=(("admitted", "2024-01-01"),),
    booleans=("smoker",),
    classes=("no", "yes"),
    standardise=False,
)
FORMATS = ["csv", "parquet"]


def frame(**columns: Any) -> pd.DataFrame:
    """Public records whose levels are north and south."""
    table = pd.DataFrame({
        "ward": ["north", "south", "north", None],
        "admitted": ["2024-01-01", "2024-01-31", "2023-12-31 12:00", None],
        "smoker": ["Yes", "no", None, "TRUE"],
        "age": [1.5, 2.5, None, 4.5],
        "died": ["no", "yes", "yes", "no"],
    })  # fmt: skip
    return table.assign(**columns)


def saved(table: pd.DataFrame, path: Path, format: str, roles: ColumnsConfig = ROLES) -> DataConfig:
    if format == "csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    return DataConfig(format=format, path=str(path), columns=roles)  # type: ignore[arg-type]


def opened(data: DataConfig, public: DataConfig, private: bool = False) -> Dataset:
    return open_dataset(data, fit_schema(public, loss="binary-cross-entropy"), private=private)


def numbers(dataset: Dataset, rows: int = 4) -> list[list[float]]:
    rounded: list[list[float]] = dataset.read(np.arange(rows)).inputs.numpy().round(5).tolist()
    return rounded


@pytest.mark.parametrize("format", FORMATS)
def test_public_columns_become_numbers(tmp_path: Path, format: str) -> None:
    dataset = opened(data := saved(frame(), tmp_path / "t", format), data)
    # The features that aren't categorical in their order, then ward: north, south, any other.
    assert dataset.schema.input_shape == (6,)
    assert dataset.schema.names == ("ward", "admitted", "smoker", "age")
    assert numbers(dataset) == [
        [0, 1, 1.5, 1, 0, 0],
        [30, 0, 2.5, 0, 1, 0],
        [-0.5, 1, 2.5, 1, 0, 0],
        [0, 1, 4.5, 0, 0, 0],
    ]
    assert dataset.read(np.arange(4)).targets.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("format", FORMATS)
def test_a_level_that_was_never_seen_is_one_of_its_own(tmp_path: Path, format: str) -> None:
    public = saved(frame(), tmp_path / "public", format)
    data = saved(frame(ward=["west", "east", " north ", "NORTH"]), tmp_path / "t", format)
    assert [row[3:] for row in numbers(opened(data, public, private=True))] == [
        [0, 0, 1],
        [0, 0, 1],
        [1, 0, 0],
        [0, 0, 1],
    ]


@pytest.mark.parametrize("format", FORMATS)
def test_private_entries_that_no_rule_reads_are_as_good_as_blank(tmp_path: Path, format: str) -> None:
    public = saved(frame(), tmp_path / "public", format)
    spoiled = frame(
        admitted=["31.12.2023", "2024-01-31", "2024-01-02", "2024-01-02"],
        smoker=["yes", "perhaps", "no", "no"],
        died=["no", "no", "maybe", "yes"],
    )
    dataset = opened(saved(spoiled, tmp_path / "t", format), public, private=True)
    assert dataset.read(np.arange(4)).present.tolist() == [False, False, False, True]
    assert dataset.faults(np.arange(4)).tolist() == [
        Fault.UNREADABLE, Fault.UNREADABLE, Fault.LABEL_OUT_OF_RANGE, Fault.NONE,
    ]  # fmt: skip
    with pytest.raises(FileContentError, match=r"'admitted', 'smoker': entries are not a number.*declared"):
        opened(saved(spoiled, tmp_path / "t", format), public).read(np.arange(4))


def test_typed_parquet_columns_are_read_as_their_texts_are(tmp_path: Path) -> None:
    text = frame(ward=["1", "2", "1", None], admitted=["2024-01-01", "2024-01-31", "2023-12-31", None])
    typed = frame(
        ward=[1.0, 2.0, 1.0, None],
        admitted=[datetime.date(2024, 1, 1), datetime.date(2024, 1, 31), datetime.date(2023, 12, 31), None],
        smoker=pd.array([True, False, None, True], dtype="boolean"),
        died=pd.array(["no", "yes", "yes", "no"], dtype="category"),
    )
    public = saved(text, tmp_path / "public.csv", "csv")
    found = opened(saved(typed, tmp_path / "t.parquet", "parquet"), public, private=True)
    found.check_whole()
    assert numbers(found) == numbers(opened(public, public))
    assert found.read([0, 1]).targets.tolist() == [0, 1]


def test_declared_levels_take_the_place_of_public_ones(tmp_path: Path) -> None:
    roles = dataclasses.replace(ROLES, levels=(("ward", ("south", "east")),))
    data = saved(frame(ward=["north", "south", "east", None]), tmp_path / "t.csv", "csv", roles)
    assert [row[3:] for row in numbers(opened(data, data))] == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]]
    with pytest.raises(UsageError, match=r"'ward'.*what the plan says"):
        opened(data, saved(frame(), tmp_path / "public.csv", "csv"))


def test_without_public_records_levels_are_declared(tmp_path: Path) -> None:
    features = ("ward", "admitted", "smoker", "age")
    roles = dataclasses.replace(ROLES, features=features)
    data = saved(frame(), tmp_path / "t.csv", "csv", roles)
    with pytest.raises(UsageError, match=r"'ward'.*never come from private"):
        schema_from_config(data, loss="binary-cross-entropy")
    declared = dataclasses.replace(data, columns=dataclasses.replace(roles, levels=(("ward", ("north", "south")),)))
    schema = schema_from_config(declared, loss="binary-cross-entropy")
    dataset = open_dataset(declared, schema, private=True)
    assert numbers(dataset)[0] == [0, 1, 1.5, 1, 0, 0]
    probes = synthetic_records(schema, 50, 1, 0, 0).inputs.numpy()
    assert probes.shape == (50, 6)
    assert np.array_equal(probes[:, 3:].sum(axis=1), np.ones(50))
    assert probes[:, 3:].sum(axis=0).min() > 5


def test_schemas_and_configs_go_through_files(tmp_path: Path) -> None:
    schema = fit_schema(saved(frame(), tmp_path / "t.csv", "csv"), loss="binary-cross-entropy")
    assert Schema.from_tree(schema.to_tree()) == schema
    for spoiled in (
        [["ward", "levels", ["a", "a"]]],
        [["other", "levels", []]],
        [["ward", "days", ["x"]]],
        [["ward"]],
        3,
    ):
        with pytest.raises(FileContentError, match="schema"):
            Schema.from_tree({**schema.to_tree(), "codings": spoiled})
    tree = {
        "model": {"factory": "distqexp.problem.models:logistic", "loss": "binary-cross-entropy"},
        "data": {"population": "p", "private": {"format": "csv", "path": "t.csv", "columns": {
            "target": "died", "levels": {"ward": ["a", "b"]}, "dates": {"admitted": "2024-01-01"}, "classes": ["no", "yes"],
        }}},
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": 10}, "precision": {"kind": "identity"}, "mechanism": {"clip": 1.0},
    }  # fmt: skip
    config = config_from_tree(tree)
    assert config.data.private[0].columns.levels == (("ward", ("a", "b")),)
    assert config_from_tree(config_to_tree(config)) == config
    for columns, words in (
        ({"levels": {"ward": ["a", "a"]}}, "different texts"),
        ({"dates": {"admitted": "1.1.2024"}}, "a day such as"),
        ({"categorical": ["x"], "booleans": ["x"]}, "each in one of"),
        ({"categorical": ["died"]}, "labels have classes"),
        ({"levels": {"ward": [1]}}, "expected text"),
    ):
        tree["data"]["private"]["columns"] = {"target": "died", **columns}  # type: ignore[index]
        with pytest.raises(UsageError, match=words):
            config_from_tree(tree)
    for kind, columns, words in (
        ("hdf5", {"classes": ["no", "yes"]}, "csv, parquet, arrow, text or images"),
        ("images", {"classes": ["no", "no"]}, "different texts"),
        ("images", {"booleans": ["smoker"]}, "csv or parquet"),
    ):
        tree["data"]["private"] = {"format": kind, "path": "x", "columns": {"target": "died", **columns}}  # type: ignore[index]
        with pytest.raises(UsageError, match=words):
            config_from_tree(tree)


def test_all_columns_of_texts_are_named_at_once_with_lines_that_mend_them(tmp_path: Path) -> None:
    table = pd.concat([frame(note=["a long", "free", "text", "of words"], age=[1, 2, 3, 4])] * 3)
    table = table.assign(dose=["1"] * 11 + ["secret"])
    data = saved(table, tmp_path / "t.csv", "csv", ColumnsConfig(target="died"))
    with pytest.raises(FileContentError) as caught:
        fit_schema(data, loss="binary-cross-entropy")
    message = str(caught.value)
    assert "columns 'ward', 'admitted', 'smoker', 'note', 'dose', 'died': entries are not a number" in message
    for line in ('categorical = ["ward", "note"]', 'booleans = ["smoker"]', 'dates = { admitted = "2000-01-01" }',
                 'classes = ["no", "yes"]', "recode 'dose'"):  # fmt: skip
        assert line in message
    assert "secret" not in message
    mended = dataclasses.replace(data, columns=dataclasses.replace(ROLES, exclude=("note", "dose")))
    assert fit_schema(mended, loss="binary-cross-entropy").input_shape == (6,)


def test_ids_are_no_categories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distqexp.problem.fitted_codings.MOST_LEVELS", 1)
    data = saved(frame(age=["x", "y", "z", "u"]), tmp_path / "t.csv", "csv")
    roles = dataclasses.replace(ROLES, categorical=("ward", "age"))
    with pytest.raises(FileContentError, match="'ward', 'age' have more than 1 levels"):
        fit_schema(dataclasses.replace(data, columns=roles), loss="binary-cross-entropy")
    absent = dataclasses.replace(ROLES, categorical=("wing", "floor"))
    with pytest.raises(UsageError, match="'wing', 'floor'"):
        fit_schema(dataclasses.replace(data, columns=absent), loss="binary-cross-entropy")


@pytest.mark.parametrize(
    ("entry", "number"),
    [("T", 1), ("n", 0), (1, 1), (0.0, 0), (np.bool_(True), 1), ("2", None), ("ja", None)],
)
def test_truth_values(entry: Any, number: float | None) -> None:
    assert Coding("c", "boolean").numbers([entry]) == [number]
