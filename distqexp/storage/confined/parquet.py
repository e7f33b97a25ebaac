"""Checks, in a process with limits, that the texts of a Parquet file of records can be read without harm.

Numbers need no check: each takes eight bytes, whatever the file says. A text of a few bytes in the file may unpack to
gigabytes.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from distqexp.errors import FileContentError
from distqexp.storage.content import Request

LARGEST_TEXTS = 1 << 30
"""The most bytes of the texts of one column, unpacked."""


def check_texts(file: BinaryIO, request: Request) -> None:
    """Raise FileContentError for a Parquet file whose texts in ``request.columns`` are damaged or unpack to more than a GiB."""
    try:
        # Dictionaries of the file stay dictionaries, so that a text that many rows have is stored once.
        parquet = pyarrow.parquet.ParquetFile(file, read_dictionary=list(request.columns))
        for name in request.columns:
            size = 0
            for group in range(parquet.metadata.num_row_groups):
                table = parquet.read_row_group(group, columns=[name], use_threads=False)
                size += sum(_bytes(chunk) for column in table.columns for chunk in column.chunks)
                if size > LARGEST_TEXTS:
                    raise FileContentError(
                        f"{request.path}: column {name!r} unpacks to more than a GiB of texts; expected numbers or short texts; "
                        "list it in data.*.columns.exclude, or write it anew"
                    )
    except (FileContentError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - whatever the library raises for damage; its texts may hold data
        raise FileContentError(
            f"{request.path}: not a whole Parquet file; expected Parquet; fetch it again or correct data.*.format"
        ) from None


def _bytes(chunk: Any) -> int:
    """Return the bytes that the texts of an array take once they are written out."""
    if not pyarrow.types.is_dictionary(chunk.type):
        return int(chunk.nbytes)
    indices = chunk.indices.drop_null()
    sizes = pyarrow.compute.binary_length(chunk.dictionary).cast(pyarrow.int64()).take(indices)
    return int(pyarrow.compute.sum(sizes).as_py() or 0)
