"""From the content of a file to what it holds: whatever is wrong with it is one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from distqexp.errors import FileContentError, UsageError

T = TypeVar("T")


def restored(path: Path, build: Callable[[], T]) -> T:
    """What ``build`` makes of the content of ``path``. Raises FileContentError, in one line, for whatever is wrong with it."""
    try:
        return build()
    except (UsageError, FileContentError) as error:  # of a config, a grid or a schema inside the file
        text = str(error).removeprefix(f"{path}: ")
        text = text if text.isprintable() else "unprintable text"
        raise FileContentError(f"{path}: {text if len(text) <= 600 else text[:600] + '...'}") from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, MemoryError) as error:
        what = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else type(error).__name__
        raise FileContentError(
            f"{path}: {what[:100]}; expected the fields of this kind of file: copy it again"
        ) from None


def charged_to_everybody(header: Mapping[str, Any], parts: int) -> bool:
    """The flag of a file. Without parts every charge is everybody's, and no file says so. Raises FileContentError."""
    found = header["everybody"]
    if not isinstance(found, bool) or (found and parts == 1):
        expected = "true or false" if parts > 1 else "false, as the plan has no parts"
        raise FileContentError(f"everybody is {str(found)[:20]}; expected {expected}: get the file again")
    return found
