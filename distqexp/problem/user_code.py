"""What people's own code raises, in one line: its type, its message and their own line. Never for private records."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distqexp.errors import DistqexpError, UsageError

_LONGEST = 400
_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "purelib", "platlib"))
_MACHINERY = (f"{_PACKAGE}{os.sep}", *(f"{path}torch{os.sep}" for path in _LIBRARIES))
"""Where nobody's own code is: in this package and in torch. Models may be in other libraries."""


def is_library_file(file: str) -> bool:
    """Return whether a file of code is one of Python or of an installed library; of this package too."""
    return file.startswith((*_LIBRARIES, f"{_PACKAGE}{os.sep}"))


@contextmanager
def own_code(where: str, remedy: str) -> Iterator[None]:
    """Raise what the code inside raises as a UsageError that shows it as it is.

    Only for code that sees no private record. Errors of distqexp and a lack of memory pass through unchanged.

    Args:
        where: What was being done, for the beginning of the message.
        remedy: What to do, for its end.
    """
    try:
        yield
    except (DistqexpError, MemoryError):
        raise
    except Exception as error:
        raise UsageError(f"{where}: {described(error)}; {remedy}") from error


def imported(name: str, key: str) -> Any:
    """Import what a config calls "package.module:name" under this key of it.

    What it names will run, so a config is as trusted as a script; Python's own library, with its os.system, makes no models.
    Raises UsageError for a name of another form or of that library, or one that can't be imported; a lack of memory passes through
    unchanged.
    """
    package, _, attribute = name.partition(":")
    if not package or not attribute.isidentifier():
        raise UsageError(f'{key}: found {name!r}; expected "package.module:name"')
    if package.partition(".")[0] in sys.stdlib_module_names:
        raise UsageError(
            f"{key}: {name!r} is of Python's own library, which isn't run; expected a torch.nn.Module or a function of your own"
        )
    try:
        return getattr(importlib.import_module(package), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        top = package.partition(".")[0]
        unseen = isinstance(error, ModuleNotFoundError) and error.name == top and Path(f"{top}.py").is_file()
        here = f", or set PYTHONPATH=. for {top}.py of this folder" if unseen else ""
        raise UsageError(
            f"{key}: {name!r} can't be imported ({error}); install the package or correct the name{here}"
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        raise UsageError(f"{key}: {name!r} can't be imported ({described(error)}); correct it") from error


def described(error: Exception) -> str:
    """Return an exception's type and message, and the innermost line outside of libraries that it came from."""
    message = " ".join(str(error).split())
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]} ..."
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    models = [frame for frame in frames if not frame.filename.startswith(_MACHINERY)]
    own = [frame for frame in models if not frame.filename.startswith(_LIBRARIES)]
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return text
    if not frames:
        return text
    frame = (own or models or frames)[-1]
    source = f": {frame.line}" if frame.line else ""
    return f"{text}, at {Path(frame.filename).name}:{frame.lineno} in {frame.name}{source}"
