"""A copy of a file that is packed, has other blank lines, or its lines in another order, is no other file: not public, no second shard."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from record_tables import Patients, config_of, source

from distqexp import api
from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import UsageError
from distqexp.privacy.ledger import Ledger
from distqexp.problem import copies
from distqexp.problem.copies import Likeness, likeness
from distqexp.stages.overlaps import refuse_common_rows, refuse_overlaps

WHOLE = Patients.some(40, 3, seed=4, first=100)
"""120 rows: patient 100 + u in rows 3 u to 3 u + 2."""


def packed(path: Path) -> Path:
    found = path.with_name("whole.csv.gz")
    found.write_bytes(gzip.compress(path.read_bytes()))
    return found


def packed_otherwise(path: Path) -> Path:
    """Both are packed, in two members the one."""
    content = path.read_bytes()
    found = path.with_name("other.csv.gz")
    found.write_bytes(gzip.compress(content[:1000], 1) + gzip.compress(content[1000:], 9))
    return found


def longer(path: Path) -> Path:
    found = path.with_name("longer.csv")
    found.write_bytes(path.read_bytes() + b"\n")
    return found


def spaced(path: Path) -> Path:
    found = path.with_name("spaced.csv")
    found.write_bytes(path.read_bytes().replace(b"\n", b"\n\n", 3))
    return found


def unended(path: Path) -> Path:
    found = path.with_name("unended.csv")
    found.write_bytes(path.read_bytes().rstrip(b"\n"))
    return found


def windows(path: Path) -> Path:
    found = path.with_name("windows.csv.gz")
    found.write_bytes(gzip.compress(path.read_bytes().replace(b"\n", b"\r\n")))
    return found


def reordered(path: Path) -> Path:
    return rolled(path, path.with_name("reordered.csv"))


def reordered_and_packed(path: Path) -> Path:
    return packed(reordered(path))


def rolled(path: Path, to: Path) -> Path:
    head, *lines = path.read_text().splitlines()
    to.write_text("\n".join([head, *lines[3:], *lines[:3]]) + "\n")
    return to


SAME_ROWS = [packed, packed_otherwise, longer, spaced, unended, windows]
SAME_LINES = [reordered, reordered_and_packed]

Copy = Callable[[Path], Path]


def shards(one: Path, other: Path, first: list[list[int]], second: list[list[int]], **more: Any) -> list[Any]:
    return [source(one, rows=first, shard="north", **more), source(other, rows=second, shard="south", **more)]


@pytest.mark.parametrize("copy", [*SAME_ROWS, *SAME_LINES])
def test_a_copy_is_known(copy: Copy, tmp_path: Path) -> None:
    path = WHOLE.write(tmp_path / "whole.csv")
    found = shards(path, copy(path), [[0, 60]], [[60, 120]])
    one, other = config_of(None, *found, precision={"kind": "identity"}).data.private
    expected = Likeness.SAME_ROWS if copy in SAME_ROWS else Likeness.SAME_LINES
    assert likeness(one, other) is likeness(other, one) is expected


@pytest.mark.parametrize("copy", [*SAME_ROWS, *SAME_LINES])
def test_a_copy_is_neither_public_nor_to_evaluate_on(copy: Copy, tmp_path: Path) -> None:
    path, public = WHOLE.write(tmp_path / "whole.csv"), Patients.some(20, 1, seed=9).write(tmp_path / "public.csv")
    other = copy(path)
    with pytest.raises(UsageError, match=r"data\.public: records of .* that are data\.private's too"):
        refuse_overlaps(config_of(source(other), source(path)).data)
    with pytest.raises(UsageError, match=r"data\.eval: records of .* that are data\.private's too"):
        refuse_overlaps(config_of(source(public), source(path), data={"eval": source(other)}).data)
    refuse_overlaps(config_of(source(public), source(path), data={"eval": source(other), "eval_private": True}).data)


@pytest.mark.parametrize("copy", [packed, spaced, reordered])
@pytest.mark.parametrize("unit", [None, "pid"])
def test_a_copy_is_no_second_shard(copy: Copy, unit: str | None, tmp_path: Path, own_ledger: Path) -> None:
    path, public = WHOLE.write(tmp_path / "whole.csv"), Patients.some(20, 1, seed=9).write(tmp_path / "public.csv")
    both = shards(path, copy(path), [[0, 120]], [[0, 120]], unit=unit)
    with pytest.raises(UsageError, match=r"data\.private.*privacy\.presence"):
        api.fit(config_of(source(public), *both, mechanism={"rounds": 1}), tmp_path / "out")
    with Ledger.open(own_ledger) as books:
        assert books.rows() == []


@pytest.mark.parametrize("copy", SAME_ROWS)
def test_rows_of_a_copy_are_compared_where_their_numbers_are_the_same(copy: Copy, tmp_path: Path) -> None:
    path = WHOLE.write(tmp_path / "whole.csv")
    other = copy(path)
    refuse_overlaps(config_of(source(other, rows=[[0, 60]]), source(path, rows=[[60, 120]])).data)
    for public in ([[0, 61]], [[0, 30], [119, 120]]):
        with pytest.raises(UsageError, match=r"data\.public"):
            refuse_overlaps(config_of(source(other, rows=public), source(path, rows=[[60, 120]])).data)
    with pytest.raises(UsageError, match="one of its units"):
        refuse_overlaps(config_of(source(other, rows=[[0, 62]]), source(path, rows=[[62, 120]])).data)
    apart = config_of(None, *shards(path, other, [[0, 60]], [[60, 120]]), precision={"kind": "identity"}).data.private
    refuse_common_rows(apart, 1)
    met = (apart[0], replace(apart[1], rows=((59, 120),)))
    with pytest.raises(UsageError, match="several of the shards north, south"):
        refuse_common_rows(met, 1)
    refuse_common_rows(met, 2)


@pytest.mark.parametrize("copy", SAME_LINES)
def test_rows_in_another_order_cant_be_told_apart(copy: Copy, tmp_path: Path) -> None:
    """Rows 0 to 3 of the one are rows 117 to 120 of the other: ranges say nothing."""
    path = WHOLE.write(tmp_path / "whole.csv")
    other = copy(path)
    with pytest.raises(UsageError, match=r"data\.public"):
        refuse_overlaps(config_of(source(other, rows=[[60, 120]]), source(path, rows=[[0, 60]])).data)
    both = config_of(None, *shards(path, other, [[0, 60]], [[60, 120]]), precision={"kind": "identity"}).data.private
    with pytest.raises(UsageError, match="several of the shards north, south"):
        refuse_common_rows(both, 1)
    refuse_common_rows(both, 2)


def test_a_packed_copy_of_images_is_known(tmp_path: Path) -> None:
    content = bytes([0, 0, 8, 3]) + np.array([6, 2, 2], dtype=">u4").tobytes() + bytes(24)
    (tmp_path / "images.idx").write_bytes(content)
    (tmp_path / "images.gz").write_bytes(gzip.compress(content))
    (tmp_path / "labels.idx").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 6]) + bytes(6))
    one, other = (
        DataConfig(format="idx", path=str(tmp_path / name), labels=str(tmp_path / "labels.idx"), shard=name)
        for name in ("images.idx", "images.gz")
    )
    with pytest.raises(UsageError, match="stand in several of the shards"):
        refuse_common_rows([one, other], 1)
    refuse_common_rows([replace(one, rows=((0, 3),)), replace(other, rows=((3, 6),))], 1)


def test_a_file_is_read_for_it_once_and_a_linked_one_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = WHOLE.write(tmp_path / "whole.csv")
    others = [Patients.some(40, 3, seed=seed, first=100).write(tmp_path / f"{seed}.csv") for seed in (5, 6, 7)]
    opened: list[Path] = []
    table_source = copies.table_source
    monkeypatch.setattr(copies, "table_source", lambda found, text: opened.append(found) or table_source(found, text))
    (tmp_path / "link.csv").symlink_to(path)
    halves = shards(path, tmp_path / "link.csv", [[0, 60]], [[60, 120]])
    refuse_common_rows(config_of(None, *halves, precision={"kind": "identity"}).data.private, 1)
    assert opened == []
    sources = [source(file, shard=f"s{file.stem}") for file in (path, *others)]
    refuse_common_rows(config_of(None, *sources, precision={"kind": "identity"}).data.private, 1)
    assert sorted(opened) == sorted([path, *others])


def test_named_arrays_of_other_lengths_in_one_hdf5_file_are_other_records(tmp_path: Path) -> None:
    """As training and test records often are. Of equal length they may be of the same people, row by row."""
    path = tmp_path / "arrays.h5"
    with h5py.File(path, "w") as file:
        for name, count in (("train", 50), ("test", 20), ("more", 50)):
            file[f"{name}/x"] = np.random.default_rng(count).normal(size=(count, 3))
            file[f"{name}/y"] = np.zeros(count)

    def named(name: str, features: bool = True) -> DataConfig:
        columns = ColumnsConfig(target=f"{name}/y", features=(f"{name}/x",) if features else None)
        return DataConfig(format="hdf5", path=str(path), columns=columns)

    assert likeness(named("train"), named("test")) is Likeness.OTHERS
    assert likeness(named("train"), named("more")) is Likeness.SAME_ROWS
    assert likeness(named("train"), named("train")) is Likeness.SAME_ROWS
    refuse_common_rows([named("train"), named("test")], 1)
    with pytest.raises(UsageError, match="stand in several of the shards"):
        refuse_common_rows([named("train"), named("more")], 1)
