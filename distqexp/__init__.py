"""Differentially private fine-tuning by an exponential mechanism on a distributed local quadratic.

``distqexp.fit`` takes a live module and a script's own records, ``distqexp.load_model`` the folder of a released model. All that the
command line can do is in ``distqexp.api``. Importing this package loads nothing heavy.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distqexp.live import fit, load_model

__version__ = "0.1.0"
__all__ = ["__version__", "fit", "load_model"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: ``fit`` is a module that can be called, see there."""
    if name == "fit":
        return import_module("distqexp.fit")
    if name == "load_model":
        return import_module("distqexp.live").load_model
    if name == "api":
        return import_module("distqexp.api")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "api"]


def _tell_interruption(kind: type[BaseException], error: BaseException, place: Any) -> None:
    """End a command that is interrupted while it imports as one that is interrupted later: with one line and exit code 130."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, place)
        return
    sys.stderr.write("distqexp: interrupted from the keyboard\n")
    sys.stderr.flush()
    os._exit(130)


# ``python -m`` puts its own name in the place of the module's until it has found that, in this package and no other.
if sys.argv[:1] == ["-m"] or os.path.basename((sys.argv or [""])[0]) == "distqexp":
    sys.excepthook = _tell_interruption
    if "distqexp.fit" in sys.orig_argv or sys.argv[1:2] == ["fit"]:
        from distqexp.stopping import leave_in_time

        leave_in_time()
