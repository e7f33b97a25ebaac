"""What a search leaves for people: the chosen config as TOML, a table in plain lines, a plot."""

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
from distqexp.config.tuning import LISTS
from distqexp.storage.atomic import write_atomic
from distqexp.tuning.space import Space
from distqexp.tuning.trials import Summary

SHOWN = 10
SOURCES = ("public", "private", "eval")


def tuned_tree(
    tree: Mapping[str, Any], base: Path, epsilon: float, values: Mapping[str, Any], own: Mapping[str, Any]
) -> dict[str, Any]:
    """The tables of the user's config with ``epsilon`` and the chosen values where they differ from its own, without [tune].

    Relative paths, which start from ``base``, become absolute, so that the file may stand anywhere; variables stay.
    """
    found: dict[str, Any] = json.loads(json.dumps(tree))
    found.pop("tune", None)
    found["privacy"]["epsilon"] = epsilon
    for name, value in values.items():
        if value == own[name]:
            continue
        section = found.setdefault(LISTS[name][0], {})
        if value is None:
            section.pop(name, None)
        else:
            section[name] = value
    sources = [found["data"].get(name) for name in SOURCES]
    tables = [table for source in sources for table in (source if isinstance(source, list) else [source]) if table]
    for table in [*tables, found["model"]]:
        for name in ("path", "labels", "blank", "weights"):
            if isinstance(table.get(name), str):
                table[name] = _anywhere(table[name], base)
    return found


def to_toml(tree: Mapping[str, Any]) -> str:
    """Tables of numbers, texts, lists and tables as TOML."""
    return "\n".join(_table(tree, ())).lstrip("\n") + "\n"


def lines_of(summaries: Sequence[Summary], best: Summary, space: Space) -> list[str]:
    """The settings from the best on, the chosen one marked: mean score, standard error, loss, seeds, what varies."""
    keys = [name for axis in space.axes for name in axis.keys if any(s.values[name] is not None for s in summaries)]
    ordered = sorted(summaries, key=lambda s: (s.values is best.values, s.seeds, s.mean), reverse=True)[:SHOWN]
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
        for summary in ordered
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    more = len(summaries) - len(ordered)
    return lines + ([f"and {more} more"] if more else [])


def plot(path: Path, results: Mapping[float, tuple[Sequence[Summary], Summary, float]], space: Space) -> None:
    """The score against each key that varies, a row an epsilon. results: settings, the chosen one, score before."""
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
            shown = [s for s in summaries if math.isfinite(s.mean) and s.values[name] is not None]
            axis.errorbar(
                [s.values[name] for s in shown], [s.score for s in shown], [s.error for s in shown], fmt="o", ms=4
            )
            if best.values[name] is not None:
                axis.plot(best.values[name], best.score, "*", color="black", ms=12, label="chosen")
            axis.axhline(before, color="grey", linestyle=":", label="before")
            axis.set_xlabel(name)
            ticks = sorted({s.values[name] for s in shown})
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


def _anywhere(text: str, base: Path) -> str:
    """A path of the config that means the same file from any folder."""
    absolute = resolved_path(text, "path", Path("/"))  # relative ones alone depend on the folder
    if absolute == resolved_path(text, "path", Path("/elsewhere")):
        return text
    return os.path.normpath(resolved_path(text, "path", base))


def _table(tree: Mapping[str, Any], above: tuple[str, ...]) -> list[str]:
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
    """Whether a value gets headings of its own: a table, or a list of nothing but tables."""
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
