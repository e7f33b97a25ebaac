"""A snapshot of the state of modules and other objects: what they hold, and copies of the numbers. As private as what they hold."""

from __future__ import annotations

import random
import sys
import types
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from distqexp.problem.tensor_states import Origin, TensorStates

_HOOKS = frozenset(nn.Module().__dict__) - {"training", "_parameters", "_buffers", "_modules"}
"""What torch itself keeps in a module: hooks that come and go with a pass are nobody's state."""

_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, type, range, slice, types.ModuleType, types.BuiltinFunctionType, torch.dtype,
    torch.device, torch.Size,
)  # fmt: skip
_CONTAINERS = ("builtins", "collections", "types")


class _Held(NamedTuple):
    """What a container held: ``now`` shows what it holds now, ``put`` puts the values back."""

    now: Collection[Any]
    values: tuple[Any, ...]
    put: Callable[[], None]


class Snapshot:
    """The state of some objects, found by walking from them through attributes and containers.

    Args:
        roots: Where the walk begins.
        origins: Of some tensors by ``id``, where their values came from.
        earlier: An earlier snapshot, whose copies of tensors that have not changed since are used again.
    """

    def __init__(self, roots: Sequence[object], origins: dict[int, Origin], earlier: Snapshot | None = None) -> None:
        self._seen: dict[int, object] = {}  # the objects themselves too, so that no id is used again
        self._held: list[_Held] = []
        self._states: list[tuple[Callable[[], Any], Any, Callable[[], None]]] = []
        self.tensors = TensorStates(origins, earlier.tensors if earlier else None)
        waiting: list[object] = list(roots)
        while waiting:
            item = waiting.pop()
            if isinstance(item, _PLAIN) or id(item) in self._seen:
                continue
            self._seen[id(item)] = item
            waiting.extend(self._enter(item))
        self._views = [held.now for held in self._held]
        self._values = tuple(chain.from_iterable(held.values for held in self._held))
        self.tensors.copy()

    def unchanged(self, bits: bool = True) -> bool:
        """Return whether all is as it was; without ``bits`` tensors are looked at by torch's counters of changes alone."""
        return (
            self._same_objects()
            and all(_equal(now(), value) for now, value, _ in self._states)
            and self.tensors.unchanged(bits)
        )

    def restore(self) -> None:
        """Put back what has changed."""
        if not self._same_objects():
            for now, values, put in self._held:
                if len(now) != len(values) or not all(map(is_, now, values)):
                    put()
        for now, value, put in self._states:
            if not _equal(now(), value):
                put()
        self.tensors.restore()

    def _same_objects(self) -> bool:
        """Return whether every container holds the very objects that it held; a pass of a small model allows some microseconds for it."""
        values = self._values
        return sum(map(len, self._views)) == len(values) and all(map(is_, chain.from_iterable(self._views), values))

    def _enter(self, item: Any) -> Sequence[object]:
        """Note what an object holds, and return it."""
        if isinstance(item, torch.Tensor):
            self.tensors.add(item)
            return ()
        if isinstance(item, torch.jit.ScriptModule):
            return self._enter_script(item)
        if isinstance(item, nn.Module):
            return self._enter_module(item)
        if isinstance(item, dict | list | deque | set | bytearray | tuple | frozenset | np.ndarray):
            more = self._hold_dict(item.__dict__).values() if getattr(item, "__dict__", None) else ()
            return [*self._enter_container(item), *more]
        if isinstance(item, types.MethodType | types.FunctionType | partial):
            return self._enter_function(item)
        return self._enter_object(item)

    def _enter_module(self, module: nn.Module) -> Sequence[object]:
        """Hooks come and go with a pass: what hangs on those that are there is kept, but not which are there."""
        values: list[object] = []
        for name, value in self._hold_dict(module.__dict__).items():
            if name not in _HOOKS:
                values.append(value)
            elif isinstance(value, dict):
                values.extend(value.values())
        return values

    def _enter_container(self, item: Any) -> Sequence[object]:
        if isinstance(item, dict):
            return list(self._hold_dict(item).values())
        if isinstance(item, list | deque):
            return self._hold_sequence(item)
        return list(item) if isinstance(item, tuple | frozenset) else self._hold_copy(item)

    def _hold_dict(self, own: dict[Any, Any]) -> dict[Any, Any]:
        copy = dict(own)

        def put() -> None:
            own.clear()
            own.update(copy)

        self._held.append(_Held(own.values(), tuple(copy.values()), put))
        return copy

    def _hold_sequence(self, own: list[Any] | deque[Any]) -> Sequence[object]:
        copy = tuple(own)

        def put() -> None:
            own.clear()
            own.extend(copy)

        self._held.append(_Held(own, copy, put))
        return copy

    def _hold_copy(self, own: Any) -> Sequence[object]:
        if isinstance(own, np.ndarray):
            copy = own.copy()
            if own.flags.writeable:
                self._states.append((own.tobytes, copy.tobytes(), partial(np.copyto, own, copy)))
            return list(own.flat) if own.dtype == object else ()
        saved = own.copy()

        def put() -> None:
            own.clear()
            own.update(saved) if isinstance(own, set) else own.extend(saved)

        self._states.append((lambda: own, saved, put))
        return ()

    def _enter_script(self, module: torch.jit.ScriptModule) -> Sequence[object]:
        """TorchScript keeps attributes out of Python: they come as copies, but for tensors."""
        script: Any = module
        values: list[object] = [*module.parameters(), *module.buffers(), *module.children()]
        for name in script._concrete_type.get_attributes():
            value = script._c.getattr(name)
            if isinstance(value, torch.Tensor):
                values.append(value)
            elif isinstance(value, bool | int | float | str | list | dict | tuple):
                get, put = script._c.getattr, partial(script._c.setattr, name, value)
                self._states.append((partial(get, name), value, put))
        return values

    def _enter_function(self, item: Any) -> Sequence[object]:
        """Note what hangs on a function: its attributes, mutable defaults, and the variables that it shares with its surroundings."""
        if isinstance(item, types.MethodType):
            return [item.__self__, item.__func__]
        if isinstance(item, partial):
            return [item.func, *item.args, *item.keywords.values()]
        if _is_ours(item):
            return ()
        cells = [cell for cell in item.__closure__ or () if _filled(cell)]
        for cell in cells:
            self._hold_attribute(cell, "cell_contents")
        own = self._hold_dict(item.__dict__) if item.__dict__ else {}
        return [*own.values(), *(cell.cell_contents for cell in cells), *(item.__defaults__ or ())]

    def _enter_object(self, item: Any) -> Sequence[object]:
        generator = _generator(item)
        if generator is not None:
            self._states.append(generator)
            return ()
        top = type(item).__module__.partition(".")[0]
        if (top in sys.stdlib_module_names and top not in _CONTAINERS) or _is_ours(type(item)):
            return ()  # locks, loggers, paths: shared with others
        values: list[object] = []
        if isinstance(getattr(item, "__dict__", None), dict):
            values += self._hold_dict(item.__dict__).values()
        names = [name for kind in type(item).__mro__ for name in _slots(kind) if hasattr(item, name)]
        return values + [self._hold_attribute(item, name) for name in names]

    def _hold_attribute(self, item: Any, name: str) -> object:
        value = getattr(item, name)
        self._states.append((lambda: getattr(item, name, _Gone), _Same(value), partial(setattr, item, name, value)))
        return value


def _is_ours(item: Any) -> bool:
    """Return whether a function or class is of this package, whose state is no module's."""
    return str(item.__module__).startswith("distqexp.")


class _Gone:
    """What stands for an attribute that isn't there any more."""


@dataclass(frozen=True)
class _Same:
    """Stands for one object, and is equal to nothing else."""

    item: object


def _generator(item: Any) -> tuple[Callable[[], Any], Any, Callable[[], None]] | None:
    """Return how the state of a generator of random numbers is had and set; None for anything else."""
    if isinstance(item, torch.Generator):
        state = item.get_state()
        return item.get_state, state, partial(item.set_state, state)
    if isinstance(item, random.Random):
        return item.getstate, item.getstate(), partial(item.setstate, item.getstate())
    if isinstance(item, np.random.Generator):
        bits: Any = item.bit_generator
        return lambda: bits.state, bits.state, partial(setattr, bits, "state", bits.state)
    if isinstance(item, np.random.RandomState):
        start: Any = item.get_state(legacy=False)
        return lambda: item.get_state(legacy=False), start, partial(item.set_state, start)
    return None


def _equal(one: Any, other: Any) -> bool:
    if isinstance(other, _Same):
        return one is other.item
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return one.tobytes() == other.tobytes()
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001 - somebody's own type
        return False


def _slots(kind: type) -> Sequence[str]:
    names = kind.__dict__.get("__slots__", ())
    names = (names,) if isinstance(names, str) else tuple(names)
    return [name for name in names if name not in ("__dict__", "__weakref__") and not name.startswith("__")]


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


__all__ = ["Origin", "Snapshot"]
