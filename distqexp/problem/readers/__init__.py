"""Readers of record files, one file for each format: only the rows that are asked for become features."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

from distqexp.config import DataConfig
from distqexp.errors import UsageError
from distqexp.problem.readers.base import Reader
from distqexp.problem.readers.patterns import existing_files, is_pattern

_OTHERS = {
    "npy": ("npy", "NpyReader"),
    "npz": ("npy", "NpzReader"),
    "images": ("image_folder", "ImageFolderReader"),
    "arrow": ("arrow", "ArrowReader"),
    "text": ("text", "TextReader"),
    "mimic-iv": ("clinical.reader", "ClinicalReader"),
    "meds": ("clinical.reader", "ClinicalReader"),
}
"""Module and class of formats whose libraries not every run needs."""

__all__ = ["Reader", "open_reader"]


def open_reader(data: DataConfig, private: bool = False) -> Reader:
    """Open the reader of ``data.format`` on ``data.path``; ``private`` is an attribute of Reader.

    Raises UsageError for a missing path and FileContentError for a damaged file.
    """
    reader = _several(data, private) if is_pattern(data.path) else _reader(data, private)
    reader.private = private
    return reader


def _several(data: DataConfig, private: bool) -> Reader:
    """Open the tables that a pattern names as one."""
    from distqexp.problem.readers.several import SeveralTables
    from distqexp.problem.readers.table import TableReader

    if data.format not in ("csv", "parquet"):
        raise UsageError(
            f"data.path: {data.path} is a pattern, with format {data.format}; expected one file, or csv or parquet"
        )
    readers = [open_reader(replace(data, path=str(path)), private) for path in existing_files(data.path, "data.path")]
    return SeveralTables(data, [reader for reader in readers if isinstance(reader, TableReader)])


def _reader(data: DataConfig, private: bool) -> Reader:
    if data.format == "digits":
        from distqexp.problem.readers.digits import DigitsReader

        return DigitsReader(data)
    if data.format == "idx":
        from distqexp.problem.readers.idx import IdxReader

        return IdxReader(data)
    if data.format == "csv":
        from distqexp.problem.readers.table import CsvReader

        return CsvReader(data, private)
    if data.format == "parquet":
        from distqexp.problem.readers.parquet import ParquetReader

        return ParquetReader(data)
    if data.format == "hdf5":
        from distqexp.problem.readers.hdf5 import Hdf5Reader

        return Hdf5Reader(data)
    if data.format in _OTHERS:
        module, name = _OTHERS[data.format]
        reader: Reader = getattr(import_module(f"distqexp.problem.readers.{module}"), name)(data)
        return reader
    raise UsageError(f"data.format: found {data.format!r}; expected one of those in docs/config.md")
