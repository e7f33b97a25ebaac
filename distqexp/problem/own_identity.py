"""What an object of a script's own is, as a digest: its class, its code and its state. Public, as a model or a loss is.

It stands in the identity of a plan, so that a run isn't gone on with under another loss or another module. The same script gives the
same digest in every process and, where the source is there, under every version of Python. Own code is followed through functions,
classes, closures and constants of its module; that of libraries is known by its name. Where no source is left (an interactive shell),
the compiled code stands for it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sys
import textwrap
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from distqexp.problem.user_code import is_library_file

_DEEPEST = 12
_PLAIN = (int, float, complex, str, bytes, bool, type(None), type(Ellipsis))
_OF_MODULES = ("training", "_is_full_backward_hook", "_compiled_call_impl")
"""What every module has beside its own attributes, hooks aside."""

_WRAPPED = ("func", "args", "keywords", "fget", "fset", "__func__")
"""Where partial functions, properties and the like have what they are made of."""


def identity_of(item: Any, values: bool) -> str:
    """Return 16 hexadecimal digits for an object.

    Args:
        item: A function, a module, or any object.
        values: Whether the values of tensors count, or their shapes and types alone, as of a model whose weights are told elsewhere.
    """
    digest = hashlib.sha256()
    for part in _Walk(values).parts(item, 0):
        content = part.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()[:16]


class _Walk:
    """Goes through an object once, and tells what it meets, in a fixed order."""

    def __init__(self, values: bool) -> None:
        self._values = values
        self._met: dict[int, Any] = {}  # which keeps what it met, so that no number is given twice

    def parts(self, item: Any, depth: int) -> Iterator[str]:
        """Yield texts that tell the object from others."""
        yield f"{type(item).__module__}.{type(item).__qualname__}"
        if isinstance(item, _PLAIN):
            yield repr(item)
        elif id(item) in self._met or depth > _DEEPEST:
            yield "again"
        elif isinstance(item, types.ModuleType):
            yield item.__name__
        else:
            self._met[id(item)] = item
            yield from self._parts(item, depth + 1)

    def _parts(self, item: Any, depth: int) -> Iterator[str]:
        if isinstance(item, torch.Tensor | np.ndarray):
            yield from self._tensor(item)
        elif isinstance(item, Mapping):
            yield from self._pairs(((repr(key), value) for key, value in item.items()), depth)
        elif isinstance(item, list | tuple):
            for entry in item:
                yield from self.parts(entry, depth)
        elif isinstance(item, set | frozenset):
            yield from sorted("".join(_Walk(self._values).parts(entry, depth)) for entry in item)
        elif isinstance(item, type):
            yield from self._class(item, depth)
        elif isinstance(item, types.FunctionType):
            yield from self._function(item, depth)
        elif isinstance(item, types.MethodType):
            yield from self.parts(item.__func__, depth)
            yield from self.parts(item.__self__, depth)
        else:
            yield from self.parts(type(item), depth)
            yield from self._pairs(_state(item), depth)

    def _pairs(self, pairs: Any, depth: int) -> Iterator[str]:
        for name, value in sorted(pairs, key=lambda pair: pair[0]):
            yield name
            yield from self.parts(value, depth)

    def _tensor(self, item: Any) -> Iterator[str]:
        yield f"{tuple(item.shape)} {item.dtype}"
        if self._values and isinstance(item, torch.Tensor):
            yield repr(item.detach().cpu().double().tolist())
        elif self._values:
            yield repr(item.tolist())

    def _class(self, item: type, depth: int) -> Iterator[str]:
        yield f"{item.__module__}.{item.__qualname__}"
        if not _is_own(item):
            return
        for base in item.__bases__:
            yield from self.parts(base, depth)
        own = {name: value for name, value in vars(item).items() if not name.startswith("__") or callable(value)}
        yield from self._pairs(own.items(), depth)

    def _function(self, item: types.FunctionType, depth: int) -> Iterator[str]:
        yield f"{item.__module__}.{item.__qualname__}"
        if not _is_own(item):
            return
        yield from _code(item)
        yield from self.parts(item.__defaults__, depth)
        yield from self.parts(item.__kwdefaults__, depth)
        yield from self._pairs(vars(item).items(), depth)
        cells = zip(item.__code__.co_freevars, item.__closure__ or (), strict=True)
        yield from self._pairs([(name, cell.cell_contents) for name, cell in cells if _is_filled(cell)], depth)
        used = {name for code in _codes(item.__code__) for name in code.co_names}
        found = ((name, item.__globals__[name]) for name in used if name in item.__globals__)
        # Of what a script has beside, code and constants count; its arrays and tables may be private, and no part of the loss.
        known = (*_PLAIN, type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
        yield from self._pairs([(name, value) for name, value in found if isinstance(value, known)], depth)


def _state(item: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of an object; of a module without its hooks."""
    if isinstance(item, torch.jit.ScriptModule):
        yield "code", str(getattr(item, "code", ""))
        yield from ((name, tuple(tensor.shape)) for name, tensor in item.state_dict().items())
        return
    attributes = dict(getattr(item, "__dict__", {}))
    if isinstance(item, functools.partial | property | staticmethod | classmethod):
        attributes |= {name: getattr(item, name) for name in _WRAPPED if hasattr(item, name)}
    if isinstance(item, types.BuiltinFunctionType):
        attributes["name"] = f"{item.__module__}.{item.__qualname__}"
    module = isinstance(item, nn.Module)
    for name, value in attributes.items():
        if not (module and (name in _OF_MODULES or name.endswith("_hooks") or "_hooks_" in name)):
            yield name, value


def _is_own(item: Any) -> bool:
    """Whether code is neither of Python nor of an installed library."""
    module = sys.modules.get(item.__module__ or "")
    file = getattr(module, "__file__", None)
    return item.__module__ != "builtins" and (file is None or not is_library_file(file))


def _code(function: types.FunctionType) -> Iterator[str]:
    """Yield a function's source without comments and layout, or its compiled code where there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError, IndentationError):
        for code in _codes(function.__code__):
            constants = [constant for constant in code.co_consts if not isinstance(constant, types.CodeType)]
            yield repr((code.co_code, constants, code.co_names, code.co_varnames))
        return
    try:
        yield ast.unparse(ast.parse(source))
    except (SyntaxError, ValueError):  # a lambda in the middle of a statement
        yield source


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - which raises for an empty one
    except ValueError:
        return False
    return True
