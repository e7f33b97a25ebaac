"""ICU stays of MIMIC-IV and MEDS folders: the same rows as pandas computes, whatever the form, the order and the dirt."""

from __future__ import annotations

import gzip
import os
import pickle
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from clinical_folders import UNITS, clinical_tables, write_folder, write_meds
from clinical_oracle import stays_with_pandas

from distqexp.cli import run
from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.readers.clinical.catalogue import COLUMNS, FEATURES, LABELS, TYPICAL, VARIABLES, definition
from distqexp.problem.readers.clinical.meds import read_meds
from distqexp.problem.readers.clinical.mimic import read_mimic
from distqexp.problem.readers.clinical.stored import read_stays
from distqexp.problem.readers.clinical.table import StayTable
from distqexp.problem.schema import Schema, fit_schema, schema_from_config

NUMBERS = (*LABELS, *FEATURES, "values")


def require_equal(table: StayTable, expected: pd.DataFrame) -> None:
    """Every number of every stay is what pandas computes, up to the rounding of sums."""
    for name in ("subject_id", "hadm_id", "stay_id"):
        assert table.ids[name].tolist() == expected[name].tolist()
    for name in NUMBERS:
        np.testing.assert_allclose(table.column(name), expected[name].to_numpy(float), rtol=1e-12, err_msg=name)


def require_same(table: StayTable, other: StayTable) -> None:
    """Two tables hold the same, to the last bit."""
    for name in (*NUMBERS, "stay_number"):
        np.testing.assert_array_equal(table.column(name), other.column(name), err_msg=name)
    assert (table.units, table.dirt) == (other.units, other.dirt)


def test_demo() -> None:
    if "DISTQEXP_DATA" not in os.environ:
        pytest.skip("DISTQEXP_DATA isn't set: the demo of MIMIC-IV lies there")
    folder = Path(os.environ["DISTQEXP_DATA"]) / "mimic-iv-demo"
    files = {file.name.split(".")[0]: file for file in folder.rglob("*.csv.gz")}
    names = ("patients", "admissions", "icustays", "chartevents", "labevents")
    table = read_mimic(folder)
    assert (len(table), table.numbers["in_hospital_mortality"].sum()) == (140, 20)
    require_equal(table, stays_with_pandas({name: pd.read_csv(files[name], low_memory=False) for name in names}))
    assert np.isfinite(table.numbers["heart_rate_mean"]).all()
    require_same(table, read_mimic(folder, run=3000))  # sorted in many pieces, which wait in a file


def _other_columns(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Columns as another version has them: more, fewer and in another order; numbers as another program writes them."""
    others = {name: table[table.columns[::-1]].assign(caregiver_id=7) for name, table in tables.items()}
    others["chartevents"] = others["chartevents"].drop(columns=["storetime", "value"]).astype({"stay_id": float})
    others["icustays"] = others["icustays"].drop(columns="los")
    return others


def test_forms_and_versions(tmp_path: Path) -> None:
    tables = clinical_tables()
    expected = stays_with_pandas(tables)
    assert (
        expected["in_hospital_mortality"].nunique()
        == expected["long_stay"].nunique()
        == expected["icu_mortality"].nunique()
        == 2
    )
    assert (expected["values"] > 20).all()
    shares: list[float] = []
    first = read_mimic(write_folder(tables, tmp_path / "plain", "csv"), shares.append)
    require_equal(first, expected)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    shuffled = {
        name: table if name == "icustays" else table.sample(frac=1, random_state=1) for name, table in tables.items()
    }
    require_same(first, read_mimic(write_folder(shuffled, tmp_path / "packed", "csv.gz"), run=500))
    require_same(first, read_mimic(write_folder(_other_columns(tables), tmp_path / "columns", "csv")))
    require_same(first, read_mimic(write_folder(_other_columns(shuffled), tmp_path / "parquet", "parquet"), run=500))
    assert first.units["first_careunit"] == tables["icustays"]["first_careunit"].tolist()
    seconds = tables["icustays"].groupby("subject_id").cumcount() + 1
    assert first.numbers["stay_number"].tolist() == seconds.tolist()


def test_meds(tmp_path: Path) -> None:
    """Patients with one stay have the same row both ways: events of others may belong to either stay."""
    tables = clinical_tables()
    mimic = read_mimic(write_folder(tables, tmp_path / "mimic", "csv"))
    meds = read_meds(write_meds(tables, tmp_path / "meds"))
    assert meds.ids["subject_id"].tolist() == sorted(mimic.ids["subject_id"])
    single = [
        row for row, subject in enumerate(mimic.ids["subject_id"]) if (mimic.ids["subject_id"] == subject).sum() == 1
    ]
    same = [int(np.flatnonzero(meds.ids["subject_id"] == mimic.ids["subject_id"][row])[0]) for row in single]
    assert len(single) > 15
    for name in NUMBERS:
        np.testing.assert_array_equal(meds.column(name)[same], mimic.column(name)[single], err_msg=name)
    assert [meds.units["last_careunit"][row] for row in same] == [mimic.units["last_careunit"][row] for row in single]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileContentError, match="no Parquet file below data"):
        read_meds(tmp_path / "empty")


BASE = (10_001, 20_000, 30_000)
"""The first stay's patient, admission and id."""


def _chart(tables: dict[str, pd.DataFrame], *rows: tuple[object, ...]) -> dict[str, pd.DataFrame]:
    """Return the tables with no charts but these: hours since the first stay's beginning, itemid and value."""
    begin = tables["icustays"].intime[0]
    charts = pd.DataFrame(
        [(*BASE, begin + pd.Timedelta(hours=float(str(hours))), item, value) for hours, item, value in rows],
        columns=["subject_id", "hadm_id", "stay_id", "charttime", "itemid", "valuenum"],
    )  # fmt: skip
    return {**tables, "chartevents": charts}


def test_values(tmp_path: Path) -> None:
    tables = _chart(
        clinical_tables(4),
        (-6, 220045, 60), (24, 220045, 90), (24.1, 220045, 200), (-6.1, 220045, 20),  # both ends of the window belong to it
        (1, 220179, 100), (1, 220050, 120), (2, 220179, 130),  # two items at one time are averaged first
        (3, 220277, 97), (3, 220277, 97), (3, 220277, 91),  # a copy counts once
        (1, 223761, 98.6), (2, 223762, 98.6), (3, 223762, 38), (4, 223761, 38), (5, 223762, 20),  # by size; 20 is out of range
        (1, 220739, "___"), (1, 220739, ""), (2, 220739, "4"),  # blanks are missing; ___ is no number
    )  # fmt: skip
    table = read_mimic(write_folder(tables, tmp_path, "csv"))

    def found(name: str) -> list[float]:
        return [float(table.numbers[f"{name}_{statistic}"][0]) for statistic in ("min", "max", "mean")]

    assert found("heart_rate") == [60, 90, 75]
    assert found("systolic_pressure") == [110, 130, 120]
    assert found("oxygen_saturation") == [94, 94, 94]
    assert found("temperature") == pytest.approx([37, 38, 37.5])
    assert found("coma_scale_eyes") == [4, 4, 4]
    assert np.isnan(found("mean_pressure")).all()
    assert table.dirt["temperatures in the other unit than their itemid's: taken by their size"] == 2
    assert table.dirt["values that stand twice for one item and time: counted once"] == 1
    assert table.dirt["values of temperature outside 25 to 45 degrees Celsius: left out"] == 1
    assert table.dirt["values that are no numbers: left out"] == 1
    assert table.dirt["stays without charts in their window: vitals are missing"] == 3


def _dirty(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the tables with a fault in each of the first stays, and rows that belong to nobody."""
    stays, visits, people = (tables[name].astype(object) for name in ("icustays", "admissions", "patients"))
    visits.loc[0, "deathtime"] = stays.intime[0] - pd.Timedelta(days=2)
    stays.loc[1, "outtime"] = stays.intime[1] - pd.Timedelta(hours=1)
    stays.loc[2, "outtime"] = "0000-00-00"
    stays.loc[4, "intime"] = ""
    visits.loc[5, "dischtime"] = visits.admittime[5] - pd.Timedelta(hours=1)
    visits.loc[6, "admittime"] = stays.intime[6] + pd.Timedelta(hours=1)
    stays.loc[8, "subject_id"] = "?"
    people.loc[people.subject_id == stays.subject_id[9], "anchor_age"] = 900
    stays = pd.concat([stays, stays.iloc[[10]]])
    charts, labs = tables["chartevents"].astype(object), tables["labevents"].astype(object)
    charts = charts[charts.stay_id != stays.stay_id.iloc[12]]
    wanted = charts[charts.itemid == 220045]
    strangers = wanted.iloc[:3].assign(stay_id=[39_999, "x", stays.stay_id.iloc[20]])
    labs = pd.concat([labs, labs.iloc[:2].assign(subject_id=["", 1.5]), labs.iloc[:1].assign(charttime="yesterday")])
    return {
        "icustays": stays,
        "admissions": visits,
        "patients": people,
        "chartevents": pd.concat([strangers, charts]),
        "labevents": labs,
    }


def test_dirt(tmp_path: Path) -> None:
    tables = clinical_tables()
    clean = read_mimic(write_folder(tables, tmp_path / "clean", "csv"))
    folder = write_folder(_dirty(tables), tmp_path / "dirty", "csv")
    with (folder / "icu" / "chartevents.csv").open("ab") as file:
        file.write(b"10001,20000\n10001,20000,30000,\xff,\xff,220045,\xff,\xff\n")
    table = read_mimic(folder)
    charts = tables["chartevents"]
    lost = int(
        (charts.itemid[charts.stay_id.isin([30_004, 30_008])] != 227_000).sum()
    )  # of stays without a time or a patient
    values = {
        words: count
        for words, count in table.dirt.items()
        if not words.startswith(("values of", "stays whose patient died"))
    }
    assert values == {
        "rows of icustays that name a stay again: the first one counts": 1,
        "stays without a patient's entry: no age, no sex": 1,
        "stays without an admission's entry: no label of deaths": 1,
        "chart rows of no stay: left out": 3 + lost,
        "lines of chartevents that are no records of its width: left out": 1,
        "stays that begin after the patient's death: they have no label": 1,
        "stays that end before they begin: no length, and no death in the unit": 1,
        "stays whose admission ends before it begins: nothing depends on it": 1,
        "stays that begin before their admission: nothing depends on it": 1,
        "stays without a time of beginning: no values": 1,
        "stays without a time of ending: no length, and no death in the unit": 1,
        "stays whose patient or stay has no legible id: no values": 1,
        "ages that can't be: they are missing": int((clean.ids["subject_id"] == clean.ids["subject_id"][9]).sum()),
        "stays without charts in their window: vitals are missing": 3,
    }
    labels = {name: table.numbers[name] for name in LABELS}
    assert np.isnan([labels[name][0] for name in LABELS]).all()
    assert np.isnan([labels[name][row] for name in LABELS[1:] for row in (1, 2, 4)]).all()
    assert not np.isnan(labels["in_hospital_mortality"][[1, 2, 4, 5, 6]]).any()
    # No fault of one patient changes a value of another.
    faulty = set(clean.ids["subject_id"][[0, 1, 2, 4, 5, 6, 8, 9, 12]].tolist())
    others = [row for row, subject in enumerate(clean.ids["subject_id"].tolist()) if subject not in faulty]
    assert len(others) > 20
    for name in NUMBERS:
        np.testing.assert_array_equal(table.column(name)[others], clean.column(name)[others], err_msg=name)


def test_refusals(tmp_path: Path) -> None:
    folder = write_folder(clinical_tables(4), tmp_path / "m", "csv")
    charts = folder / "icu" / "chartevents.csv"
    text = charts.read_text()
    charts.write_text(text.replace("valuenum", "valuation", 1))
    with pytest.raises(FileContentError, match=r"no column 'valuenum'; expected"):
        read_mimic(folder)
    charts.write_text(text)
    (folder / "icu" / "chartevents.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(FileContentError, match=r"is there as 'icu/chartevents\.csv', 'icu/chartevents\.csv\.gz'"):
        read_mimic(folder)
    charts.unlink()
    with pytest.raises(FileContentError, match=r"chartevents.csv.gz: not whole, or not CSV"):
        read_mimic(folder)
    packed = gzip.compress(text.encode())
    (folder / "icu" / "chartevents.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(FileContentError, match=r"chartevents.csv.gz: not whole, or not CSV"):
        read_mimic(folder)
    (folder / "icu" / "chartevents.csv.gz").unlink()
    with pytest.raises(FileContentError, match=r"no chartevents\.csv, \.csv\.gz or \.parquet"):
        read_mimic(folder)


def test_empty_tables(tmp_path: Path) -> None:
    tables = clinical_tables(4)
    values = {name: table.iloc[:0] if name.endswith("events") else table for name, table in tables.items()}
    table = read_mimic(write_folder(values, tmp_path / "values", "csv"))
    assert table.dirt == {"stays without charts in their window: vitals are missing": 4}
    nobody = {name: table.iloc[:0] for name, table in tables.items()}
    assert len(read_mimic(write_folder(nobody, tmp_path / "nobody", "csv.gz"))) == 0
    # Parts of a packed file follow each other, and Parquet has its own types of numbers and times.
    require_same(
        read_mimic(_others(tables, tmp_path / "others")), read_mimic(write_folder(tables, tmp_path / "m", "csv"))
    )


def _others(tables: dict[str, pd.DataFrame], folder: Path) -> Path:
    charts, visits = tables["chartevents"], tables["admissions"]
    others = {
        **tables,
        "admissions": visits.astype({"hospital_expire_flag": bool}),
        "chartevents": charts.assign(
            charttime=charts.charttime.dt.tz_localize("UTC"), itemid=charts.itemid.astype(str)
        ),
    }
    write_folder(others, folder, "parquet")
    labs = tables["labevents"].to_csv(index=False).encode()
    middle = labs.index(b"\n", len(labs) // 2) + 1
    (folder / "hosp" / "labevents.parquet").unlink()
    (folder / "hosp" / "labevents.csv.gz").write_bytes(gzip.compress(labs[:middle]) + gzip.compress(labs[middle:]))
    return folder


def _source(path: Path, **changes: object) -> DataConfig:
    columns = ColumnsConfig(target="in_hospital_mortality")
    return replace(DataConfig(format="mimic-iv", path=str(path), unit="subject_id", columns=columns), **changes)  # type: ignore[arg-type]


def _open(data: DataConfig) -> Dataset:
    return open_dataset(data, schema_from_config(data, loss="binary-cross-entropy"), private=True)


def test_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = _dirty(clinical_tables())
    folder = write_folder(tables, tmp_path / "m", "csv")
    table = read_mimic(folder)
    dataset = _open(_source(folder))
    assert dataset.schema.names == FEATURES
    assert dataset.schema.definition == definition()
    assert Schema.from_tree(dataset.schema.to_tree()) == dataset.schema
    records = dataset.read(np.arange(len(table)))
    label = table.numbers["in_hospital_mortality"]
    assert records.present.tolist() == (~np.isnan(label)).tolist()  # a stay without a label contributes nothing
    raw = np.stack([table.numbers[name] for name in FEATURES], axis=1)
    expected = (np.where(np.isnan(raw), TYPICAL, raw) - TYPICAL) / np.array(dataset.schema.scales)
    np.testing.assert_allclose(records.inputs[records.present].numpy(), expected[~np.isnan(label)].astype(np.float32))
    slots = dataset.slot_map()
    assert len(slots.rows) == len(table)
    assert (slots.rows == -1).sum() == 1
    unit = _open(_source(folder, where=f"first_careunit == '{UNITS[1]}' and stay_number == 1")).slot_map()
    first = (table.numbers["stay_number"] == 1) & (np.array(table.units["first_careunit"]) == UNITS[1])
    assert sorted(unit.rows[unit.rows >= 0].tolist()) == np.flatnonzero(first & (table.ids["subject_id"] >= 0)).tolist()

    assert run(["stays", str(folder), "--out", str(tmp_path / "stays.parquet")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("PRIVATE")
    assert "dirt: 1 stays that begin after the patient's death" in printed
    assert stat.S_IMODE((tmp_path / "stays.parquet").stat().st_mode) == 0o600
    require_same(read_stays(tmp_path / "stays.parquet"), table)
    stored = pickle.loads(pickle.dumps(_open(_source(tmp_path / "stays.parquet"))))
    assert (stored.read(np.arange(len(table))).inputs == records.inputs).all()
    assert stored.slot_map().unit.tolist() == slots.unit.tolist()
    assert run(["stays", str(folder), "--out", str(tmp_path / "stays.parquet")]) == 2  # nothing is overwritten
    pd.DataFrame({name: [1.0] for name in COLUMNS}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(FileContentError, match="another definition"):
        _open(_source(tmp_path / "other.parquet"))


def test_schema(tmp_path: Path) -> None:
    """Figures come from public stays where there are some, and sites with another definition are refused."""
    folder = write_folder(clinical_tables(), tmp_path / "m", "csv")
    public = _source(
        folder, unit=None, columns=ColumnsConfig(target="stay_days", exclude=("age",), missing_flag_above=0.2)
    )
    schema = fit_schema(public, loss="mean-squared-error")
    table = read_mimic(folder)
    assert schema.names == FEATURES[1:]
    assert schema.medians[1] == np.nanmedian(table.numbers["heart_rate_min"])
    with pytest.raises(FileContentError, match="another definition than the plan's"):
        open_dataset(public, replace(schema, definition="{}"))
    with pytest.raises(UsageError, match=r"columns.target: 'age'; expected in_hospital_mortality"):
        _open(_source(folder, columns=ColumnsConfig(target="age")))
    with pytest.raises(UsageError, match=r"columns.features: 'stay_days'; expected features of an ICU stay"):
        _open(_source(folder, columns=ColumnsConfig(target="long_stay", features=("stay_days",))))


def test_catalogue() -> None:
    itemids = [itemid for variable in VARIABLES for itemid in variable.itemids]
    assert len(set(itemids)) == len(itemids)
    assert all(variable.lowest < variable.typical < variable.highest and variable.spread > 0 for variable in VARIABLES)
    assert len(FEATURES) == 2 + 3 * len(VARIABLES) == len(TYPICAL)
    text = (Path(__file__).parents[2] / "docs" / "clinical.md").read_text()
    for variable in VARIABLES:
        items, plausible = (
            ", ".join(map(str, variable.itemids)),
            f"{variable.lowest:g} to {variable.highest:g} {variable.unit}",
        )
        row = f"| {variable.name} | {variable.source} | {items} | {plausible} | {variable.typical:g}, {variable.spread:g} |"
        assert row in text
