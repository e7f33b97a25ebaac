"""``distqexp init``: a commented config for public records of any form. No private file is opened."""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distqexp.config import Config, config_from_tree
from distqexp.errors import UsageError
from distqexp.problem.schema import fit_schema
from distqexp.stages.folder import new_file
from distqexp.stages.found import Found, quoted
from distqexp.stages.found_arrays import found_arrays, found_images
from distqexp.stages.found_tables import found_table
from distqexp.storage.atomic import write_atomic

_FORMATS = {".parquet": "parquet", ".npy": "npy", ".npz": "npz", ".h5": "hdf5", ".hdf5": "hdf5"}
_TABLES = ("csv", "parquet", "arrow")


@dataclass(frozen=True)
class Start:
    """What somebody has who writes a first config.

    Attributes:
        table: The public records: a table (CSV, Parquet), arrays (.npy, .npz, .h5), a folder of images, or a saved dataset.
        target: The column or array of the label; None where it has its usual name, or is a subfolder.
        out: The config to write.
        unit: The column or array of the unit ids; None where every record is a unit.
        private: The private records, which need not be there; they are not opened. None: called private, of the same form.
        test: The evaluation records, if any; they are not opened.
        epsilon: The epsilon of the run.
        units: About how many units the private records have; None: as many as the public ones.
        encoding: How letters are stored in tables of text; None for UTF-8, or UTF-16 with its mark.
        tokenizer: The folder of the tokenizer, where a column of texts is what is learnt from.
    """

    table: Path
    target: str | None
    out: Path
    unit: str | None = None
    private: Path | None = None
    test: Path | None = None
    epsilon: float = 1.0
    units: int | None = None
    encoding: str | None = None
    tokenizer: Path | None = None


def write_config(start: Start) -> list[str]:
    """Write the config, and return lines on what was found and what to do next.

    Raises:
        UsageError: A column isn't there, the label can't be learnt, there are no units, or there is something at ``out`` already.
        FileContentError: The public records can't be used.
    """
    new_file(start.out)
    if start.units is not None and start.units < 1:
        raise UsageError(f"--units {start.units}: expected about how many people the private table has, 1 or more")
    found = _found(start)
    base = start.out.absolute().parent
    public = _config(_text(start, found, inputs=1), base).data.public
    schema = fit_schema(public, loss=found.task.loss, record_shape=found.shape)  # type: ignore[arg-type]
    inputs = math.prod(schema.input_shape or (1,))
    text = _text(start, found, inputs=inputs)
    _config(text, base)
    write_atomic(start.out, text.encode())
    unit = (
        f"{found.units:,} units by {start.unit}"
        if start.unit
        else "each row a unit of its own: name a column by --unit if people have several"
    )
    return [
        f"{start.table}: {found.rows:,} rows, {inputs} inputs, {unit}",
        f"{start.target or 'label'}: {found.task.words}: {found.task.loss}",
        *found.remarks,
        *(f"left out: {name}: {reason}" for name, reason in found.left_out.items()),
        f"{start.out}: written; look through it, above all data.private.path, and data.population, which names the people "
        "and not the file",
        *([] if start.units else [_units_line(start, found)]),
        f"next: distqexp check {start.out}   (for whoever may see the private records: which can be used; no other command tells)",
        f"then: distqexp plan {start.out} --out plan.h5   (free of cost)   then: distqexp fit {start.out}",
    ]


def _units_line(start: Start, found: Found) -> str:
    """Return what to correct where nobody said how many people the private records have."""
    return (
        f"correct privacy.units and privacy.delta: {found.units:,} is the number of the public {start.unit or 'record'}s, and delta "
        "follows from it; with a wrong one moves are cut or not made, and paid for (or say it: init --units)"
    )


def _found(start: Start) -> Found:
    """Look at the public records."""
    path = start.table
    if not path.exists():
        raise UsageError(f"TABLE: {path}: no such file or folder; correct the path")
    format = _format(path)
    if start.tokenizer is not None and format not in _TABLES:
        raise UsageError(f"--tokenizer: found with {path}; expected it with a table of texts")
    if start.encoding is not None and format != "csv":
        raise UsageError(f"--encoding: found with {path}; expected it with a CSV file")
    if format in _TABLES:
        return found_table(path, format, start.target, start.unit, start.encoding, start.tokenizer)
    if format == "images":
        return found_images(path, start.target, start.unit)
    return found_arrays(path, format, start.target, start.unit)


def _format(path: Path) -> str:
    if path.is_dir():
        saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
        return "arrow" if saved else "images"
    return _FORMATS.get(path.suffix.lower(), "csv")


def _private(public: Path, format: str) -> Path:
    """Return where the private records may be, here, by a name like that of the public ones."""
    if format == "csv" or public.suffix == ".csv":
        return Path("private.csv")
    if "public" in public.name:
        return Path(public.name.replace("public", "private"))
    return Path("private-x.npy" if format == "npy" else f"private{public.suffix}")


def _config(text: str, base: Path) -> Config:
    return config_from_tree(tomllib.loads(text), base)


def _text(start: Start, found: Found, *, inputs: int) -> str:
    """Return the config as text. Keys whose defaults serve are left out where a config may do without them."""
    head = "".join(_head(start, found, inputs))
    try:
        _config(head, start.out.absolute().parent)
    except UsageError:
        return head + _method(inputs * found.task.outputs)
    return head


def _head(start: Start, found: Found, inputs: int) -> Iterator[str]:
    private = start.private or _private(start.table, found.format)
    units = start.units or found.units
    delta = 10.0 ** -math.ceil(math.log10(units) + 1)
    yield f"# Written by distqexp init from {start.table.name}, which is public. All of this file is public.\n"
    yield "# Every key is in docs/config.md. Plan it first: distqexp plan is free of cost and says what to expect.\n\n"
    yield "[model]\n# The model, and how it is fitted to the public records before the private ones are touched.\n"
    yield f"{found.model(inputs, found.task.outputs)}loss = {quoted(found.task.loss)}\n"
    yield 'pretrain = { epochs = 100, optimiser = "lbfgs", learning_rate = 1.0, weight_decay = 0.01 }\n\n'
    yield "[data]\n# The name that the ledger keeps the budget of these people under: the same in every config about them.\n"
    yield f"population = {quoted(private.name.partition('.')[0] or 'private')}\n"
    if found.shape is not None:
        yield "# The public images have several sizes: all are resized to channels, height and width.\n"
        yield f"record_shape = {list(found.shape)}\n"
    yield "\n"
    if found.left_out:
        yield "# Left out of the features:\n"
        yield "".join(f"#   {' '.join(name.split())}: {reason}\n" for name, reason in found.left_out.items())
    yield from _sources(start, found, private)
    yield "[privacy]\n# What whoever is protected gives away at most: smaller is safer. Below 1 is strong, above 8 weak.\n"
    again = "" if start.units else " It follows from units."
    yield f"epsilon = {start.epsilon!r}\n# Well below 1 / units.{again}\ndelta = {delta!r}\n"
    yield f"# About how many {start.unit or 'record'}s the private table has: a public figure, never counted from it.\n"
    yield "" if start.units else "# This is the number of the public table: correct it.\n"
    yield f"units = {units}\n"


def _sources(start: Start, found: Found, private: Path) -> Iterator[str]:
    base = start.out.absolute().parent
    unit = (
        f"# All rows of one {start.unit} are protected together.\nunit = {quoted(start.unit)}\n" if start.unit else ""
    )
    source = found.source
    if start.tokenizer is not None:
        source = source.replace("{TOKENIZER}", quoted(os.path.relpath(start.tokenizer.absolute(), base)))
    for role, path, words in (
        (
            "public",
            start.table,
            "Public records, like the private ones: what is fitted before, scales, the noise's shape.",
        ),
        ("private", private, "The sensitive records. They have the same form."),
        ("eval", start.test, "Records that metrics are computed on. The guarantee doesn't cover these metrics."),
    ):
        if path is not None:
            place = quoted(os.path.relpath(path.absolute(), base))
            yield f"# {words}\n[data.{role}]\nformat = {quoted(found.format)}\npath = {place}\n{unit}{source}\n"
    if start.test is None:
        yield "# For accuracy before and after, name records that are in neither file: [data.eval], as above.\n\n"


def _method(parameters: int) -> str:
    """Return the method's keys that a config can't do without."""
    dense = (
        '\n[precision]\n# The shape of the noise, from public curvature.\nkind = "dense"\n'
        if parameters <= 2000
        else ""
    )
    return (
        "\n[mechanism]\n# More rounds go further, each with more noise. distqexp tune finds better figures on public records.\n"
        f"rounds = 4\nclip_quantile = 0.8\n{dense}"
    )
