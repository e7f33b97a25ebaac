"""Bombs, absurd shapes, absurd numbers, links and clocks: refused in one line, or as harmless as any other input."""

from __future__ import annotations

import dataclasses
import gzip
import os
import sqlite3
import struct
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
from ledger_child import CAP, reserve
from run_harness import Commands, table_tree, to_toml, write_task

from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import BudgetError, FileContentError, StorageError
from distqexp.privacy.ledger import Ledger
from distqexp.problem.dataset import open_dataset
from distqexp.problem.readers import open_reader
from distqexp.problem.schema import fit_schema
from distqexp.problem.selection import read_blank
from distqexp.storage.atomic import write_atomic
from distqexp.storage.hdf5 import read_file, write_file

pytestmark = pytest.mark.process

ENOUGH = 600 << 20
"""Bytes that Python may hold at most while it meets a bomb."""


@pytest.fixture
def bounded() -> Iterator[None]:
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < ENOUGH
        assert time.process_time() - began < 30
    finally:
        tracemalloc.stop()


def idx(shape: tuple[int, ...], content: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


def images(folder: Path, content: bytes, count: int = 2) -> DataConfig:
    (folder / "images").write_bytes(content)
    (folder / "labels").write_bytes(idx((count,), bytes(count)))
    return DataConfig(format="idx", path=str(folder / "images"), labels=str(folder / "labels"))


def table(folder: Path, content: bytes, name: str = "t.csv") -> DataConfig:
    (folder / name).write_bytes(content)
    columns = ColumnsConfig(target="died", standardise=True)
    return DataConfig(format="csv", path=str(folder / name), columns=columns, unit="patient")


@pytest.mark.parametrize(
    "shape",
    [(2**31, 2**31, 4), (2**32 - 1, 2**32 - 1, 2**32 - 1), (2**31, 1, 1), (2, 2**31, 2**31), (0, 2**31, 2**31)],
)
@pytest.mark.parametrize("packed", [False, True])
def test_images_of_absurd_shapes(tmp_path: Path, shape: tuple[int, ...], packed: bool, bounded: None) -> None:
    """Also where the length that gzip keeps, modulo 2^32, happens to fit."""
    record = idx(shape, bytes(48))
    content = gzip.compress(record)[:-4] + struct.pack("<I", (16 + int(np.prod(shape, dtype=object))) % 2**32)
    with pytest.raises(FileContentError):
        open_reader(images(tmp_path, content if packed else record, shape[0] if shape[0] < 3 else 2))


def test_images_that_unpack_to_more_than_they_say(tmp_path: Path, bounded: None) -> None:
    member = gzip.compress(bytes(64 << 20), 1)  # many members: the last one's trailer says little
    bomb = gzip.compress(idx((2, 4, 4), bytes(32))) + member * 20
    with pytest.raises(FileContentError, match="not as long as its header says"):
        open_reader(images(tmp_path, bomb))


def test_a_table_that_is_a_bomb(tmp_path: Path, bounded: None) -> None:
    head = b"patient,age,died\np1,3,1\n"
    for filling in (b"\n", b"0", b"p,0,0\n"):
        member = gzip.compress(filling * ((16 << 20) // len(filling)), 6)
        with pytest.raises(FileContentError, match="unpacks to more than"):
            open_reader(table(tmp_path, gzip.compress(head) + member * 10, "bomb.csv.gz"))


def test_gzip_in_gzip_is_no_table_and_no_image(tmp_path: Path) -> None:
    twice = gzip.compress(gzip.compress(idx((2, 4, 4), bytes(32))))
    for data in (images(tmp_path, twice), table(tmp_path, twice, "t.csv.gz")):
        with pytest.raises(FileContentError):
            open_reader(data)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|b1', 'fortran_order': False, 'shape': (1152921504606846976,), }",
        "{'descr': '|b1', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '|b1', 'fortran_order': False, 'shape': (",
        "(" * 300,
    ],
)
def test_blank_arrays_of_absurd_shapes(tmp_path: Path, header: str, bounded: None) -> None:
    text = header.ljust(117).encode() + b"\n"
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(3))
    with pytest.raises(FileContentError):
        read_blank(DataConfig(format="digits", blank=str(tmp_path / "b.npy")), 3)
    (tmp_path / "b.npy").write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(FileContentError):
        read_blank(DataConfig(format="digits", blank=str(tmp_path / "b.npy")), 3)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("x", {"shape": (1 << 40,), "dtype": "f8"}, "declares more data"),
        ("x", {"shape": (1 << 40, 1 << 20), "dtype": "f8", "chunks": (1024, 1024)}, "declares more data"),
        ("x", {"data": np.zeros((4, 4)), "chunks": (2, 2), "scaleoffset": 2}, "needs HDF5 filter"),
        ("x", {"shape": (4,), "dtype": "u1", "external": [("/etc/hostname", 0, 4)]}, "another file"),
        ("x", {"shape": (4, 1 << 26), "dtype": "f8", "chunks": (1, 1 << 26)}, r"declares more data|256 MiB"),
    ],
)
def test_absurd_datasets(tmp_path: Path, name: str, options: dict[str, object], words: str) -> None:
    data = records(tmp_path)
    with h5py.File(data.path, "r+") as h5:
        h5.create_dataset(name, **options)
    with pytest.raises(FileContentError, match=words) as caught:
        open_reader(data)
    assert "\n" not in str(caught.value)


def test_links_to_other_hdf5_files_and_virtual_ones(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.arange(5.0)
    data = records(tmp_path)
    with h5py.File(data.path, "r+") as h5:
        h5["x"] = h5py.ExternalLink("other.h5", "secret")
    with pytest.raises(FileContentError, match="leads to another file"):
        open_reader(data)
    data = records(tmp_path)
    layout = h5py.VirtualLayout(shape=(5,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", shape=(5,))
    with h5py.File(data.path, "r+") as h5:
        h5.create_virtual_dataset("x", layout)
    with pytest.raises(FileContentError, match="in another file"):
        open_reader(data)


def test_a_compressed_chunk_that_is_a_bomb(tmp_path: Path) -> None:
    """Two GiB of zeros under a chunk that says 8 MB: they are unpacked where memory has a limit."""
    import zlib

    data = records(tmp_path)
    packer = zlib.compressobj(9)
    start = packer.compress(bytes(1 << 25)) + packer.flush(zlib.Z_FULL_FLUSH)
    bomb = start + (packer.compress(bytes(1 << 25)) + packer.flush(zlib.Z_FULL_FLUSH)) * 63
    with h5py.File(data.path, "r+") as h5:
        made = h5.create_dataset("x", shape=(5, 200_000), dtype="f8", chunks=(5, 200_000), compression="gzip")
        made.id.write_direct_chunk((0, 0), bomb)
    began = time.process_time()
    with pytest.raises(FileContentError, match=r"memory|not a whole HDF5 file|more time"):
        open_reader(data)
    assert time.process_time() - began < 10


def test_honest_large_chunks_are_read(tmp_path: Path) -> None:
    data = records(tmp_path)
    values = np.random.default_rng(1).normal(size=(5, 400_000))
    with h5py.File(data.path, "r+") as h5:
        h5.create_dataset("x", data=values, chunks=(5, 400_000), compression="gzip", compression_opts=1)
    found, _ = open_reader(data).read(np.array([3, 1]), ["x"])
    assert np.array_equal(found, values[[3, 1]])


def test_a_dataset_that_is_neither_number_nor_text(tmp_path: Path) -> None:
    data = records(tmp_path)
    with h5py.File(data.path, "r+") as h5:
        h5["x"] = np.arange(5.0)
        del h5["patient"]
        h5["patient"] = np.zeros(5, dtype=[("a", "f8"), ("b", "i4")])
    with pytest.raises(FileContentError, match="neither numbers nor texts"):
        open_reader(data).identifiers("patient", np.arange(5))


def records(folder: Path) -> DataConfig:
    """An HDF5 file of five records that lacks its features, "x"."""
    path = folder / "records.h5"
    with h5py.File(path, "w") as h5:
        h5["died"], h5["patient"] = np.array([0, 1, 0, 1, 0]), np.arange(5)
    columns = ColumnsConfig(target="died", features=("x",), standardise=False)
    return DataConfig(format="hdf5", path=str(path), columns=columns, unit="patient")


def test_a_table_without_a_header_does_not_tell_its_first_record(tmp_path: Path) -> None:
    for content in (b"p77123,63.25,1\np2,1,0\n", b"63.25,63.25,63.25\n1,2,0\n"):
        with pytest.raises(FileContentError, match="no column 'died'") as caught:
            open_reader(table(tmp_path, content))
        assert not any(value in str(caught.value) for value in ("77123", "63.25"))


def test_absurd_numbers_in_public_tables_leave_the_statistics_finite(tmp_path: Path) -> None:
    values = ["1e308", "-1e308", "inf", "-inf", "nan", "1e38", "5e-324", "-0.0", "3", "4"]
    rows = "".join(f"p{n},{value},{n % 2}\n" for n, value in enumerate(values))
    data = table(tmp_path, b"patient,age,died\n" + rows.encode())
    schema = fit_schema(data, loss="binary-cross-entropy")
    assert np.isfinite([*schema.medians, *schema.means, *schema.scales]).all()
    assert type(schema).from_tree(schema.to_tree()) == schema
    found = open_dataset(data, schema).read(np.arange(len(values)))
    assert bool(np.isfinite(found.inputs.numpy()).all())
    assert found.present.tolist() == [False, False, False, False, True, True, True, True, True, True]


@pytest.mark.parametrize("value", ["1e38", "-inf", "nan", "5e-324"])
def test_absurd_private_numbers_cost_a_run_nothing(tmp_path: Path, run: Commands, value: str) -> None:
    task = write_task(tmp_path)
    lines = (tmp_path / "private.csv").read_text().splitlines()
    for number in (3, 4, 9):
        fields = lines[number].split(",")
        lines[number] = ",".join([fields[0], value, *fields[2:]])
    (tmp_path / "private.csv").write_text("\n".join(lines) + "\n")
    outcome = run.fit(task, "--out", tmp_path / "run", "--insecure-noise-seed", "1")
    assert outcome.code == 0, outcome.err
    assert outcome.reasons() == []
    theta = read_file(tmp_path / "run" / "release-000.h5").arrays["theta"]
    assert np.isfinite(theta).all()


def test_scattered_records_of_a_unit_are_one_unit(tmp_path: Path) -> None:
    content = "patient,age,died\n" + "".join(f"p{n % 3},{n},{n % 2}\n" for n in range(12))
    dataset = open_dataset(data := table(tmp_path, content.encode()), fit_schema(data, loss="binary-cross-entropy"))
    slots = dataset.slot_map()
    assert slots.unit.tolist() == sorted(n for n in range(3) for _ in range(4))
    assert sorted(slots.rows[slots.unit == 1].tolist()) == [1, 4, 7, 10]


# --- links ---------------------------------------------------------------------------------------------------


def test_a_final_name_that_is_a_link_is_replaced_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    for name, write in (
        ("a", lambda path: write_atomic(path, b"new", private=True)),
        ("b", lambda path: write_file(path, kind="plan", plan_id="p", header={}, arrays={}, private=False)),
    ):
        (tmp_path / name).symlink_to(precious)
        write(tmp_path / name)
        assert not (tmp_path / name).is_symlink()
        assert precious.read_bytes() == b"mine"
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    write_atomic(tmp_path / "dangling", b"new")
    assert not (tmp_path / "nowhere").exists()


def test_an_output_folder_that_is_a_link_and_links_inside_it(tmp_path: Path, run: Commands) -> None:
    task, real, precious = write_task(tmp_path), tmp_path / "scratch", tmp_path / "precious"
    real.mkdir()
    precious.write_bytes(b"mine\n")
    (tmp_path / "run").symlink_to(real)
    assert run.fit(task, "--out", tmp_path / "run", "--insecure-noise-seed", "1").code == 0
    assert (real / "model.safetensors").is_file()
    other = tmp_path / "other"
    other.mkdir()
    (other / "progress.jsonl").symlink_to(precious)
    run.fit(task, "--out", other, "--insecure-noise-seed", "1").refused(6, "progress.jsonl")
    assert precious.read_bytes() == b"mine\n"


def test_a_ledger_by_another_name_is_the_same_ledger(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "real" / "ledger.sqlite")  # not there yet
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    names = [tmp_path / "link.sqlite", tmp_path / "real" / "ledger.sqlite", tmp_path / "folder" / "ledger.sqlite"]
    for name in names:
        with Ledger.open(name) as ledger:
            first = reserve(ledger)
            assert len(ledger.rows()) == 1
    with Ledger.open(names[0]) as one, Ledger.open(names[1]) as two:
        assert reserve(one, key="plan/1", cap=dataclasses.replace(CAP, epsilon=100.0)).id == 2
        assert [row.id for row in two.rows()] == [first.id, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link.sqlite", "real"]


def test_a_ledger_that_is_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError):
        Ledger.open(tmp_path / "loop")


# --- clocks --------------------------------------------------------------------------------------------------


def test_a_ledger_whose_rows_are_of_the_future(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        first = reserve(ledger)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE entries SET time = '2999-01-01T00:00:00+00:00'")
    connection.commit()
    connection.close()
    with Ledger.open(path) as ledger:
        ledger.verify()
        assert reserve(ledger).id == first.id, "found again"
        with pytest.raises(BudgetError):
            reserve(ledger, key="plan/1")
        assert len(ledger.rows()) == 1


def test_a_clock_that_runs_backwards_changes_no_byte(
    tmp_path: Path, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = write_task(tmp_path)
    task.write_text(to_toml(table_tree(mechanism={"rounds": 2})), "utf-8")
    assert run.fit(task, "--out", tmp_path / "one", "--insecure-noise-seed", "1").code == 0
    now = [time.time()]

    def backwards() -> float:
        now[0] -= 3600.0
        return now[0]

    class Backwards(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Backwards:
            return cls.fromtimestamp(backwards(), UTC)

    monkeypatch.setattr(time, "time", backwards)
    monkeypatch.setattr("distqexp.privacy.ledger.chain.datetime", Backwards)
    monkeypatch.setenv("DISTQEXP_LEDGER", str(tmp_path / "another.sqlite"))
    assert run.fit(task, "--out", tmp_path / "two", "--insecure-noise-seed", "1").code == 0
    os.utime(tmp_path / "private.csv", (4e9, 4e9))
    assert run.fit(task, "--out", tmp_path / "two", "--insecure-noise-seed", "1", "--resume").code == 0
    for name in ("plan.h5", "release-000.h5", "release-001.h5", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with Ledger.open(tmp_path / "another.sqlite") as ledger:
        ledger.verify()
        assert len(ledger.rows()) == 2
