"""Which tests may start processes: those with the mark ``process``. In the others a file from elsewhere is read in this process."""

from __future__ import annotations

import io
import multiprocessing.process
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pytest

from distqexp.storage.confined import parent
from distqexp.storage.confined.child import send, serve
from distqexp.storage.content import Request


class Processes:
    """What the test that runs now may do."""

    allowed = True

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        confined, start, open_process = (
            parent._child,
            multiprocessing.process.BaseProcess.start,
            subprocess.Popen.__init__,
        )

        def child(task: str, file: BinaryIO, request: Request) -> Any:
            return confined(task, file, request) if self.allowed else _answer(task, file, request)

        def started(process: Any) -> None:
            self._require()
            start(process)

        def opened(process: Any, *arguments: Any, **more: Any) -> None:
            self._require()
            open_process(process, *arguments, **more)

        patch.setattr(parent, "_child", child)
        patch.setattr(multiprocessing.process.BaseProcess, "start", started)
        patch.setattr(subprocess.Popen, "__init__", opened)

    def _require(self) -> None:
        assert self.allowed, "a test that starts processes needs the mark process"


@contextmanager
def _answer(task: str, file: BinaryIO, request: Request) -> Iterator[BinaryIO]:
    """What the confined child would answer, from the same code, without a process and without limits."""
    answer = io.BytesIO()
    send(answer, {"ready": True})
    serve(task, request, file, answer)
    answer.seek(0)
    parent._frame(answer, request)
    yield answer
