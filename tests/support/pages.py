"""Pages of the documentation: their fenced blocks, as files and commands that can be run and as what they should print."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from mpi_harness import REPOSITORY, run_environ

ENVIRONMENT = Path(sys.executable).parent.parent
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', flags=re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\b[0-9a-f]{16,}\b|(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


class Block(NamedTuple):
    """A fenced block: its language, the file that it stands for (or ""), and its text."""

    language: str
    title: str
    text: str


def read(name: str) -> str:
    """The text of a file of the repository."""
    return (REPOSITORY / name).read_text("utf-8")


def script(name: str) -> ModuleType:
    """A program in scripts/, as a module."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def all_blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return [Block(*groups) for groups in BLOCK.findall(read(page))]


def blocks(page: str, language: str) -> list[str]:
    """The texts of the blocks of a language that stand for no file."""
    return [block.text for block in all_blocks(page) if (block.language, block.title) == (language, "")]


def run_shell(script: str, folder: Path, extra: Mapping[str, str] | None = None, first: Path | None = None) -> str:
    """Run shell text, ending at the first failure; returns standard output. first: a folder that comes first in the path."""
    return _run(script, folder, extra, first).stdout


def run_page(page: str, folder: Path, first: Path | None = None) -> str:
    """Write the files of a page into a folder, run its commands there, and return all that was printed."""
    for block in all_blocks(page):
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text, "utf-8")
    done = _run("".join(blocks(page, "sh")), folder, {}, first)
    return done.stdout + done.stderr


def not_printed(page: str, said: str) -> list[str]:
    """The lines of a page's ``text`` blocks that were not printed; numbers may be others, and ``...`` stands for any lines."""
    printed = {NUMBER.sub("0", line.rstrip()) for line in said.splitlines()}
    promised = [line.rstrip() for text in blocks(page, "text") for line in text.splitlines()]
    return [line for line in promised if line not in ("", "...") and NUMBER.sub("0", line) not in printed]


def _run(
    script: str, folder: Path, extra: Mapping[str, str] | None, first: Path | None
) -> subprocess.CompletedProcess[str]:
    path = [*filter(None, [first]), ENVIRONMENT / "bin", os.environ["PATH"]]
    environ = run_environ({"PATH": os.pathsep.join(map(str, path)), **(extra or {})})
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done
