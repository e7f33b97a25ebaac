"""Modules that a script lends to a run: a config names them, and whoever builds the model gets a copy of the object itself.

A config is a text, and a live module is none. The factory ``FACTORY`` stands in a config for a module that this process was lent
under a name; elsewhere that config says whose module is missing. Public: a module is a model with public parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from distqexp.errors import UsageError
from distqexp.problem.own_identity import identity_of

FACTORY = "distqexp.problem.lent:borrow"
"""The factory of a lent module in a config; its argument is the name that ``name_of`` gives."""

_LENT: dict[str, Any] = {}


def name_of(module: nn.Module) -> str:
    """Return a name for a module: its class, and a digest of what it consists of, the same in every process.

    Its code and its attributes count, see ``own_identity``. Values of parameters have no part in it, so that ranks which drew their own
    initial weights agree, and a resumed script too.
    """
    return f"{type(module).__module__}.{type(module).__qualname__}/{identity_of(module, values=False)}"


def lend(name: str, item: Any) -> None:
    """Let this process borrow a module, or a loss, under ``name``, until the process ends."""
    _LENT[name] = item


@contextmanager
def lending(name: str, item: Any) -> Iterator[None]:
    """Lend a module, or a loss, under ``name`` until the end of the block; what was lent under that name before comes back then."""
    before = _LENT.get(name)
    lend(name, item)
    try:
        yield
    finally:
        del _LENT[name]
        if before is not None:
            lend(name, before)


def lent_object(name: str) -> Any:
    """Return what is lent under ``name``, None where there is none."""
    return _LENT.get(name)


def borrow(module: str) -> nn.Module:
    """Return a copy of the module that is lent under this name. Raises UsageError where this process wasn't lent it."""
    own = _LENT.get(module)
    if own is None:
        raise UsageError(
            f"model: {module.partition('/')[0]} was a live module of the script that made the run, and isn't here; expected it as "
            "model=..., such as load_model(folder, model=MyModel())"
        )
    return copied(own)


def copied(module: nn.Module) -> nn.Module:
    """Return a deep copy of a module. Raises UsageError for one that can't be copied."""
    try:
        return copy.deepcopy(module)
    except Exception as error:  # noqa: BLE001 - a module's own __deepcopy__ may raise anything
        raise UsageError(
            f"model: {type(module).__name__} can't be copied ({type(error).__name__}: {' '.join(str(error).split())}); expected a "
            'module for copy.deepcopy, or a factory, "package.module:function"'
        ) from None
