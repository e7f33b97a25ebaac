"""The tables of a folder, CSV (plain or gzip) or Parquet, as a stream of batches with the needed columns alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from distqexp.errors import FileContentError
from distqexp.problem.readers.base import check_first, require_unchanged, some
from distqexp.problem.readers.entries import MISSING
from distqexp.problem.readers.folders import Folder

Progress = Callable[[float], None]
"""Is told the share of the bytes that were read."""
Tick = Callable[[int], None]
"""Is told how many more bytes of a file were read."""

_BLOCK = 1 << 20
_ROWS = 1 << 17
_HEADER = 1 << 16
_SUFFIXES = (".csv", ".csv.gz", ".parquet")
_NULLS = sorted({form for text in MISSING for form in (text, text.upper(), text.capitalize())} | {"NaN"})


class Stream:
    """One table: a file, or several Parquet files.

    Attributes:
        names: the files, relative to the folder.
        size: their bytes.
        broken: how many lines were no record of the table's width, so far. Private.
    """

    def __init__(self, folder: Folder, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = names
        self.size = sum(folder.files[name][0] for name in names)
        self.broken = 0

    def batches(self, columns: Sequence[str], tick: Tick | None = None) -> Iterator[dict[str, Any]]:
        """Yield the rows, some thousands at a time: an Arrow array for each of ``columns``.

        Raises FileContentError for a file without one of the columns, or a damaged one.
        """
        for name in self.names:
            reader = self._parquet if name.endswith(".parquet") else self._csv
            yield from reader(name, tuple(columns), tick)

    def has(self, column: str) -> bool:
        """Return whether the table has this column."""
        return column in self._header(self.names[0])

    def _csv(self, name: str, columns: Sequence[str], tick: Tick | None) -> Iterator[dict[str, Any]]:
        import pyarrow
        import pyarrow.csv

        self._need(name, columns)

        def skip(row: Any) -> str:
            self.broken += 1
            return "skip"

        convert = pyarrow.csv.ConvertOptions(
            check_utf8=False,
            column_types={column: pyarrow.string() for column in columns},
            include_columns=list(columns),
            null_values=_NULLS,
            strings_can_be_null=True,
        )
        parse = pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip)
        with self.folder.open(name) as file:
            source = pyarrow.PythonFile(_Counted(file, tick), mode="r")
            packed = pyarrow.CompressedInputStream(source, "gzip") if name.endswith(".gz") else source
            try:
                for batch in pyarrow.csv.open_csv(
                    packed, pyarrow.csv.ReadOptions(block_size=_BLOCK), parse_options=parse, convert_options=convert
                ):
                    yield {column: batch.column(column) for column in columns}
            except (pyarrow.ArrowException, OSError, ValueError):  # whose texts hold lines of the file
                raise self._damaged(name) from None

    def _parquet(self, name: str, columns: Sequence[str], tick: Tick | None) -> Iterator[dict[str, Any]]:
        import pyarrow
        import pyarrow.parquet

        self._need(name, columns)
        with self.folder.open(name) as file:
            handle = pyarrow.parquet.ParquetFile(file)
            self._check_types(name, handle.schema_arrow, columns)
            size, groups = self.folder.files[name][0], handle.metadata.num_row_groups
            try:
                for group in range(groups):
                    for batch in handle.iter_batches(_ROWS, [group], columns=list(columns), use_threads=False):
                        yield {column: batch.column(column) for column in columns}
                    if tick is not None:
                        tick(size // groups)
            except (pyarrow.ArrowException, OSError, ValueError):
                raise self._damaged(name) from None

    def _check_types(self, name: str, schema: Any, columns: Sequence[str]) -> None:
        """Refuse columns of lists, and have a process with limits read texts first."""
        import pyarrow

        types = {column: schema.field(column).type for column in columns}
        if lists := [column for column, kind in types.items() if pyarrow.types.is_nested(kind)]:
            raise FileContentError(
                f"{self.folder.path / name}: column {lists[0]!r} holds lists; expected one number or text a row"
            )
        if wordy := sorted(column for column, kind in types.items() if not pyarrow.types.is_primitive(kind)):
            stat = check_first(self.folder.path / name, "texts", tuple(wordy))
            require_unchanged(self.folder.path / name, stat)

    def _need(self, name: str, columns: Sequence[str]) -> None:
        header = self._header(name)
        if absent := [column for column in columns if column not in header]:
            raise FileContentError(
                f"{self.folder.path / name}: no column {some(absent)}; expected {some(columns, 20)}, as MIMIC-IV names them; restore them"
            )

    def _header(self, name: str) -> list[str]:
        import pyarrow
        import pyarrow.parquet

        with self.folder.open(name) as file:
            try:
                if name.endswith(".parquet"):
                    return list(pyarrow.parquet.read_schema(file).names)
                source = pyarrow.PythonFile(file, mode="r")
                packed = pyarrow.CompressedInputStream(source, "gzip") if name.endswith(".gz") else source
                text = packed.read(_HEADER).decode("utf-8-sig", "replace")
            except (pyarrow.ArrowException, OSError, ValueError):
                raise self._damaged(name) from None
        return next(csv.reader(io.StringIO(text)), [])

    def _damaged(self, name: str) -> FileContentError:
        kind = "Parquet" if name.endswith(".parquet") else "CSV with a comma between fields, plain or gzip"
        return FileContentError(f"{self.folder.path / name}: not whole, or not {kind}; expected that; fetch it again")


def table_stream(folder: Folder, table: str) -> Stream:
    """Find a table by the name of its file, or of the folder that holds its Parquet files.

    Raises FileContentError where it isn't there, or is there in several forms.
    """
    found = [name for name in folder.files if _stem(name) == table]
    if not found:
        raise FileContentError(
            f"{folder.path}: no {table}.csv, .csv.gz or .parquet in it; expected that table; give the folder with hosp and icu in it"
        )
    if len(found) > 1 and {_suffix(name) for name in found} != {".parquet"}:
        raise FileContentError(
            f"{folder.path}: {table} is there as {some(found)}; expected it once; move the others out of the folder"
        )
    return Stream(folder, found)


def ticker(total: int, progress: Progress | None) -> Tick | None:
    """Return what turns bytes into the share of ``total`` for ``progress``."""
    if progress is None:
        return None
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        progress(min(done / max(total, 1), 1.0))

    return tick


class _Counted(io.RawIOBase):
    """A file that tells how many bytes are read from it."""

    def __init__(self, file: BinaryIO, tick: Tick | None) -> None:
        self._file = file
        self._tick = tick

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        if self._tick is not None:
            self._tick(len(content))
        return content


def _suffix(name: str) -> str:
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")


def _stem(name: str) -> str:
    """Return the table that a file holds, by its name or by that of its folder; empty for none."""
    suffix = _suffix(name)
    *folders, last = name.split("/")
    if suffix == ".parquet" and len(folders) > 1:  # hosp/labevents/part-0.parquet
        return folders[-1].removesuffix(".parquet")
    return last.removesuffix(suffix) if suffix else ""
