"""CSV as it comes: separators, decimal commas, packing, UTF-16, line ends. Read right, or refused in one line."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import FileContentError
from distqexp.problem.contents import content_digests
from distqexp.problem.copies import Likeness, likeness
from distqexp.problem.dataset import Dataset, count_units, open_dataset
from distqexp.problem.readers.bytes import ByteSource
from distqexp.problem.readers.table import CsvReader
from distqexp.problem.schema import fit_schema

COLUMNS = ColumnsConfig(target="died", exclude=("note",), standardise=False)
ROWS = 50

PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstandard": lambda content: bytes(pyarrow.compress(content, codec="zstd", asbytes=True)),
}


def table(separator: str = ",", decimal: str = ".", end: str = "\n", note: str = "kept") -> str:
    """Text of a table whose numbers are known."""
    rows = [separator.join(["pid", "age", "dose", "note", "died"])]
    for row in range(ROWS):
        numbers = [f"{row + 0.25:.2f}".replace(".", decimal), f"{-row / 2:.1f}".replace(".", decimal)]
        rows.append(separator.join([f"p{row // 2}", *numbers, note, str(row % 2)]))
    return end.join(rows) + end


def source(path: Path, content: str | bytes, **more: object) -> DataConfig:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return replace(DataConfig(format="csv", path=str(path), columns=COLUMNS, unit="pid"), **more)  # type: ignore[arg-type]


def opened(data: DataConfig, private: bool = False, public: DataConfig | None = None) -> Dataset:
    return open_dataset(data, fit_schema(public or data, loss="binary-cross-entropy"), private=private)


def is_right(dataset: Dataset) -> None:
    slots = dataset.slot_map()
    assert slots.slots == ROWS
    assert slots.units == ROWS // 2
    records = dataset.read(slots.rows)
    assert records.present.all()
    expected = np.stack([np.arange(ROWS) + 0.25, -np.arange(ROWS) / 2], axis=1)
    np.testing.assert_array_equal(records.inputs.numpy(), expected.astype(np.float32))
    assert records.targets.tolist() == [row % 2 for row in range(ROWS)]


@pytest.mark.parametrize("packing", [None, *PACKINGS])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_packing_line_end_and_mark_is_read(tmp_path: Path, packing: str | None, end: str, encoding: str) -> None:
    content = table(end=end).encode(encoding)
    packed = PACKINGS[packing](content) if packing else content
    public = source(tmp_path / "public.csv", table())
    data = source(tmp_path / "t.csv", packed)  # a plain name, whatever is in it
    for private in (False, True):
        dataset = opened(data, private, public)
        is_right(dataset)
        is_right(pickle.loads(pickle.dumps(dataset)))
        dataset.check_whole()
    assert count_units(data) == ROWS // 2


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_public_tables_tell_their_separator_and_decimal_sign(tmp_path: Path, separator: str, decimal: str) -> None:
    if (separator, decimal) == (",", ","):
        content = "\n".join(
            ",".join(f'"{field}"' for field in line.split(";")) for line in table(";", ",").splitlines()
        )
    else:
        content = table(separator, decimal)
    is_right(opened(source(tmp_path / "t.csv", content)))


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_private_entries_are_never_asked_for_the_decimal_sign(tmp_path: Path, separator: str) -> None:
    public = source(tmp_path / "public.csv", table())
    data = source(tmp_path / "private.csv", table(separator, ","))
    with pytest.raises(FileContentError, match='decimal = ","') as caught:
        opened(data, True, public)
    assert "\n" not in str(caught.value)
    is_right(opened(replace(data, decimal=","), True, public))
    same = source(tmp_path / "public.csv", table(separator))
    is_right(opened(source(tmp_path / "private.csv", table(separator)), True, same))


def test_a_private_table_like_a_public_one_with_decimal_commas_must_say_so(tmp_path: Path) -> None:
    public = source(tmp_path / "public.csv", table(";", ","))
    data = source(tmp_path / "private.csv", table(";", ","))
    with pytest.raises(FileContentError, match=r"data\.public is by ';', with decimal ','"):
        opened(data, True, public)
    is_right(opened(replace(data, decimal=","), True, public))
    is_right(opened(data, False, public))  # evaluation records that are public


def test_declared_and_found_separators_that_differ_are_refused(tmp_path: Path) -> None:
    data = source(tmp_path / "t.csv", table(";"), separator=",")
    with pytest.raises(FileContentError, match="separated by ';'"):
        opened(data)
    is_right(opened(replace(data, separator=";")))


def test_names_with_other_separators_in_them_stay_names(tmp_path: Path) -> None:
    content = table().replace("dose", "dose; mg|kg")
    assert opened(source(tmp_path / "t.csv", content)).schema.names == ("age", "dose; mg|kg")
    content = table(";").replace("dose", "dose, mg")
    assert opened(source(tmp_path / "t.csv", content)).schema.names == ("age", "dose, mg")


@pytest.mark.parametrize("entries", [("1,5", "2.5"), ("1,234", "2,345")])
def test_decimal_signs_in_doubt_are_refused(tmp_path: Path, entries: tuple[str, str]) -> None:
    content = "age;died\n" + "\n".join(f"{entry};1" for entry in entries)
    data = DataConfig(format="csv", path=str(tmp_path / "t.csv"), columns=COLUMNS)
    (tmp_path / "t.csv").write_text(content, "utf-8")
    with pytest.raises(FileContentError, match=r"'age'.*data\.\*\.decimal"):
        opened(data)


def test_with_a_decimal_comma_a_point_is_no_number(tmp_path: Path) -> None:
    """1.234 may be a thousand: it is never read as 1.234 in silence."""
    content = table(";", ",").replace("7,25", "1.234")
    data = source(tmp_path / "t.csv", content, decimal=",")
    with pytest.raises(FileContentError, match="'age'"):
        opened(data)
    public = source(tmp_path / "public.csv", table(";", ","))
    records = opened(data, True, public).read(np.arange(ROWS))
    assert (~records.present).nonzero().flatten().tolist() == [7, 17, 27, 37, 47]


def test_letters_of_other_encodings(tmp_path: Path) -> None:
    content = table(note="Jürgen").replace("age", "größe")
    data = source(tmp_path / "t.csv", content.encode("cp1252"))
    with pytest.raises(FileContentError, match=r"not UTF-8.*encoding = \"cp1252\""):
        opened(data)
    declared = replace(data, encoding="cp1252")
    dataset = opened(declared)
    assert dataset.schema.names == ("größe", "dose")
    is_right(dataset)
    plain = source(tmp_path / "private.csv", content)
    with pytest.raises(FileContentError, match="encoding"):
        opened(plain, True, declared)
    is_right(opened(replace(plain, encoding="utf-8"), True, declared))
    assert opened(replace(declared, where="note == 'Jürgen'")).slot_map().slots == ROWS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04 and more", "zip archive or an Excel workbook"),
        (("sep=;\n" + table(";")).encode(), "Excel's note of the separator; .*take the line out"),
        (("# exported\n" + table()).encode(), "its first line is a comment"),
        (b"PAR1 and more", 'format = "parquet"'),
        (b"\x89HDF\r\n\x1a\n", 'format = "hdf5"'),
        (table().encode("utf-16-le"), "UTF-16 without its mark"),
        (table().encode("utf-32"), "UTF-32"),
        (lzma.compress(table().encode())[:-9], "damaged"),
        (bz2.compress(table().encode())[:-9], "damaged"),
        (PACKINGS["zstandard"](table().encode())[:-9], "damaged"),
        (table().encode("utf-16")[:-1], "UTF-16 and ends within a letter"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(FileContentError, match=words) as caught:
        opened(source(tmp_path / "t.csv", content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [2, 3])
def test_an_inch_mark_joins_no_records(tmp_path: Path, rows: int) -> None:
    """It would make one record of two, in silence, where their number is even."""
    lines = ["age,died,note", *(f"{row},1,5' {row}\"" for row in range(rows))]
    data = DataConfig(format="csv", path=str(tmp_path / "t.csv"), columns=COLUMNS)
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n", "utf-8")
    with pytest.raises(FileContentError, match=r"quotation mark inside a field.*quotes = false"):
        opened(data)
    plain = replace(data, quotes=False)
    assert opened(plain).read(np.arange(rows)).inputs.flatten().tolist() == list(range(rows))
    with pytest.raises(FileContentError, match="quotes"):
        opened(data, True, plain)


def test_streams_of_all_packings_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distqexp.problem.readers.bytes._CACHED", 10)
    content = np.random.default_rng(0).bytes(50_000)
    for name, pack in PACKINGS.items():
        (tmp_path / name).write_bytes(pack(content) + pack(b"tail"))
        packed = ByteSource(tmp_path / name)
        for at in (40_000, 3, 49_990, 0):
            assert packed.read(at, 14) == (content + b"tail")[at : at + 14]
        assert packed.holds_exactly(50_004)
        assert not packed.holds_exactly(50_003)


def test_copies_are_noticed_whatever_their_form(tmp_path: Path) -> None:
    one = source(tmp_path / "one.csv", table())
    for number, content in enumerate(
        (table(end="\r").encode(), table().encode("utf-16"), lzma.compress(table().encode()))
    ):
        other = source(tmp_path / f"{number}.csv", content)
        assert likeness(one, other) is Likeness.SAME_ROWS
        assert set(content_digests(one)) & set(content_digests(other))


def test_a_header_alone_reads_as_no_record(tmp_path: Path) -> None:
    reader = CsvReader(source(tmp_path / "t.csv", "pid,age,dose,note,died\r"), private=True)
    assert reader.count == 0
