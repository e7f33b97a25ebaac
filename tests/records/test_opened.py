"""A path that leads to another file only while a process opens it: what was opened counts, not what the path names before and after."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from record_tables import Patients, config_of, parts_charged, source

from distqexp import api
from distqexp.config import ColumnsConfig, Config, DataConfig
from distqexp.errors import FileContentError, RecordsChangedError
from distqexp.problem import sources as sources_module
from distqexp.problem.dataset import Dataset
from distqexp.problem.identity import file_facts
from distqexp.problem.readers import open_reader
from distqexp.problem.schema import Schema
from distqexp.problem.slots import slot_map
from distqexp.problem.sources import DataSource
from distqexp.stages import shards as shards_module

RECORDS = 4
TABLE = Patients.some(30, RECORDS, seed=2, first=100)


def by_link(folder: Path) -> Callable[[bool], None]:
    """``folder``/data is a link to one of two folders."""
    link = folder / "data"
    link.symlink_to(folder / "first")

    def lead(elsewhere: bool) -> None:
        link.unlink()
        link.symlink_to(folder / ("second" if elsewhere else "first"))

    return lead


def by_folder(folder: Path) -> Callable[[bool], None]:
    """``folder``/data is one of two folders, renamed."""
    data = folder / "data"
    (folder / "first").rename(data)

    def lead(elsewhere: bool) -> None:
        data.rename(folder / ("first" if elsewhere else "second"))
        (folder / ("second" if elsewhere else "first")).rename(data)

    return lead


SCHEMA = Schema(loss="cross-entropy", image=False, names=("x",))
WAYS = [by_link, by_folder]
Way = Callable[[Path], Callable[[bool], None]]


def task(folder: Path, way: Way) -> tuple[Config, Callable[[bool], None]]:
    """Two tables of the same size and time, with the same ids in the same rows."""
    (folder / "first").mkdir()
    (folder / "second").mkdir()
    first = TABLE.write(folder / "first" / "private.csv")
    second = Patients.some(30, RECORDS, seed=3, first=100).write(folder / "second" / "private.csv")
    stat = first.stat()
    os.utime(second, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert second.stat().st_size == stat.st_size
    lead = way(folder)
    Patients.some(50, 4, seed=1, first=1000).write(folder / "public.csv")
    public, private = source(folder / "public.csv"), source(folder / "data" / "private.csv")
    return config_of(public, private, mechanism={"rounds": 1}), lead


def elsewhere_while(patch: pytest.MonkeyPatch, module: Any, name: str, lead: Callable[[bool], None]) -> list[int]:
    """The path leads elsewhere while a function of a module runs on private records; how often that was."""
    original, times = getattr(module, name), [0]

    def away(*arguments: Any, **keywords: Any) -> Any:
        if not keywords.get("private"):
            return original(*arguments, **keywords)
        times[0] += 1
        lead(True)
        try:
            return original(*arguments, **keywords)
        finally:
            lead(False)

    patch.setattr(module, name, away)
    return times


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("module", "name"),
    [(sources_module, "open_reader"), (shards_module, "open_reader")],
)
def test_a_path_that_leads_elsewhere_for_an_instant_ends_the_run_uncharged(
    way: Way, module: Any, name: str, tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the reader of slots and rounds, and of the fingerprint: all checks of the path find the first file."""
    config, lead = task(tmp_path, way)
    times = elsewhere_while(monkeypatch, module, name, lead)
    with pytest.raises(RecordsChangedError, match=r"private\.csv: changed since the run read it first") as caught:
        api.fit(config, tmp_path / "out")
    assert caught.value.exit_code == FileContentError.exit_code == 3
    assert times[0] >= 1
    assert parts_charged(own_ledger) == []
    assert not [*(tmp_path / "out").glob("sketch-*"), *(tmp_path / "out").glob("quadratic-*")]


@pytest.mark.parametrize("way", WAYS)
def test_a_path_that_leads_elsewhere_once_the_file_is_open_is_of_no_matter(way: Way, tmp_path: Path) -> None:
    config, lead = task(tmp_path, way)
    (data,) = config.data.private
    reader = open_reader(data, private=True)
    rows = np.arange(30 * RECORDS)
    lead(True)
    features, _ = reader.read(rows, ("a", "b", "c"))
    np.testing.assert_allclose(features, TABLE.x, rtol=1e-12)


def written(folder: Path, format: str, seed: int) -> DataConfig:
    """Twelve records in a folder, in a format."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    x, y = random.integers(0, 200, size=(12, 4)).astype(np.uint8), np.arange(12) % 2
    columns = ColumnsConfig(target="y")
    if format == "idx":
        (folder / "data.idx").write_bytes(
            gzip.compress(bytes([0, 0, 8, 3]) + np.array([12, 2, 2], ">u4").tobytes() + x.tobytes(), mtime=0)
        )
        (folder / "labels").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 12]) + y.astype(np.uint8).tobytes())
        return DataConfig(format="idx", path="data.idx", labels="labels")
    if format == "npy":
        np.save(folder / "data", x)
        np.save(folder / "labels", y)
        return DataConfig(format="npy", path="data.npy", labels="labels.npy")
    if format == "npz":
        np.savez(folder / "data.npz", x=x, y=y)
        return DataConfig(format="npz", path="data.npz")
    if format == "parquet":
        table = pyarrow.table({"y": y, **{f"x{i}": x[:, i].astype(float) for i in range(4)}})
        pyarrow.parquet.write_table(table, folder / "data")
    elif format == "hdf5":
        with h5py.File(folder / "data", "w") as file:
            file["x"], file["y"] = x.astype(float), y
    else:
        np.save(folder / "blank.npy", np.arange(12) == seed)
        lines = [",".join(map(str, [*row, label])) for row, label in zip(x + 20, y, strict=True)]
        (folder / "data").write_bytes(gzip.compress("\n".join(["p,q,r,s,y", *lines]).encode()))
        return DataConfig(format="csv", path="data", blank="blank.npy", columns=columns)
    return DataConfig(format=format, path="data", columns=columns)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("format", ["idx", "csv", "parquet", "hdf5", "npy", "npz"])
def test_every_reader_tells_which_files_it_opened(
    format: str, way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = written(tmp_path / "first", format, 1)
    written(tmp_path / "second", format, 2)
    lead = way(tmp_path)
    names = {key: str(tmp_path / "data" / name) for key in ("path", "labels", "blank") if (name := getattr(found, key))}
    data = replace(found, **names)
    facts = file_facts(data)
    source = DataSource(data, slot_map(np.arange(12), None), facts=facts)

    def unchecked(data: DataConfig, *_: Any, private: bool, reader: Any) -> Dataset:
        return Dataset(data, SCHEMA, reader or open_reader(data, private))

    monkeypatch.setattr(sources_module, "open_dataset", unchecked)
    assert source.open(SCHEMA, 0).opened_files() == facts.files
    lead(True)
    with pytest.raises(RecordsChangedError, match="changed since the run read it first"):
        source.open(SCHEMA, 0)
    lead(False)
    assert source.open(SCHEMA, 0).opened_files() == facts.files
