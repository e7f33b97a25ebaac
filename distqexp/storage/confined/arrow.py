"""Checks, in a process with limits, that an Arrow file of records can be read without harm.

The library believes the offsets that a file gives, unless it is told to compare them with what is there.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import pyarrow
import pyarrow.ipc

from distqexp.errors import FileContentError
from distqexp.storage.content import Request

LARGEST_BATCHES = 1 << 30
GROWTH = 64
"""A file isn't read that unpacks to more than LARGEST_BATCHES bytes and to more than GROWTH times its size."""


def check_batches(file: BinaryIO, request: Request) -> None:
    """Raise FileContentError for a file that isn't an Arrow stream, is damaged, has dictionaries, or unpacks to too much."""
    size = 0
    try:
        with pyarrow.ipc.open_stream(file) as stream:
            if any(_has_dictionary(field.type) for field in stream.schema):
                raise FileContentError(
                    f"{request.path}: has columns of dictionaries; expected plain values; save the dataset anew without"
                )
            for batch in stream:
                batch.validate(full=True)
                size += batch.nbytes
                if size > max(LARGEST_BATCHES, GROWTH * request.length):
                    raise FileContentError(
                        f"{request.path}: unpacks to more than {GROWTH} times its size; expected records; save the dataset anew"
                    )
    except (FileContentError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - whatever the library raises for damage; its texts may hold data
        raise FileContentError(
            f"{request.path}: not a whole Arrow stream; expected what save_to_disk writes; fetch it again or correct data.*.format"
        ) from None


def _has_dictionary(kind: Any) -> bool:
    if pyarrow.types.is_dictionary(kind):
        return True
    return any(_has_dictionary(kind.field(place).type) for place in range(kind.num_fields))
