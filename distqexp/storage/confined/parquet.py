"""Parquet files of records: can the texts that are wanted be read without harm? Runs in a process with limits.

A number takes eight bytes, whatever the file says; a text of a few bytes in the file may unpack to gigabytes.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from distqexp.errors import FileContentError
from distqexp.storage.content import Request

LARGEST_TEXTS = 1 << 30
"""Bytes of one column's texts, unpacked."""


def check_texts(file: BinaryIO, request: Request) -> None:
    """Refuse, with FileContentError, a Parquet file whose texts in ``request.columns`` are damaged or unpack to more than a GiB."""
    try:
        # As dictionaries, where the file has such: a text that stands in many rows is held once.
        parquet = pyarrow.parquet.ParquetFile(file, read_dictionary=list(request.columns))
        for name in request.columns:
            size = 0
            for group in range(parquet.metadata.num_row_groups):
                found = parquet.read_row_group(group, columns=[name], use_threads=False)
                size += sum(_bytes(chunk) for column in found.columns for chunk in column.chunks)
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
    """Of the values of an array of texts, once they are written out."""
    if not pyarrow.types.is_dictionary(chunk.type):
        return int(chunk.nbytes)
    used = chunk.indices.drop_null()
    sizes = pyarrow.compute.binary_length(chunk.dictionary).cast(pyarrow.int64()).take(used)
    return int(pyarrow.compute.sum(sizes).as_py() or 0)
