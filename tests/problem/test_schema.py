"""The schema: fitted on public rows only, exact through JSON, applied record by record; the ICU table."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import DistqexpError, FileContentError, UsageError
from distqexp.problem.dataset import open_dataset
from distqexp.problem.schema import Schema, fit_schema, schema_from_config

MEDICAL = "CCU == 0 and CSRU == 0 and SICU == 0"
ICU = ColumnsConfig(
    target="In-hospital_death",
    exclude=("recordid", "SAPS-I", "SOFA", "Length_of_stay", "Survival"),
    missing_flag_above=0.05,
    constant=True,
)
COLUMNS = ColumnsConfig(target="y", missing_flag_above=0.2, constant=True)


def _frame() -> pd.DataFrame:
    random = np.random.default_rng(7)
    frame = pd.DataFrame(random.normal(2.0, 3.0, (60, 4)), columns=["often", "seldom", "never", "same"])
    frame["same"] = 0.1
    frame.loc[random.choice(60, 30, replace=False), "often"] = np.nan
    frame.loc[:3, "seldom"] = np.nan
    frame["nothing"] = np.nan
    frame["y"] = random.integers(0, 2, 60)
    return frame


def _save(frame: pd.DataFrame, path: Path, **more: object) -> DataConfig:
    frame.to_csv(path, index=False)
    return dataclasses.replace(DataConfig(format="csv", path=str(path), columns=COLUMNS), **more)  # type: ignore[arg-type]


def _oracle(frame: pd.DataFrame, public: pd.DataFrame, flagged: list[str], names: list[str]) -> np.ndarray:
    medians = public[names].median().fillna(0.0)
    filled = public[names].fillna(medians)
    scales = filled.std(ddof=0).where(filled.nunique() > 1, 1.0)
    columns = (frame[names].fillna(medians) - filled.mean()) / scales
    return np.column_stack([columns, frame[flagged].isna().astype(float), np.ones(len(frame))])


def test_inputs_are_those_of_a_plain_pandas_pipeline(tmp_path: Path) -> None:
    frame = _frame()
    data = _save(frame, tmp_path / "t.csv", rows=((0, 40),))
    schema = fit_schema(data, loss="binary-cross-entropy")
    names = ["often", "seldom", "never", "same", "nothing"]
    assert [schema.names[at] for at in schema.flags] == ["often", "nothing"]
    assert schema.constant
    assert schema.input_shape == (8,)
    dataset = open_dataset(dataclasses.replace(data, rows=None), schema)
    expected = _oracle(frame, frame[:40], ["often", "nothing"], names)
    np.testing.assert_allclose(dataset.read(np.arange(60)).inputs.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_nothing_but_the_selected_public_rows_enters(tmp_path: Path) -> None:
    frame = _frame()
    blank = np.zeros(60, dtype=np.bool_)
    blank[[2, 30]] = True
    np.save(tmp_path / "blank.npy", blank)
    more = {"rows": ((0, 40),), "where": "never < 5", "blank": str(tmp_path / "blank.npy")}
    schema = fit_schema(_save(frame, tmp_path / "a.csv", **more), loss="binary-cross-entropy")
    outside = (frame.index >= 40) | ~(frame["never"] < 5) | blank
    wild = frame.copy()
    wild.loc[outside, ["often", "seldom", "same"]] = 1e9
    assert 0 < outside.sum() < 60
    assert fit_schema(_save(wild, tmp_path / "b.csv", **more), loss="binary-cross-entropy") == schema


def test_infinite_public_values_do_not_spoil_the_statistics(tmp_path: Path) -> None:
    frame = _frame()
    frame.loc[5, "never"] = np.inf
    schema = fit_schema(_save(frame, tmp_path / "t.csv"), loss="binary-cross-entropy")
    assert np.isfinite([*schema.medians, *schema.means, *schema.scales]).all()


def test_extreme_values_are_cut_off_in_public_deviations(tmp_path: Path) -> None:
    frame = _frame()
    frame.loc[50, "never"], frame.loc[51, "never"], frame.loc[52, "never"] = 1e6, -1e6, np.inf
    data = _save(frame, tmp_path / "t.csv", rows=((0, 40),))
    bounded = dataclasses.replace(data, columns=dataclasses.replace(COLUMNS, winsorise_above=1.5))
    schema = fit_schema(bounded, loss="binary-cross-entropy")
    assert dataclasses.replace(schema, bound=None) == fit_schema(data, loss="binary-cross-entropy")
    names = ["often", "seldom", "never", "same", "nothing"]
    expected = _oracle(frame, frame[:40], ["often", "nothing"], names)
    expected[:, : len(names)] = np.clip(expected[:, : len(names)], -1.5, 1.5)
    records = open_dataset(dataclasses.replace(bounded, rows=None), schema).read(np.arange(60))
    assert np.flatnonzero(~records.present.numpy()).tolist() == [52]
    expected[52] = 0
    np.testing.assert_allclose(records.inputs.numpy(), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(UsageError, match="winsorise_above"):
        schema_from_config(bounded, loss="binary-cross-entropy")


def test_a_schema_survives_json_bit_for_bit(tmp_path: Path) -> None:
    schema = fit_schema(_save(_frame(), tmp_path / "t.csv"), loss="cross-entropy", classes=2)
    assert Schema.from_tree(json.loads(json.dumps(schema.to_tree(), allow_nan=False))) == schema


@pytest.mark.parametrize(
    "change",
    [
        {"names": []},
        {"names": [1]},
        {"means": [1.0]},
        {"scales": [0.0] * 5},
        {"medians": [float("nan")] * 5},
        {"medians": ["1"] * 5},
        {"flags": [9]},
        {"bound": 0.0},
        {"bound": 5},
        {"flags": [True]},
        {"shape": [-1]},
        {"shape": [2, 2]},
        {"classes": 0},
        {"image": "yes"},
        {"more": 1},
    ],
)
def test_a_damaged_schema_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    tree = fit_schema(_save(_frame(), tmp_path / "t.csv"), loss="binary-cross-entropy").to_tree()
    with pytest.raises(FileContentError, match="schema"):
        Schema.from_tree({**tree, **change})


def test_without_public_data_the_config_alone_decides(tmp_path: Path) -> None:
    data = _save(_frame(), tmp_path / "t.csv")
    with pytest.raises(UsageError, match="features"):
        schema_from_config(data, loss="binary-cross-entropy")
    roles = ColumnsConfig(target="y", features=("seldom", "never"), constant=True)
    data = dataclasses.replace(data, columns=roles)
    schema = schema_from_config(dataclasses.replace(data, path=None), loss="binary-cross-entropy")
    expected = np.column_stack([_frame()[["seldom", "never"]].fillna(0.0), np.ones(60)])
    np.testing.assert_array_equal(
        open_dataset(data, schema).read(np.arange(60)).inputs.numpy(), expected.astype(np.float32)
    )
    assert schema_from_config(DataConfig(format="idx"), loss="cross-entropy").input_shape is None


def test_no_public_record_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DistqexpError, match="no record"):
        fit_schema(_save(_frame(), tmp_path / "t.csv", where="same > 1"), loss="binary-cross-entropy")


@pytest.fixture
def icu() -> Path:
    folder = os.environ.get("DISTQEXP_DATA")
    if not folder:
        pytest.skip("DISTQEXP_DATA is unset: no ICU tables")
    return Path(folder) / "icu2012"


@pytest.mark.parametrize("where", [None, MEDICAL])
def test_the_icu_table_has_186_columns(icu: Path, where: str | None) -> None:
    data = DataConfig(format="csv", path=str(icu / "set-a.csv.gz"), columns=ICU, where=where)
    schema = fit_schema(data, loss="binary-cross-entropy")
    assert len(schema.names) == 114
    assert len(schema.flags) == 71
    assert schema.input_shape == (186,)
    private = open_dataset(
        dataclasses.replace(data, path=str(icu / "set-b.csv.gz"), where=None, rows=((0, 3000),)), schema
    )
    records = private.read(private.slot_map().rows)
    assert records.present.all()
    public, frame = pd.read_csv(icu / "set-a.csv.gz"), pd.read_csv(icu / "set-b.csv.gz")
    public = public.query(where) if where else public
    names = list(schema.names)
    flagged = [name for name in names if public[name].isna().mean() > 0.05]
    np.testing.assert_allclose(
        records.inputs.numpy(), _oracle(frame[:3000], public, flagged, names), rtol=1e-5, atol=1e-5
    )
    assert records.targets.tolist() == frame["In-hospital_death"][:3000].tolist()
