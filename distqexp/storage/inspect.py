"""``distqexp inspect``: a description of a file for people. Of private files it shows the header only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distqexp.errors import UsageError
from distqexp.storage.hdf5 import read_file, read_header
from distqexp.storage.others import describe_other, is_other
from distqexp.storage.texts import printable

_MEANINGS = {
    "plan": "every rule of a run, fixed before a private record is read (public)",
    "sketch": "the integer sum of one shard (PRIVATE: as sensitive as the records)",
    "quadratic": "the pooled integer sum of a round (PRIVATE: as sensitive as the records)",
    "release": "a released round (public, as its plan says)",
    "void": "a round that is never released, for the sites to take their charge back (public; not signed yet)",
}
_PRIVATE_KINDS = ("sketch", "quadratic")


def describe(path: Path) -> str:
    """Return a few lines of text with the kind, the plan, the header, and for public kinds the names and shapes of the arrays.

    They show no entry of an array and no checksum. Of a folder each file of a run is described. Raises what ``read_file`` raises.
    """
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix == ".h5" or is_other(file)]
        if not files:
            raise UsageError(f"{path}: no file of distqexp in it; expected the folder of a run, or one of its files")
        return "\n\n".join(describe(file) for file in files)
    other = describe_other(path)
    if other is not None:
        return "\n".join(printable(line) for line in other)
    file = read_header(path)
    lines = [
        f"{path}",
        f"  kind            {file.kind}: {_MEANINGS[file.kind]}",
        f"  plan_id         {file.plan_id}",
        f"  schema_version  {file.schema_version}",
        "  header",
    ]
    lines += [f"    {line}" for line in _lines(file.header)] or ["    (empty)"]
    if file.kind not in _PRIVATE_KINDS:
        lines.append("  arrays")
        for name, array in read_file(path).arrays.items():
            lines.append(f"    {name}: {array.dtype} {tuple(array.shape)}")
    return "\n".join(printable(line) for line in lines)


def _lines(tree: dict[str, Any], depth: int = 0) -> list[str]:
    """Return the fields of a header, one on each line, indented by their depth."""
    lines = []
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            lines.append("  " * depth + f"{name}")
            lines += _lines(value, depth + 1)
        else:
            text = json.dumps(value)
            lines.append("  " * depth + f"{name} = {text if len(text) <= 100 else text[:97] + '...'}")
    return lines
