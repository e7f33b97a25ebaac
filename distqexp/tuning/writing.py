"""What a search leaves for people: the chosen config as TOML, a table in plain lines, and a plot."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distqexp.config.reading import resolved_path
from distqexp.config.running import LISTS
from distqexp.storage.atomic import write_atomic
from distqexp.tuning.space import Space
from distqexp.tuning.trials import Summary

_LONGEST_TABLE = 10
"""The largest number of settings in the table for people."""
_SOURCES = ("public", "private", "eval")
"""The keys of [data] that name sources."""


def tuned_tree(
    tree: Mapping[str, Any], base: Path, epsilon: float, values: Mapping[str, Any], own_values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the tables of the user's config with ``epsilon`` and the chosen values, without [tune].

    Relative paths become absolute, so that the file may be put anywhere; variables in paths stay.

    Args:
        tree: The tables of the user's config.
        base: The folder that its relative paths start from.
        epsilon: The target.
        values: The chosen value of every tunable key; only those that differ from ``own_values`` are written.
        own_values: The config's own value of every tunable key.
    """
    new_tree: dict[str, Any] = json.loads(json.dumps(tree))
    new_tree.pop("tune", None)
    new_tree["privacy"]["epsilon"] = epsilon
    for name, value in values.items():
        if value == own_values[name]:
            continue
        section = new_tree.setdefault(LISTS[name], {})
        if value is None:
            section.pop(name, None)
        else:
            section[name] = value
    sources = [new_tree["data"].get(name) for name in _SOURCES]
    tables = [table for source in sources for table in (source if isinstance(source, list) else [source]) if table]
    for table in [*tables, new_tree["model"]]:
        for name in ("path", "labels", "blank", "weights"):
            if isinstance(table.get(name), str):
                table[name] = _from_anywhere(table[name], base)
    return new_tree


def to_toml(tree: Mapping[str, Any]) -> str:
    """Write tables of numbers, texts, lists and tables as TOML."""
    return "\n".join(_table(tree, ())).lstrip("\n") + "\n"


def lines_of(summaries: Sequence[Summary], best: Summary, space: Space) -> list[str]:
    """Make a table of the settings, the best first and the chosen one marked.

    Its columns are mean score, standard error, loss, number of seeds, and the keys that vary.
    """
    keys = [name for axis in space.axes for name in axis.keys if any(s.values[name] is not None for s in summaries)]
    leaders = sorted(summaries, key=lambda s: (s.values is best.values, s.seeds, s.mean), reverse=True)[:_LONGEST_TABLE]
    metric = best.runs[0].metric
    head = ["", metric, "error", "loss", "seeds", *keys]
    rows = [head] + [
        [
            "*" if summary.values is best.values else "",
            "diverged" if math.isnan(summary.score) else f"{summary.score:.4f}",
            f"{summary.error:.4f}" if summary.seeds > 1 else "",
            f"{summary.loss:.4f}",
            str(summary.seeds),
            *("" if summary.values[name] is None else f"{summary.values[name]:g}" for name in keys),
        ]
        for summary in leaders
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rest = len(summaries) - len(leaders)
    return lines + ([f"and {rest} more"] if rest else [])


def plot(path: Path, results: Mapping[float, tuple[Sequence[Summary], Summary, float]], space: Space) -> None:
    """Plot the score against each key that varies, in a row for each epsilon.

    Args:
        path: The PNG file to write.
        results: For each epsilon, the settings, the chosen one, and the score of the pretrained model.
        space: The grid of the settings.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    keys = [
        name for axis in space.axes for name in axis.keys if len({v[axis.keys.index(name)] for v in axis.values}) > 1
    ]
    keys = keys or [space.axes[0].keys[0]]
    size = (3 * len(keys) + 1, 2.6 * len(results) + 0.4)
    figure, panels = pyplot.subplots(
        len(results), len(keys), figsize=size, squeeze=False, sharey="row", layout="constrained"
    )
    for row, (epsilon, (summaries, best, before)) in zip(panels, results.items(), strict=True):
        for axis, name in zip(row, keys, strict=True):
            points = [s for s in summaries if math.isfinite(s.mean) and s.values[name] is not None]
            axis.errorbar(
                [s.values[name] for s in points], [s.score for s in points], [s.error for s in points], fmt="o", ms=4
            )
            if best.values[name] is not None:
                axis.plot(best.values[name], best.score, "*", color="black", ms=12, label="chosen")
            axis.axhline(before, color="grey", linestyle=":", label="before")
            axis.set_xlabel(name)
            ticks = sorted({s.values[name] for s in points})
            if ticks and ticks[0] > 0 and ticks[-1] >= 4 * ticks[0]:
                axis.set_xscale("log")
            axis.minorticks_off()
            axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        row[0].set_ylabel(f"{best.runs[0].metric}, epsilon {epsilon:g}")
    panels[0][0].legend(fontsize="small")
    image = io.BytesIO()
    figure.savefig(image, dpi=120, format="png")
    pyplot.close(figure)
    write_atomic(path, image.getvalue())


def _from_anywhere(text: str, base: Path) -> str:
    """Turn a path of the config into one that means the same file from any folder."""
    absolute = resolved_path(text, "path", Path("/"))  # only a relative path depends on the folder
    if absolute == resolved_path(text, "path", Path("/elsewhere")):
        return text
    return os.path.normpath(resolved_path(text, "path", base))


def _table(tree: Mapping[str, Any], above: tuple[str, ...]) -> list[str]:
    """The lines of a table below the tables named ``above``: its plain values first, then its own tables under their headings."""
    plain = {name: value for name, value in tree.items() if value is not None and not _is_tables(value)}
    lines = [f"{_key(name)} = {_value(value)}" for name, value in plain.items()]
    for name, value in tree.items():
        if not _is_tables(value):
            continue
        path = (*above, name)
        dotted = ".".join(map(_key, path))
        for table in value if isinstance(value, list) else [value]:
            lines += ["", f"[[{dotted}]]" if isinstance(value, list) else f"[{dotted}]", *_table(table, path)]
    return lines


def _is_tables(value: Any) -> bool:
    """Tell whether a value gets headings of its own: a table, or a list of nothing but tables."""
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)
    )


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items() if item is not None)
        return f"{{ {inner} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
