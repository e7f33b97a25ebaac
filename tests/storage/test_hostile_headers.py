"""Files that are whole and well formed, and say absurd things: a forger's plans, sketches, quadratics and releases."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_files import write_originals

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.sums import Quadratic, Sketch
from distqexp.errors import FileContentError
from distqexp.storage.hdf5 import StoredFile, read_file, write_file

pytestmark = pytest.mark.process

ABSURD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    2**70,
    10**400,
    1e308,
    -1e-320,
    0.5,
    "",
    "x" * 5000,
    "\0",
    "../../etc/passwd",
    [],
    [[]],
    [1e300] * 9,
    {},
    {"a": {"a": {}}},
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    write_originals(folder)
    return folder


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a tree but its root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in items:
        yield (*path, name)
        yield from places(value, (*path, name))


def changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    found = copy.deepcopy(tree)
    at = found
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return found


def forged(stored: StoredFile, count: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Headers with one absurd value, and arrays of other shapes, types and values."""
    random = np.random.default_rng(8)
    where = list(places(stored.header))
    for _ in range(count):
        path, value = where[random.integers(len(where))], ABSURD[random.integers(len(ABSURD))]
        yield changed(stored.header, path, value), stored.arrays
    for name, array in stored.arrays.items():
        full = np.full(array.shape, np.nan) if array.dtype.kind == "f" else np.full(array.shape, -1)
        for other in (full, array[:0] if array.ndim else array.reshape(1), np.zeros((2, 3)), array.astype(np.float16)):
            yield stored.header, stored.arrays | {name: other}
        yield stored.header, {key: value for key, value in stored.arrays.items() if key != name}


@pytest.mark.parametrize("kind", ["plan", "sketch", "quadratic", "release"])
def test_forged_content_is_read_or_refused_in_one_line(originals: Path, tmp_path: Path, kind: str) -> None:
    plan = Plan.read(originals / "original.plan")
    stored = read_file(originals / f"original.{kind}")
    path, outcomes = tmp_path / f"forged.{kind}", Counter[str]()
    readers: dict[str, Callable[[], object]] = {
        "plan": lambda: Plan.read(path),
        "sketch": lambda: Sketch.read(path, plan, own=True),
        "quadratic": lambda: Quadratic.read(path, plan, own=True),
        "release": lambda: Release.read(path, plan),
    }
    with pytest.MonkeyPatch.context() as patch:
        # The child's part is tried elsewhere; here it would only cost time.
        patch.setattr("distqexp.storage.hdf5.read_confined", lambda file, request: _here(file, request))
        for header, arrays in forged(stored, 250):
            write_file(path, kind=kind, plan_id=stored.plan_id, header=header, arrays=arrays, private=True)
            try:
                readers[kind]()
                outcomes["read"] += 1
            except FileContentError as error:
                outcomes["lines" if "\n" in str(error) or len(str(error)) > 3000 else "refused"] += 1
            path.unlink()
    assert outcomes["lines"] == 0
    assert outcomes["refused"] > 20


def _here(file: Any, request: Any) -> Any:
    from distqexp.storage.content import read_content

    return read_content(file, request)
