"""Canonical forms: a JSON tree has one text, and a plan one identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def canonical_json(tree: Any) -> bytes:
    """Return the one ASCII text of a JSON tree: with sorted keys, no spaces, and floats in their shortest exact form.

    Raises ValueError for NaN and infinities, and TypeError for keys that are not texts or values that JSON does not have.
    """
    _check_keys(tree)
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def array_bytes(array: npt.NDArray[Any]) -> memoryview:
    """Return the entries of a boolean or numeric array as little-endian bytes in C order, shared where possible."""
    return np.ascontiguousarray(array, dtype=portable_type(array.dtype)).reshape(-1).view(np.uint8).data


def array_digest(array: npt.NDArray[Any]) -> str:
    """Return the hexadecimal SHA-256 of an array's type, shape and entries (little endian, C order).

    The digest is as sensitive as the array: unless the array is public, it never leaves the file that holds it.
    """
    label = canonical_json([portable_type(array.dtype).str, list(array.shape)])
    digest = hashlib.sha256(label + b"\n")
    digest.update(array_bytes(array))
    return digest.hexdigest()


def portable_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the little-endian form of a boolean, integer or real type. Raises TypeError for any other type."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise TypeError(f"arrays of type {dtype} are not stored; use booleans, integers or floats of at most 8 bytes")
    return dtype.newbyteorder("<")


def plan_identity(tree: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the public plan_id: the hexadecimal SHA-256 of a plan's JSON tree and of the digests of its arrays."""
    return _identity("plan", tree, arrays)


def state_identity(tree: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the identity of a round's state, which its sketches refer to. It is public, as the state is."""
    return _identity("state", tree, arrays)


def _identity(purpose: str, tree: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    digests = {name: array_digest(array) for name, array in arrays.items()}
    text = canonical_json({"tree": tree, "arrays": digests})
    return hashlib.sha256(f"distqexp {purpose}\n".encode() + text).hexdigest()


def _check_keys(tree: Any) -> None:
    if isinstance(tree, dict):
        for name, value in tree.items():
            if not isinstance(name, str):
                raise TypeError(f"the key {name!r} of a JSON tree is not a text")
            _check_keys(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            _check_keys(value)
