"""``distqexp inspect``: what a file is, for people. Of private files the header only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distqexp.storage.hdf5 import read_file, read_header

MEANINGS = {
    "plan": "every rule of a run, fixed before a private record is read (public)",
    "sketch": "the integer sum of one shard (PRIVATE: as sensitive as the records)",
    "quadratic": "the pooled integer sum of a round (PRIVATE: as sensitive as the records)",
    "release": "a released round (public, as its plan says)",
    "void": "a round that is never released, for the sites to take their charge back (public; not signed yet)",
}
PRIVATE_KINDS = ("sketch", "quadratic")


def describe(path: Path) -> str:
    """A few lines of text: kind, plan, header; names, types and shapes of arrays for public kinds only.

    No array entry and no checksum. Raises what read_file raises.
    """
    stored = read_header(path)
    lines = [
        f"{path}",
        f"  kind            {stored.kind}: {MEANINGS[stored.kind]}",
        f"  plan_id         {stored.plan_id}",
        f"  schema_version  {stored.schema_version}",
        "  header",
    ]
    lines += [f"    {line}" for line in _lines(stored.header)] or ["    (empty)"]
    if stored.kind not in PRIVATE_KINDS:
        lines.append("  arrays")
        for name, array in read_file(path).arrays.items():
            lines.append(f"    {name}: {array.dtype} {tuple(array.shape)}")
    return "\n".join(lines)


def _lines(tree: dict[str, Any], depth: int = 0) -> list[str]:
    lines = []
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            lines.append("  " * depth + f"{name}")
            lines += _lines(value, depth + 1)
        else:
            text = json.dumps(value)
            lines.append("  " * depth + f"{name} = {text if len(text) <= 100 else text[:97] + '...'}")
    return lines
