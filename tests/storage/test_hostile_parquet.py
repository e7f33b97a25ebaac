"""Parquet tables that unpack to far more than they take: refused within bounded memory."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import FileContentError
from distqexp.problem.readers import open_reader

pytestmark = pytest.mark.process

ENOUGH = 600 << 20
"""Bytes more than before that this process may hold at most while it meets a bomb."""


def records(folder: Path) -> DataConfig:
    """What reads the table that a test writes."""
    columns = ColumnsConfig(target="died")
    return DataConfig(format="parquet", path=str(folder / "t.parquet"), columns=columns, unit="patient")


def parquet(folder: Path, groups: list[list[str]], **settings: Any) -> DataConfig:
    """A Parquet table with these ids, a row group each list."""
    data = records(folder)
    schema = pyarrow.schema([("x", "f8"), ("died", "i8"), ("patient", "string")])
    with pyarrow.parquet.ParquetWriter(
        data.path, schema, compression="zstd", write_statistics=False, **settings
    ) as writer:
        for ids in groups:
            count = len(ids)
            writer.write_table(pyarrow.table([np.arange(float(count)), np.zeros(count, int), ids], schema=schema))
    return data


def test_a_text_of_a_dictionary_that_stands_in_many_rows(tmp_path: Path) -> None:
    """A few KB that would be 10 GB written out."""
    once, data = pyarrow.array(["a" * (10 << 20)]), records(tmp_path)
    table = pyarrow.table(
        {
            "x": np.arange(1000.0),
            "died": np.zeros(1000, int),
            "patient": pyarrow.DictionaryArray.from_arrays(np.zeros(1000, np.int32), once),
        }
    )
    pyarrow.parquet.write_table(table, data.path, compression="zstd", write_statistics=False, store_schema=False)
    assert Path(str(data.path)).stat().st_size < 10_000
    reader, before = open_reader(data), peak()
    with pytest.raises(FileContentError, match="more than a GiB of texts"):
        reader.identifiers("patient", np.arange(1000))
    assert peak() - before < ENOUGH


def test_long_texts_in_every_row(tmp_path: Path) -> None:
    """64 KB of a file that would be 1.25 GB; a slow machine meets the limit of time before that of texts."""
    data = parquet(tmp_path, [["a" * (64 << 20)]] * 20, use_dictionary=False)
    reader, before = open_reader(data), peak()
    with pytest.raises(FileContentError, match=r"more than a GiB of texts|more memory|more time than a file"):
        reader.identifiers("patient", np.arange(20))
    assert peak() - before < ENOUGH


def test_honest_texts_and_lists(tmp_path: Path) -> None:
    data = parquet(tmp_path, [["p1", "p2"], ["p1", "p\u00e9"]])
    assert open_reader(data).identifiers("patient", np.arange(4)) == ["p1", "p2", "p1", "p\u00e9"]
    lists = pyarrow.table({"x": [1.0, 2.0], "died": [0, 1], "patient": [["a"], ["b"]]})
    pyarrow.parquet.write_table(lists, data.path)
    with pytest.raises(FileContentError, match="'patient' holds lists"):
        open_reader(data).identifiers("patient", np.arange(2))


def test_row_groups_of_more_numbers_than_the_file_can_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = parquet(tmp_path, [["p"] * 100_000])
    assert open_reader(data).count == 100_000
    monkeypatch.setattr("distqexp.problem.readers.parquet._LARGEST_GROUP", 1 << 10)
    monkeypatch.setattr("distqexp.problem.readers.parquet._GROUP_GROWTH", 1)
    with pytest.raises(FileContentError, match="fewer rows a group"):
        open_reader(data)


def peak() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
