"""The table of stays as a Parquet file, for runs that need not read the whole database again. As private as the database."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from distqexp.errors import FileContentError
from distqexp.problem.readers.base import check_first, facts_of, require_unchanged
from distqexp.problem.readers.clinical.catalogue import COLUMNS, IDS, UNITS, definition
from distqexp.problem.readers.clinical.lenient import NO_ID
from distqexp.problem.readers.clinical.table import StayTable
from distqexp.storage.atomic import write_atomic

_DEFINITION = b"distqexp_definition"
_DIRT = b"distqexp_dirt"


def write_stays(table: StayTable, path: Path) -> None:
    """Write the table to a new file that its owner alone may read (mode 0600). Raises StorageError."""
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, Any] = {}
    for name in COLUMNS:
        if name in IDS:
            columns[name] = pyarrow.array(table.ids[name], mask=table.ids[name] == NO_ID)
        elif name in UNITS:
            columns[name] = pyarrow.array(table.units[name], pyarrow.string())
        else:
            columns[name] = pyarrow.array(table.numbers[name], pyarrow.float64())
    metadata = {_DEFINITION: definition(), _DIRT: json.dumps(table.dirt)}
    whole = pyarrow.table(columns).replace_schema_metadata(metadata)

    def fill(file: BinaryIO) -> None:
        pyarrow.parquet.write_table(whole, file)

    write_atomic(path, fill, private=True)


def read_stays(path: Path) -> StayTable:
    """Read what ``write_stays`` wrote. Raises FileContentError for anything else, and for features of another definition."""
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as file:
            facts = facts_of(os.fstat(file.fileno()))
            schema = pyarrow.parquet.read_schema(file)
            metadata: dict[bytes, bytes] = schema.metadata or {}
            if tuple(schema.names) != COLUMNS or any(pyarrow.types.is_nested(field.type) for field in schema):
                raise _refusal(path)
            if metadata.get(_DEFINITION) != definition().encode():
                raise FileContentError(
                    f"{path}: made by another definition of the features than this version's; make it anew: distqexp stays"
                )
            require_unchanged(path, check_first(path, "texts", UNITS))
            file.seek(0)
            whole = pyarrow.parquet.read_table(file, use_threads=False)
        ids = {name: _numbers(whole, name, pyarrow.int64(), NO_ID).astype(np.int64) for name in IDS}
        units = {name: whole.column(name).to_pylist() for name in UNITS}
        others = [name for name in COLUMNS if name not in (*IDS, *UNITS)]
        numbers = {name: _numbers(whole, name, pyarrow.float64(), np.nan) for name in others}
        dirt = {str(words): int(count) for words, count in json.loads(metadata[_DIRT]).items()}
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, AttributeError):
        raise _refusal(path) from None
    return StayTable(facts, ids, units, numbers, dirt)


def _numbers(whole: Any, name: str, kind: Any, missing: float) -> Any:
    return whole.column(name).cast(kind).fill_null(missing).to_numpy()


def _refusal(path: Path) -> FileContentError:
    return FileContentError(
        f"{path}: not a table of stays; expected a folder of the database, or the Parquet file that distqexp stays made of it"
    )
