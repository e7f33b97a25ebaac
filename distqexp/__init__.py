"""Differentially private fine-tuning by an exponential mechanism on a distributed local quadratic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distqexp.api import fit, load_config

__version__ = "0.1.0"
__all__ = ["__version__", "fit", "load_config"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import distqexp` stays light on 64 ranks and in the command line's help.
    if name in ("fit", "load_config"):
        from distqexp import api

        return getattr(api, name)
    raise AttributeError(f"module 'distqexp' has no attribute {name!r}")
