"""The house stays one: short files, short functions, tests in the rooms that they test."""

from __future__ import annotations

import ast
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def sources(*folders: str) -> list[Path]:
    """All Python files in these folders of the repository."""
    files = sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))
    assert files
    return files


def test_no_file_has_more_than_400_lines() -> None:
    lengths = {
        path.relative_to(REPOSITORY): len(path.read_text("utf-8").splitlines())
        for path in sources("distqexp", "tests", "scripts", "jobs")
    }
    assert {str(path): length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_function_of_the_package_has_more_than_60_lines_without_its_docstring() -> None:
    long = {}
    for path in sources("distqexp"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                length = (node.end_lineno or 0) - first.lineno + 1
                if length > LONGEST_FUNCTION:
                    long[f"{path.relative_to(REPOSITORY)}: {node.name}"] = length
    assert long == {}


def test_helpers_of_the_tests_are_used() -> None:
    """A helper that no test imports, by itself or through another helper, is dead."""
    support = REPOSITORY / "tests" / "support"
    texts = {path: path.read_text("utf-8") for path in sources("tests", "scripts")}
    for helper in support.glob("*.py"):
        users = [path for path, text in texts.items() if path != helper and helper.stem in text]
        assert users, helper.name
