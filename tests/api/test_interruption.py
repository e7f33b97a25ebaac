"""A command that is interrupted from the keyboard before its own code runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.process
@pytest.mark.parametrize(
    "words", [("-m", "distqexp.fit"), ("-c", "import sys; sys.argv[0] = 'bin/distqexp'; import distqexp.fit")]
)
def test_an_interruption_while_it_imports_is_one_line(words: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, *words], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "distqexp: interrupted from the keyboard\n")
