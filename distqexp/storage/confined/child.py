"""The process that reads files from elsewhere: ``python -m distqexp.storage.confined.child TASK REQUEST``.

Standard input is the open file. Standard output is the answer, frame by frame: eight bytes of length, a JSON object, and the
bytes of an array where the object names one. The first frame says that the process has started, the last one how it ended.
Nothing but numpy and the libraries of the formats is imported.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from distqexp.errors import FileContentError
from distqexp.storage.confined.hdf5 import check_structure
from distqexp.storage.content import Request, read_content

MEMORY = 5 << 28
"""The bytes of memory allowed beyond what the interpreter has and ten times the file: 1.25 GiB."""
CPU_SECONDS = 3
"""The seconds of processor time allowed for any file."""
BYTES_A_SECOND = 20 << 20
"""The bytes for which a second more is allowed, much less than can be read and hashed in a second."""


def main() -> None:
    """Serve one request and exit."""
    task, request = sys.argv[1], Request(**json.loads(sys.argv[2]))
    with os.fdopen(0, "rb", closefd=False) as file, os.fdopen(1, "wb", closefd=False) as answer:
        if task == "texts":
            import distqexp.storage.confined.parquet
        if task == "batches":
            import distqexp.storage.confined.arrow  # noqa: F401
        send(answer, {"ready": True})
        set_limits(request.length)
        serve(task, request, file, answer)


def serve(task: str, request: Request, file: BinaryIO, answer: BinaryIO) -> None:
    """Serve one request.

    Args:
        task: "content" (see ``read_content``), "structure" (see ``check_structure``), "texts" (see ``check_texts``) or "batches"
            (see ``check_batches``).
        request: What to read or check.
        file: The open file.
        answer: The stream that the frames go to.
    """
    end: dict[str, Any] = {"end": True}
    try:
        if task == "content":
            for frame, array in read_content(file, request):
                send(answer, frame, array)
        elif task == "structure":
            check_structure(file, request)
        elif task == "batches":
            from distqexp.storage.confined.arrow import check_batches

            check_batches(file, request)
        else:
            from distqexp.storage.confined.parquet import check_texts  # imports a library that HDF5 files don't need

            check_texts(file, request)
    except FileContentError as error:
        end = {"refused": str(error)}
    except MemoryError:
        end = {"refused": f"{request.path}: takes more memory than a file of its size may; it is no honest file"}
    send(answer, end)


def send(answer: BinaryIO, frame: dict[str, Any], array: npt.NDArray[Any] | None = None) -> None:
    """Write one frame to the answer, with the bytes of an array if there is one."""
    text = json.dumps(frame).encode()
    answer.write(struct.pack("<Q", len(text)) + text)
    if array is not None:
        answer.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    answer.flush()


def set_limits(length: int) -> None:
    """Limit this process to what an honest file of ``length`` bytes can need, and to no core file, which would hold content."""
    seconds = CPU_SECONDS + length // BYTES_A_SECOND
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, seconds)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY + 10 * length)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, hard))


if __name__ == "__main__":
    main()
