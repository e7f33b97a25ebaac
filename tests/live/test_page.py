"""The page on Python: its programs run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mpi_harness import REPOSITORY

pytestmark = pytest.mark.process


@pytest.mark.parametrize("number", [0, 2])
def test_the_programs_of_the_page_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPOSITORY / "docs" / "python.md").read_text("utf-8")
    programs = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert (
        len(programs) == 3
    )  # the one in the middle needs ranks and a shard for each: tests/live/test_processes.py has it
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(programs[number], "python.md", "exec"), names)
    assert names
    assert (tmp_path / "runs" / "from-python" / "model.json").exists() == (number == 0)
