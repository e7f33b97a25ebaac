"""From the content of a file to the object that it holds: whatever is wrong with it becomes one line of error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from distqexp.errors import FileContentError, UsageError

T = TypeVar("T")


def with_file_errors(path: Path, build: Callable[[], T]) -> T:
    """Return what ``build`` makes of the content of ``path``, and blame the file for whatever goes wrong.

    Raises FileContentError, in one line that begins with the path.
    """
    try:
        return build()
    except (UsageError, FileContentError) as error:  # from a config, a grid or a schema inside the file
        text = str(error).removeprefix(f"{path}: ")
        text = text if text.isprintable() else "unprintable text"
        raise FileContentError(f"{path}: {text if len(text) <= 600 else text[:600] + '...'}") from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, MemoryError) as error:
        what = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else type(error).__name__
        raise FileContentError(
            f"{path}: {what[:100]}; expected the fields of this kind of file: copy it again"
        ) from None


def everybody_flag(header: Mapping[str, Any], parts: int) -> bool:
    """Return a file's flag ``everybody``: whether its round was charged to everybody although it uses one part's units.

    In a plan without parts every charge is everybody's, and the flag has to be false. Raises FileContentError.
    """
    flag = header["everybody"]
    if not isinstance(flag, bool) or (flag and parts == 1):
        expected = "true or false" if parts > 1 else "false, as the plan has no parts"
        raise FileContentError(f"everybody is {str(flag)[:20]}; expected {expected}: get the file again")
    return flag
