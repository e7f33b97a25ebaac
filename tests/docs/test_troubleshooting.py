"""Troubleshooting by message: what the page quotes is what the package says, and some of it is provoked."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from mpi_harness import REPOSITORY
from pages import read
from run_harness import Commands

from distqexp import errors

PAGE = "docs/troubleshooting.md"


def quoted() -> dict[str, str]:
    """The messages of the page, which are headings in code, ``...`` standing for what varies; with the text below each."""
    found = re.findall(r"^### `([^`\n]*)`$\n+(.*?)(?=^#|\Z)", read(PAGE), flags=re.MULTILINE | re.DOTALL)
    assert len(dict(found)) == len(found)
    return dict(found)


def code(text: str) -> int | None:
    """The exit code that the text below a message begins with."""
    found = re.match(r"Exit code (\d+)\. ", text)
    return None if found is None else int(found[1])


def text_of(node: ast.AST) -> str | None:
    """A text of the code, with ``...`` for each value that is put in; None for other code."""
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
        return " ".join("".join(map(str, parts)).split())
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return " ".join(node.value.split())
    return None


def trees() -> Iterator[ast.AST]:
    """Every node of the package's code."""
    for path in sorted((REPOSITORY / "distqexp").rglob("*.py")):
        yield from ast.walk(ast.parse(path.read_text("utf-8")))


def test_every_message_of_the_page_is_one_of_the_package() -> None:
    known = {text for node in trees() if (text := text_of(node))}
    assert len(quoted()) > 30
    assert [message for message in quoted() if not any(message in text for text in known)] == []


def test_the_exit_codes_of_the_page_are_those_of_the_errors() -> None:
    """Where a message stands in a ``raise`` of its own; some are put together elsewhere."""
    codes: dict[str, set[int]] = {message: set() for message in quoted()}
    for node in trees():
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            kind = getattr(errors, node.exc.func.id, None)
            said = [text for part in ast.walk(node) if (text := text_of(part))]
            for message in codes:
                if kind is not None and any(message in text for text in said):
                    codes[message].add(kind.exit_code)
    assert sum(map(len, codes.values())) > 20
    stated = {message: code(text) for message, text in quoted().items()}
    assert {
        message: stated[message] for message, found in codes.items() if found and stated[message] not in found
    } == {}


def test_some_of_them_are_really_said(tmp_path: Path, run: Commands) -> None:
    config = str(REPOSITORY / "configs" / "digits.toml")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("")
    provoked = {
        "unknown; the nearest known key is": ("--set", "privacy.epsilom=1"),
        "expected section.key=value, such as": ("--set", "epsilon"),
        "can't be imported": ("--set", "model.factory=nowhere:net"),
        "match no parameter": ("--set", "model.trainable=['head']"),
        "is out of range; expected": ("--set", "model.args={inputs=64,outputs=1}"),
        "not empty; choose a new folder": ("--out", str(tmp_path / "run")),
    }
    for words, options in provoked.items():
        ((message, text),) = [(message, text) for message, text in quoted().items() if words in message]
        said = run.fit(config, "--out", tmp_path / "new", *options).refused(code(text) or 0)
        pattern = ".*".join(map(re.escape, message.removeprefix("...").split("...")))
        assert re.search(pattern, said), (message, said)
