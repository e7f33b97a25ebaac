"""Canonical forms: one tree, one text; one plan, one identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def canonical_json(tree: Any) -> bytes:
    """The one ASCII text of a JSON tree: keys sorted, no spaces, floats by their shortest exact form.

    Raises ValueError for NaN and infinities, TypeError for keys that are not texts and values that JSON
    does not have.
    """
    _check_keys(tree)
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def array_bytes(array: npt.NDArray[Any]) -> bytes:
    """The entries of a boolean or numeric array, little endian, in C order."""
    return np.ascontiguousarray(array, dtype=portable_type(array.dtype)).tobytes()


def array_digest(array: npt.NDArray[Any]) -> str:
    """Hexadecimal SHA-256 of type, shape and entries (little endian, C order).

    As sensitive as the array itself: it never leaves the file that holds the array, unless that is public.
    """
    label = canonical_json([portable_type(array.dtype).str, list(array.shape)])
    return hashlib.sha256(label + b"\n" + array_bytes(array)).hexdigest()


def portable_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The little-endian form of a boolean, integer or real type. Raises TypeError for any other."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise TypeError(f"arrays of type {dtype} are not stored; use booleans, integers or floats of at most 8 bytes")
    return dtype.newbyteorder("<")


def plan_identity(tree: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """The plan_id: hexadecimal SHA-256 of a plan's JSON tree and of the digests of its arrays. Public."""
    return _identity("plan", tree, arrays)


def state_identity(tree: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """The identity of a round's state: what its sketches were made at. Public, as the state is."""
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
