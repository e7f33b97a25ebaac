"""Whether the script that runs may be imported again by processes that it starts, as those of a local Dask cluster do."""

from __future__ import annotations

import ast
import multiprocessing
import sys
from pathlib import Path
from types import FrameType

from distqexp.errors import UsageError


def refuse_unguarded_main() -> None:
    """Refuse a script that starts processes outside ``if __name__ == "__main__":``.

    Each such process would run the script from its start, and start processes of its own.

    Raises:
        UsageError: The statement of the main script that led here isn't guarded, or this is a process that runs it again.
    """
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    again = getattr(multiprocessing.current_process(), "_inheriting", False)
    if main is None or path is None or (not again and _is_guarded(main.__dict__, Path(path), main.__spec__)):
        return
    raise UsageError(
        f"{path}: found a fit with engine.kind = dask outside the main guard, and each process of the local cluster would run the script "
        'again; expected it inside if __name__ == "__main__":; put it there'
    )


def _is_guarded(names: dict[str, object], path: Path, spec: object) -> bool:
    """Whether nobody runs the statement again: a package's ``__main__`` isn't imported, and an interactive session has no file."""
    line = _line_of(names, sys._getframe())
    if line is None or str(getattr(spec, "name", "")).endswith("__main__"):
        return True
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # no script that can be looked at, such as a compiled one
        return True
    tests = [node for node in ast.walk(tree) if isinstance(node, ast.If) and _names_the_module(node.test)]
    return any(
        node.lineno <= line <= (node.end_lineno or line) or (node.lineno < line and _leaves(node)) for node in tests
    )


def _line_of(names: dict[str, object], frame: FrameType | None) -> int | None:
    """Return the line of the module with these globals that is being run, or None where none is."""
    while frame is not None:
        if frame.f_globals is names and frame.f_code.co_name == "<module>":
            return frame.f_lineno
        frame = frame.f_back
    return None


def _names_the_module(test: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(test))


def _leaves(node: ast.If) -> bool:
    """Whether an ``if`` of any name but __main__ ends the script: its last statement raises, or calls something such as sys.exit."""
    last, others = node.body[-1], isinstance(node.test, ast.Compare) and isinstance(node.test.ops[0], ast.NotEq)
    return others and (isinstance(last, ast.Raise) or (isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)))
