"""CSV and Parquet: parsing, roles, refusals, units, filters."""

from __future__ import annotations

import dataclasses
import gzip
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import DistqexpError, FileContentError, UsageError
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.readers.bytes import ByteSource
from distqexp.problem.readers.lines import index_lines
from distqexp.problem.schema import fit_schema

COLUMNS = ColumnsConfig(target="y", exclude=("note", "site"), standardise=False)


def _frame(count: int = 40) -> pd.DataFrame:
    random = np.random.default_rng(4)
    frame = pd.DataFrame(random.normal(size=(count, 3)), columns=["a", "b", "c"])
    frame.loc[::5, "b"] = np.nan
    frame["y"] = random.integers(0, 2, count)
    frame["patient"] = [f"p{code}" for code in random.integers(0, 9, count)]
    frame["site"] = [["north", "south, east", 'the "old" one\nwing'][code] for code in random.integers(0, 3, count)]
    frame["note"] = "free text"
    return frame


def _save(frame: pd.DataFrame, folder: Path, format: str) -> DataConfig:
    if format == "parquet":
        frame.to_parquet(folder / "t.parquet", row_group_size=7)
        return DataConfig(format="parquet", path=str(folder / "t.parquet"), columns=COLUMNS, unit="patient")
    path = folder / ("t.csv.gz" if format == "csv.gz" else "t.csv")
    frame.to_csv(path, index=False, lineterminator="\r\n" if format == "csv-dos" else "\n")
    return DataConfig(format="csv", path=str(path), columns=COLUMNS, unit="patient")


def _open(data: DataConfig, public: DataConfig | None = None, loss: str = "binary-cross-entropy") -> Dataset:
    return open_dataset(data, fit_schema(public or data, loss=loss))


FORMATS = ["csv", "csv-dos", "csv.gz", "parquet"]


@pytest.mark.parametrize("format", FORMATS)
def test_rows_are_pandas_rows_whatever_the_batch(tmp_path: Path, format: str) -> None:
    frame = _frame()
    dataset = _open(_save(frame, tmp_path, format))
    assert dataset.schema.names == ("a", "b", "c")
    rows = [39, 0, 1, 2, 20, 7, 0]
    records = dataset.read(rows)
    expected = frame[["a", "b", "c"]].fillna(frame[["a", "b", "c"]].median()).to_numpy()[rows]
    np.testing.assert_array_equal(records.inputs.numpy(), expected.astype(np.float32))
    assert records.targets.dtype == torch.float32
    assert records.targets.tolist() == frame["y"][rows].tolist()
    for place, row in enumerate(rows):
        assert torch.equal(dataset.read([row]).inputs[0], records.inputs[place])
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).read(rows).inputs, records.inputs)
    assert dataset.read([]).inputs.shape == (0, 3)


@pytest.mark.parametrize("format", FORMATS)
def test_units_and_filters(tmp_path: Path, format: str) -> None:
    frame = _frame()
    data = dataclasses.replace(
        _save(frame, tmp_path, format), rows=((0, 35),), where="site == 'south, east' and a > -0.8 and b < 5"
    )
    slots = _open(data).slot_map()
    kept = frame[:35][((frame.site == "south, east") & (frame.a > -0.8) & frame.b.notna())[:35]]
    by_unit = [row for name in kept.patient.unique() for row in kept.index[kept.patient == name]]
    assert slots.rows.tolist() == by_unit
    assert slots.unit.tolist() == pd.factorize(kept.patient)[0][np.argsort(pd.factorize(kept.patient)[0])].tolist()
    assert 0 < len(by_unit) < 35


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_scanning_slots_reads_no_record(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = _open(dataclasses.replace(_save(_frame(), tmp_path, format), where="a > 0"))
    calls: list[object] = []
    monkeypatch.setattr(dataset._reader, "read", lambda *args: calls.append(args))
    assert dataset.slot_map().slots > 0
    assert not calls


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_private_entry_that_is_no_number_is_named_by_column_only(tmp_path: Path, format: str) -> None:
    frame = _frame()
    public = _save(frame, tmp_path, format)
    dirty = frame.astype({"b": object})
    dirty["b"] = dirty["b"].astype(str)
    dirty.loc[11, "b"] = "secret-value" if format == "parquet" else "1_000"
    (tmp_path / "site").mkdir()
    dataset = _open(_save(dirty, tmp_path / "site", format), public)
    if format == "csv":
        assert dataset.read([10, 12]).present.all()  # the entry is in neither row
    with pytest.raises(FileContentError, match="'b'") as caught:
        dataset.read([10, 11])
    assert "secret" not in str(caught.value)
    assert "1_000" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_tables_with_other_columns_are_refused_with_both_sides(tmp_path: Path, format: str) -> None:
    frame = _frame()
    public = _save(frame, tmp_path, format)
    (tmp_path / "site").mkdir()
    for changed, words in (
        (frame.rename(columns={"b": "other"}), ("'b'", "'other'")),
        (frame.drop(columns="c"), ("'c'",)),
        (frame.assign(extra=1.0), ("'extra'",)),
        (frame.drop(columns="y"), ("'y'",)),
        (frame.drop(columns="patient"), ("'patient'",)),
    ):
        with pytest.raises(FileContentError) as caught:
            _open(_save(changed, tmp_path / "site", format), public)
        assert all(word in str(caught.value) for word in words)
    shuffled = frame[["note", "c", "y", "patient", "b", "site", "a"]]
    dataset = _open(_save(shuffled, tmp_path / "site", format), public)
    assert torch.equal(dataset.read([3, 4]).inputs, _open(public).read([3, 4]).inputs)


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_missing_unit_ids_are_refused_where_they_are_used(tmp_path: Path, format: str) -> None:
    frame = _frame()
    frame.loc[13, "patient"] = None
    data = _save(frame, tmp_path, format)
    with pytest.raises(FileContentError, match="'patient'"):
        _open(data).slot_map()
    assert _open(dataclasses.replace(data, rows=((0, 13),))).slot_map().slots == 13


def test_large_integer_ids_stay_distinct(tmp_path: Path) -> None:
    frame = _frame(4).assign(patient=pd.array([2**53, 2**53 + 1, 2**53, 2**53 + 2], dtype="Int64"))
    for format in ("csv", "parquet"):
        assert _open(_save(frame, tmp_path, format)).slot_map().unit.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "empty"),
        (b"a,y\n1,0\n2\n", "as many fields"),
        (b"a,y\n1,0\n2,1,3\n", "as many fields"),
        (b'a,y\n"1,0\n2,1\n', "quote"),
        (b"a,a,y\n1,2,0\n", "twice"),
        (b"y\n1\n", "no feature"),
        (b"a,z\n1,0\n", "no column 'y'"),
        (b"\xff\xfe,y\n1,0\n", "UTF-8"),
        (b"a,y\n1,\xff\n", "UTF-8|number"),
        (b"\x1f\x8bnot gzip at all", "damaged"),
    ],
)
def test_damaged_csv_files_are_refused_in_one_line(tmp_path: Path, text: bytes, reason: str) -> None:
    (tmp_path / "t.csv").write_bytes(text)
    data = DataConfig(format="csv", path=str(tmp_path / "t.csv"), columns=ColumnsConfig(target="y"))
    with pytest.raises(FileContentError, match=reason) as caught:
        _open(data).read([0])
    assert "\n" not in str(caught.value)


def test_a_truncated_table_is_refused(tmp_path: Path) -> None:
    for format in ("csv.gz", "parquet"):
        data = _save(_frame(), tmp_path, format)
        path = Path(str(data.path))
        content = path.read_bytes()
        for kept in (len(content) // 2, len(content) - 3, 3):
            path.write_bytes(content[:kept])
            with pytest.raises(FileContentError):
                _open(data)


def test_missing_files_and_roles_are_usage_errors(tmp_path: Path) -> None:
    for format in ("csv", "parquet"):
        data = DataConfig(format=format, path=str(tmp_path / "none"), columns=COLUMNS)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="no such file"):
            _open(data)
    data = _save(_frame(), tmp_path, "csv")
    with pytest.raises(UsageError, match="target"):
        _open(dataclasses.replace(data, columns=ColumnsConfig()))
    with pytest.raises(FileContentError, match=r"data\.where"):
        _open(dataclasses.replace(data, where="nothing == 1")).slot_map()
    with pytest.raises(FileContentError, match="'site'"):
        _open(dataclasses.replace(data, where="site == 1")).slot_map()
    with pytest.raises(UsageError, match="rotate"):
        _open(dataclasses.replace(data, rotate=3.0))


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
def test_line_index_is_the_same_for_every_block_size(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b'\xef\xbb\xbfa,b,y\r\n\r\n1,"x,\n""q""",0\r\n2,,1\n\n3,z,0'
    (tmp_path / "t.csv").write_bytes(text)
    monkeypatch.setattr("distqexp.problem.readers.bytes.BLOCK", block)
    index = index_lines(ByteSource(tmp_path / "t.csv"))
    records = [text[start:end] for start, end in zip(index.starts, index.ends, strict=True)]
    assert text[slice(*index.header)] == b"\xef\xbb\xbfa,b,y\r"
    assert records == [b'1,"x,\n""q""",0\r', b"2,,1", b"3,z,0"]


def test_quoted_fields_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b'\xef\xbb\xbfa,site,y\r\n\r\n1,"x,\n""q""",0\r\n2,,1\n\n3,z,0'))
    data = DataConfig(
        format="csv", path=str(tmp_path / "t.csv.gz"), columns=dataclasses.replace(COLUMNS, exclude=("site",))
    )
    dataset = _open(data)
    assert dataset.schema.names == ("a",)
    assert dataset.read([2, 0, 1]).inputs.flatten().tolist() == [3.0, 1.0, 2.0]
    assert _open(dataclasses.replace(data, where="""site == 'x,\n"q"'""")).slot_map().rows.tolist() == [0]


def test_numbers_are_the_nearest_doubles(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=200) * 10.0 ** np.arange(-100, 100)
    text = "a,y\n" + "".join(f"{value!r},0.5\n" for value in values.tolist())
    (tmp_path / "t.csv").write_text(text)
    data = DataConfig(format="csv", path=str(tmp_path / "t.csv"), columns=dataclasses.replace(COLUMNS, exclude=()))
    reader = _open(data, loss="mean-squared-error")._reader
    np.testing.assert_array_equal(reader.read(np.arange(200), ("a",))[0][:, 0], values)


def test_parquet_types_that_are_numbers_and_those_that_are_not(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [True, False, True], "b": pd.array([1, None, 3], dtype="Int32"), "y": [0.0, 1.0, None]})
    data = _save(frame.assign(patient=1, site="x", note="y"), tmp_path, "parquet")
    records = _open(data).read([0, 1, 2])
    assert records.inputs.tolist() == [[1.0, 1.0], [0.0, 2.0], [0.0, 0.0]]
    assert records.present.tolist() == [True, True, False]
    with pytest.raises(DistqexpError, match="'a'"):
        _open(
            _save(frame.assign(a=pd.Timestamp("2020-01-01"), patient=1, site="x", note="y"), tmp_path, "parquet")
        ).read([0])
