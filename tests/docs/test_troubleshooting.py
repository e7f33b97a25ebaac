"""Troubleshooting by message: what the page quotes is what the package says, and some of it is provoked."""

from __future__ import annotations

import ast
import re

import pytest
from mpi_harness import REPOSITORY
from pages import read
from run_harness import Commands

PAGE = "docs/troubleshooting.md"


def quoted() -> list[str]:
    """The messages of the page: headings that are code, ``...`` standing for what varies."""
    return re.findall(r"^### `(.*)`$", read(PAGE), flags=re.MULTILINE)


def plain(text: str) -> str:
    """A message with one form of blanks and of what varies."""
    return " ".join(text.split())


def templates() -> list[str]:
    """Every text of the package's code, joined as Python joins them, with ``...`` for each value that is put in."""
    found = []
    for path in (REPOSITORY / "distqexp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                found.append(plain("".join(map(str, parts))))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(plain(node.value))
    return found


def test_every_message_of_the_page_is_one_of_the_package() -> None:
    messages, known = quoted(), templates()
    assert len(messages) > 30
    assert len(set(messages)) == len(messages)
    assert [message for message in messages if not any(message in text for text in known)] == []


if __name__ == "__main__":
    print("\n".join(sorted(set(t for t in templates() if ("expected" in t or ";" in t) and len(t) > 30))))
