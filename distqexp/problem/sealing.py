"""Modules forget: what a pass changes in a module, or in a loss of somebody's own, is put back when the pass ends.

Else a record would reach later ones, and files, through a buffer or an attribute that keeps something of it. Kept are parameters,
buffers, plain attributes and whatever hangs on them: containers, arrays, objects, closures, generators of random numbers. State outside
of the module (globals, files, attributes of classes) is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from distqexp.problem.snapshots import Origin, Snapshot


class Seal:
    """Puts the state of some objects back after each pass through them.

    Args:
        roots: The modules, or other objects, whose state is kept.

    Attributes:
        origins: Of tensors by ``id``, the version at which one has the values of an array elsewhere, and that array. It serves as the
            copy of a large tensor, so that none is made.
    """

    def __init__(self, *roots: object) -> None:
        self._roots = roots
        self._latest: Snapshot | None = None
        self._active: list[Snapshot] = []
        self._renewed = False
        self.origins: dict[int, Origin] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_roots": self._roots, "_latest": None, "_active": [], "_renewed": False, "origins": {}}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever changes inside is afterwards as it was before."""
        snapshot = self._snapshot()
        self._active.append(snapshot)
        try:
            yield
        finally:
            self._active.pop()
            snapshot.restore()

    @contextmanager
    def anew(self) -> Iterator[None]:
        """Inside a pass: the state inside is that from before the pass, and afterwards it is as the pass had left it."""
        if not self._active or self._active[-1].unchanged():
            with self.kept():
                yield
            return
        first, middle = self._active[-1], Snapshot(self._roots, self.origins)
        first.restore()
        try:
            yield
        finally:
            middle.restore()

    def _snapshot(self) -> Snapshot:
        """Return the last snapshot as long as nothing has changed since, as is usual, and else a new one."""
        if self._latest is None or self._renewed or not self._latest.unchanged(bits=False):
            self._latest = Snapshot(self._roots, self.origins, self._latest)
            self._renewed = False
        return self._latest

    def renew(self) -> None:
        """Look at every tensor anew before the next pass: somebody may have written past torch's counters of changes."""
        self._renewed = True

    def forget(self) -> None:
        """Let go of the copies of tensors, which are about to get other values; not inside a pass, which needs them."""
        if not self._active:
            self._latest = None
        self._renewed = True

    def came_from(self, tensor: torch.Tensor, values: Any) -> None:
        """Note that a tensor has just been given the values of an array, which nobody will change."""
        self.origins[id(tensor)] = Origin(tensor._version, values)


__all__ = ["Seal"]
