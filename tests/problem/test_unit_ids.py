"""Unit ids: one text for every way of writing one, and a refusal where nobody can tell whether two are one."""

from __future__ import annotations

import unicodedata
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from record_tables import Patients, config_of, source

from distqexp import api
from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.privacy.ledger import Ledger
from distqexp.problem.readers import open_reader
from distqexp.problem.slots import id_bytes, partition_by_id, partition_by_slot, slot_map
from distqexp.problem.unit_ids import canonical_id, refuse_mixture

SEVENTEEN = ["17", " 17 ", 17, 17.0, "17.0", b"17", "\t17\n", b" 17.0", np.int32(17), np.float32(17), Decimal("17.00")]
ACCENT = "Zoë"


@pytest.mark.parametrize("other", SEVENTEEN)
def test_every_way_of_writing_seventeen_is_one_unit(other: Any) -> None:
    assert canonical_id(other) == "17"
    slots = slot_map(np.arange(4), ["17", "4", other, 4])
    assert (slots.rows.tolist(), slots.unit.tolist()) == ([0, 2, 1, 3], [0, 0, 1, 1])
    pair = slot_map(np.arange(2), ["17", "4"])
    for ids in (["17", "4"], [other, 4.0]):
        assert (
            partition_by_id(pair, 1000, ids, b"k").part.tolist()
            == partition_by_id(pair, 1000, [17, 4], b"k").part.tolist()
        )
        assert partition_by_slot(pair, 2, ids, "").basis == partition_by_slot(pair, 2, [17, 4], "").basis


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0, "0"), ("-0", "0"), ("-0.0", "0"), (-17.0, "-17"), ("-17", "-17"), ("17.", "17"),
        (2**53 + 1, "9007199254740993"), (str(2**70), str(2**70)), (float(2**53 - 1), "9007199254740991"),
        ("017", "017"), ("1e3", "1e3"), ("+17", "+17"), (17.5, "17.5"), ("A 1", "A 1"), (True, "True"),
        (unicodedata.normalize("NFD", ACCENT), unicodedata.normalize("NFC", ACCENT)), (ACCENT.encode(), ACCENT),
        (date(2020, 1, 2), "2020-01-02"),
        (None, None), (float("nan"), None), (float("inf"), None), (b"\xff1", None), ("  ", None), ("", None),
    ],
)  # fmt: skip
def test_the_one_text_of_an_id(value: Any, text: str | None) -> None:
    assert canonical_id(value) == text
    assert canonical_id(text) == text
    assert id_bytes(value) == (text or "").encode()


@given(st.text() | st.integers() | st.floats(-1e15, 1e15) | st.binary())
@example("\uff11\uff17")
@example("\u200b17")
def test_what_is_canonical_stays_as_it_is(value: Any) -> None:
    found = canonical_id(value)
    assert canonical_id(found) == found
    assert found is None or found.strip() == found


@pytest.mark.parametrize("value", [2.0**53, -(2.0**60), "9007199254740992.0", np.float32(2**24), np.float16(2048)])
def test_numbers_that_may_have_been_rounded_are_refused(value: Any) -> None:
    with pytest.raises(FileContentError, match="several ids may have become one") as caught:
        slot_map(np.arange(2), [1, value])
    assert str(int(float(value))) not in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("17", "017"), (17, "+17"), ("17", "1.7e1"), ("1000", "1e3"), ("17.5", "17.50"), ("0", "00"), ("5", 17.5),
        ("A1", "a1"), ("Straße", "STRASSE"), ("17", "\uff11\uff17"), ("17", "17\u200b"), ("a  b", "a b"), ("a\u00a0b", "a b"),
        ("1", "1.0e0"), ("0.1", "1"), ("17", "17\ufe0f"), ("17", "1\u034f7"), ("17", "17\0"), ("17", "\x7f17"),
        ("a", "a\U000e0100"), ("\u00e9", "e\u034f\u0301"), (17, b"17\0"), ("a", "a\ufe0f\u200d"), (-3, "-03"), (0, "0e9"),
    ],
)  # fmt: skip
def test_ids_that_may_or_may_not_be_one_unit_are_refused(one: Any, other: Any) -> None:
    for names in ([one, other], [other, "somebody", one]):
        with pytest.raises(FileContentError, match="may or may not be one unit") as caught:
            slot_map(np.arange(len(names)), names, where="t.csv: column 'pid'")
        assert str(caught.value).startswith("t.csv: column 'pid': ids that may")


def test_ids_of_one_way_of_writing_are_left_in_peace() -> None:
    """Padded numbers, pseudonyms in hexadecimal, numbers of visits, negative ones: all different, none refused."""
    random = np.random.default_rng(1)
    hexadecimal = [random.bytes(6).hex() for _ in range(2000)] + ["12e456789012", "000000000017", "400000000000"]
    for names in (
        [f"{number:04d}" for number in range(2000)],
        hexadecimal,
        [f"{number}/{visit}" for number in range(50) for visit in range(3)],
        [-2, -1, 0, 1, 2, 10, 100],
        ["1e3", "5", "17"],
        ["17.1", "17.2", "18.1"],
        ["1e" + "9" * 5000, "9" * 5000, "a" * 5000],
        ["ann", "bob", "a", "b"],
    ):
        assert slot_map(np.arange(len(names)), names).units == len(names)


@given(st.lists(st.integers(-(10**20), 10**20), unique=True, max_size=30))
def test_whole_numbers_are_never_taken_for_one_another(numbers: list[int]) -> None:
    refuse_mixture([str(number) for number in numbers])
    assert slot_map(np.arange(len(numbers)), [str(number) for number in numbers]).units == len(numbers)


def table(path: Path, ids: Any) -> DataConfig:
    """A table with these ids, in the format of the name."""
    frame = pd.DataFrame({"x": np.arange(len(ids)) * 0.5, "y": 0, "pid": ids})
    columns = ColumnsConfig(target="y", features=("x",), exclude=())
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
        return DataConfig(format="csv", path=str(path), columns=columns, unit="pid")
    if path.suffix == ".parquet":
        frame.to_parquet(path)
        return DataConfig(format="parquet", path=str(path), columns=columns, unit="pid")
    with h5py.File(path, "w") as file:
        file["x"], file["y"], file["pid"] = frame["x"].to_numpy(), frame["y"].to_numpy(), ids
    return DataConfig(format="hdf5", path=str(path), columns=columns, unit="pid")


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".h5"])
def test_the_same_ids_from_every_format_and_type(suffix: str, tmp_path: Path) -> None:
    for name, ids in {"whole": [3, 17, 3], "float": [3.0, 17.0, 3.0], "text": ["3", "17", "3"]}.items():
        data = table(tmp_path / f"{name}{suffix}", ids)
        found = open_reader(data).identifiers("pid", np.arange(3))
        assert [canonical_id(one) for one in found] == ["3", "17", "3"]
        assert slot_map(np.arange(3), found).unit.tolist() == [0, 0, 1]


@pytest.mark.parametrize("suffix", [".parquet", ".h5"])
def test_a_short_float_column_holds_fewer_ids(suffix: str, tmp_path: Path) -> None:
    """In float32, 16,777,216 and 16,777,217 are one number."""
    ids = [16_777_216, 16_777_217, 3]
    for kind, fine in ((np.float32, False), (np.float64, True)):
        data = table(tmp_path / f"{np.dtype(kind).name}{suffix}", np.array(ids, dtype=kind))
        reader = open_reader(data, private=True)
        if fine:
            assert slot_map(np.arange(3), reader.identifiers("pid", np.arange(3))).units == 3
        else:
            with pytest.raises(FileContentError, match="several ids may have become one"):
                slot_map(np.arange(3), reader.identifiers("pid", np.arange(3)))
        assert slot_map(np.arange(1), reader.identifiers("pid", np.array([2]))).units == 1


@pytest.mark.parametrize(
    ("south", "error"),
    [([f" {i}.0" for i in range(5)], UsageError), ([f"0{i}" for i in range(5)], FileContentError)],
)
def test_presence_is_counted_after_the_normalisation(
    south: list[str], error: type[Exception], tmp_path: Path, own_ledger: Path
) -> None:
    """One patient is 3 in the north and "3.0" in the south; "03" nobody can tell."""
    for name, ids in (("north", list(range(5))), ("south", south)):
        Patients.some(5, 1, seed=3).named(ids).write(tmp_path / f"{name}.csv")
    Patients.some(20, 1, seed=1, first=100).write(tmp_path / "public.csv")
    shards = [source(tmp_path / f"{name}.csv", shard=name) for name in ("north", "south")]
    config = config_of(source(tmp_path / "public.csv"), *shards)
    with pytest.raises(error, match=r"privacy.presence = 1|may or may not be one unit"):
        api.fit(config, tmp_path / "out")
    with Ledger.open(own_ledger) as ledger:
        assert ledger.rows() == []
