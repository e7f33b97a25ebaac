"""Private files with bad records of every kind and format, each beside the rule that it breaks."""

from __future__ import annotations

import datetime
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
from image_folders import BAD, picture
from token_files import LENGTH, VOCABULARY, random_tokens

from distqexp.problem.faults import Fault

ROWS = 60
HEADER = b"patient,ward,age,dose,died\n"


@dataclass(frozen=True)
class Spoiled:
    """A config's data.private entry, and which row of its file breaks which rule (the others break none)."""

    source: dict[str, Any]
    faults: dict[int, Fault]
    unselected: tuple[int, ...] = ()

    def blank(self, folder: Path) -> str:
        """A mask of the bad rows."""
        np.save(folder / "blank.npy", np.isin(np.arange(ROWS), list(self.faults)))
        return str(folder / "blank.npy")


def good_cells(row: int) -> list[bytes]:
    """Patient, ward, age, dose and label of a good row."""
    random = np.random.default_rng(row)
    age, dose = random.normal(size=2)
    label = int(age + dose + 0.5 * random.normal() > 0)
    return [b"p%d" % row, b"north", f"{age:.6g}".encode(), f"{dose:.6g}".encode(), str(label).encode()]


CELLS: tuple[tuple[int, bytes, Fault], ...] = (
    *((4, text, Fault.LABEL_OUT_OF_RANGE) for text in (b"2", b"-1", b"0.5", b"1e300", b"-1e300", b"inf", b"1e999")),
    *((4, text, Fault.UNREADABLE) for text in (b"yes", b"1_0", b"\xff", b'"1', b"0x1", b"1970-13-45")),
    *((4, text, Fault.LABEL_MISSING) for text in (b"", b"NaN", b"none", b" ")),
    *((2, text, Fault.UNREADABLE) for text in (b"tall", b"1_000", b"0x1f", b"1\xff", b"12 mg", b"2024-02-30", b"\0", b"--1")),
    *((2, text, Fault.NOT_FINITE) for text in (b"inf", b"-Infinity", b"1e999", b"-1e39", b"3.5e38")),
    *((0, text, Fault.NO_UNIT) for text in (b"", b" ", b"NA", b"null", b"p\xff\xfe")),
)  # fmt: skip
"""Column, content and the rule it breaks."""


def csv_table(folder: Path) -> Spoiled:
    """CSV: cells of all kinds, and records that csv takes for others than their quotes say."""
    rows = [good_cells(row) for row in range(ROWS)]
    faults = {}
    for place, (column, content, fault) in enumerate(CELLS):
        row = 1 + place
        rows[row][column] = content if content != b'"1' else b'"1"1'
        faults[row] = fault if content != b'"1' else Fault.NO_UNIT  # no record at all, so nobody's
    lines = [b",".join(row) for row in rows]
    last = 2 + len(CELLS)
    lines[last] = b'p%d,a"1,1"b"2,",0,1,1' % last  # a parser of the whole file would swallow the next record
    lines[last + 1] = b'p%d,north,0"x,y"0,1,1' % (last + 1)  # one field or two
    lines[last + 2] = b"p%d,nor\rth,0,1,1" % (last + 2)  # one record or two
    lines[last + 3] = b"p%d,%s,0,1,1" % (last + 3, b"x" * 140_000)  # longer than any field may be
    faults |= {last + place: Fault.NO_UNIT for place in range(4)}
    (folder / "private.csv").write_bytes(HEADER + b"\n".join(lines) + b"\n")
    columns = {"target": "died", "exclude": ["ward"]}
    return Spoiled(
        {"format": "csv", "path": str(folder / "private.csv"), "unit": "patient", "columns": columns}, faults
    )


def public_table(folder: Path) -> dict[str, Any]:
    """Public records of the same columns."""
    lines = [b",".join(good_cells(row)) for row in range(1000, 1060)]
    (folder / "public.csv").write_bytes(HEADER + b"\n".join(lines) + b"\n")
    columns = {"target": "died", "exclude": ["ward"]}
    return {"format": "csv", "path": str(folder / "public.csv"), "unit": "patient", "columns": columns}


def parquet_table(folder: Path) -> Spoiled:
    """Parquet: columns of texts with a few that are no numbers, nulls, and bytes that are no UTF-8."""
    rows = [[cell.decode() for cell in good_cells(row)] for row in range(ROWS)]
    content: list[list[bytes | None]] = [[cell.encode() for cell in row] for row in rows]
    faults = {}
    for place, (column, text, fault) in enumerate(CELLS):
        content[1 + place][column] = text
        faults[1 + place] = fault
    last = 1 + len(CELLS)
    content[last][4], faults[last] = None, Fault.LABEL_MISSING
    content[last + 1][0], faults[last + 1] = None, Fault.NO_UNIT
    columns = [pyarrow.array([row[at] for row in content], pyarrow.binary()) for at in range(5)]
    # As texts without a look at their bytes, as a careless writer makes them.
    texts = [pyarrow.Array.from_buffers(pyarrow.string(), ROWS, column.buffers()) for column in columns]
    table = pyarrow.table(dict(zip(HEADER.decode().strip().split(","), texts, strict=True)))
    pyarrow.parquet.write_table(table, folder / "private.parquet", row_group_size=17, write_statistics=False)
    roles = {"target": "died", "exclude": ["ward"]}
    source = {"format": "parquet", "path": str(folder / "private.parquet"), "unit": "patient", "columns": roles}
    return Spoiled(source, faults)


def parquet_numbers(folder: Path) -> Spoiled:
    """Parquet: columns of numbers with nulls, infinities, and ids that are dates beyond Python's."""
    good = [good_cells(row) for row in range(ROWS)]
    age, dose, died = (np.array([float(row[at]) for row in good]) for at in (2, 3, 4))
    age[[3, 4]], dose[5], died[[6, 7, 8, 9]] = (np.inf, 1e39), -np.inf, (2, -1, 0.5, np.nan)
    day = 86_400
    ids = np.array([int(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC).timestamp()) + day * n for n in range(ROWS)])
    ids[10] = 2**50
    faults = dict.fromkeys((3, 4, 5), Fault.NOT_FINITE) | dict.fromkeys((6, 7, 8), Fault.LABEL_OUT_OF_RANGE)
    faults |= {9: Fault.LABEL_MISSING, 10: Fault.NO_UNIT}
    table = pyarrow.table({
        "patient": pyarrow.array(ids, pyarrow.timestamp("s")), "ward": ["north"] * ROWS,
        "age": age, "dose": dose, "died": died,
    })  # fmt: skip
    pyarrow.parquet.write_table(table, folder / "private.parquet", row_group_size=25)
    roles = {"target": "died", "exclude": ["ward"]}
    source = {"format": "parquet", "path": str(folder / "private.parquet"), "unit": "patient", "columns": roles}
    return Spoiled(source, faults)


def hdf5_arrays(folder: Path, spoil: bool = True, name: str = "private.h5") -> Spoiled:
    """HDF5: labels and features of several kinds of numbers, ids that are texts. Public records with ``spoil`` false."""
    random = np.random.default_rng(int(spoil))
    x, y = random.normal(size=(ROWS, 4)), random.integers(0, 3, ROWS).astype(np.float64)
    ids = np.array([f"p{row}".encode() for row in range(ROWS)], dtype=object)
    faults = {}
    if spoil:
        bad = (3, -1, 0.5, 1e300, -(2.0**70), math.inf, math.nan)
        y[3 : 3 + len(bad)] = bad
        faults |= dict.fromkeys(range(3, 9), Fault.LABEL_OUT_OF_RANGE) | {9: Fault.LABEL_MISSING}
        x[10, 0], x[11, 3], x[12, 1] = np.inf, -np.inf, 1e39
        ids[13], ids[14] = b"", b"NaN"
        faults |= dict.fromkeys((10, 11, 12), Fault.NOT_FINITE) | dict.fromkeys((13, 14), Fault.NO_UNIT)
    with h5py.File(folder / name, "w") as file:
        file.create_dataset("x", data=x, chunks=(7, 4), compression="gzip")
        file["y"], file["u"] = y, ids
    columns = {"features": ["x"], "target": "y"}
    return Spoiled({"format": "hdf5", "path": str(folder / name), "unit": "u", "columns": columns}, faults)


def regression_arrays(folder: Path, spoil: bool = True, name: str = "private.h5") -> Spoiled:
    """HDF5: two targets a record, of which one may be beyond float32 or infinite; two records a unit."""
    random = np.random.default_rng(int(spoil))
    x, y = random.normal(size=(ROWS, 4)), random.normal(size=(ROWS, 2))
    faults = {}
    if spoil:
        y[3, 1], y[4, 0], y[6], y[20, 0] = np.inf, 3.5e38, -1e300, np.nan
        faults = dict.fromkeys((3, 4, 6), Fault.NOT_FINITE) | {20: Fault.LABEL_MISSING}
    with h5py.File(folder / name, "w") as file:
        file["x"], file["y"], file["u"] = x, y, np.arange(ROWS) // 2
    columns = {"features": ["x"], "target": "y"}
    return Spoiled({"format": "hdf5", "path": str(folder / name), "unit": "u", "columns": columns}, faults)


def token_arrays(folder: Path, spoil: bool = True, name: str = "private.h5") -> Spoiled:
    """HDF5: tokens out of the vocabulary, masks of other entries, records without a token, labels without a class."""
    tokens, mask, labels = random_tokens(ROWS, int(spoil))
    seen, faults = mask.astype(np.float64), {}
    if spoil:
        for row, token in ((2, -1), (3, VOCABULARY), (4, 2**62), (5, -(2**63)), (6, 2**63 - 1)):
            tokens[row, 1], faults[row] = token, Fault.TOKEN_OUT_OF_RANGE
        for row, entry in ((7, 2.0), (8, -1.0), (9, 0.5), (10, np.nan), (11, np.inf)):
            seen[row, 0], faults[row] = entry, Fault.MASK_OUT_OF_RANGE
        seen[12], faults[12] = 0, Fault.NO_TOKEN
        labels[[13, 14]] = 3, -(2**63)
        faults |= dict.fromkeys((13, 14), Fault.LABEL_OUT_OF_RANGE)
    with h5py.File(folder / name, "w") as file:
        file["ids"], file["seen"], file["y"] = tokens, seen, labels
    columns = {"features": ["ids"], "target": "y", "tokens": True, "mask": "seen"}
    return Spoiled({"format": "hdf5", "path": str(folder / name), "columns": columns}, faults)


def idx_images(folder: Path, spoil: bool = True, name: str = "private") -> Spoiled:
    """IDX: labels that are no class of the model."""
    random = np.random.default_rng(int(spoil))
    images, labels = random.integers(0, 255, (ROWS, 28, 28), np.uint8), random.integers(0, 3, ROWS).astype(np.uint8)
    faults = {}
    if spoil:
        labels[[2, 3, 40]] = 3, 255, 9
        faults = dict.fromkeys((2, 3, 40), Fault.LABEL_OUT_OF_RANGE)
    for suffix, array in (("images", images), ("labels", labels)):
        head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"{name}-{suffix}").write_bytes(head + array.tobytes())
    paths = {"path": str(folder / f"{name}-images"), "labels": str(folder / f"{name}-labels")}
    return Spoiled({"format": "idx", **paths}, faults)


def image_folder(folder: Path, spoil: bool = True, name: str = "private") -> Spoiled:
    """PNG images, some of them damaged, in a folder with a CSV of their names and labels."""
    random = np.random.default_rng(int(spoil))
    images, labels = random.integers(0, 255, (ROWS, 28, 28), np.uint8), [str(row % 3) for row in range(ROWS)]
    files, faults = [f"{row}.png" for row in range(ROWS)], {}
    (folder / name).mkdir()
    for file, values in zip(files, images, strict=True):
        (folder / name / file).write_bytes(picture(values))
    if spoil:
        for row, content in enumerate(BAD.values()):
            (folder / name / files[row]).write_bytes(content)
            faults[row] = Fault.UNREADABLE
        labels[20:23], files[23:25] = ["3", "cat", ""], ["gone.png", "../private.csv"]
        faults |= {20: Fault.LABEL_OUT_OF_RANGE, 21: Fault.UNREADABLE, 22: Fault.LABEL_MISSING}
        faults |= {23: Fault.UNREADABLE, 24: Fault.UNREADABLE}
    lines = [f"{file},{label}" for file, label in zip(files, labels, strict=True)]
    (folder / f"{name}.csv").write_text("\n".join(["file,label", *lines]))
    return Spoiled({"format": "images", "path": str(folder / name), "labels": str(folder / f"{name}.csv")}, faults)


MODELS: dict[str, dict[str, Any]] = {
    "table": {"factory": "distqexp.problem.models:logistic", "args": {"inputs": 2}, "loss": "binary-cross-entropy"},
    "arrays": {"factory": "distqexp.problem.models:logistic", "args": {"inputs": 4, "outputs": 3}, "loss": "cross-entropy"},
    "regression": {
        "factory": "distqexp.problem.models:mlp", "args": {"inputs": 4, "outputs": 2, "hidden": [3]}, "loss": "mean-squared-error",
    },
    "tokens": {"factory": "token_models:reader", "loss": "cross-entropy"},
    "images": {"factory": "distqexp.problem.models:cnn", "args": {"outputs": 3}, "loss": "cross-entropy"},
}  # fmt: skip

FORMATS: dict[str, tuple[str, Any, Any]] = {
    "csv": ("table", csv_table, public_table),
    "parquet texts": ("table", parquet_table, public_table),
    "parquet numbers": ("table", parquet_numbers, public_table),
    "hdf5": ("arrays", hdf5_arrays, lambda folder: hdf5_arrays(folder, False, "public.h5").source),
    "hdf5 regression": ("regression", regression_arrays, lambda folder: regression_arrays(folder, False, "public.h5").source),
    "hdf5 tokens": ("tokens", token_arrays, lambda folder: token_arrays(folder, False, "public.h5").source),
    "idx": ("images", idx_images, lambda folder: idx_images(folder, False, "public").source),
    "image folder": ("images", image_folder, lambda folder: image_folder(folder, False, "public").source),
}  # fmt: skip
"""Name: the model, and what writes private and public files."""

__all__ = ["CELLS", "FORMATS", "LENGTH", "MODELS", "ROWS", "Spoiled", "csv_table", "good_cells", "public_table"]


def bad_task(
    folder: Path, name: str, defaults: dict[str, dict[str, Any]], sections: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any], Spoiled]:
    """The tree of a config on bad private records and good public ones of a format. sections: changes to it and to ``defaults``."""
    model, private, public = FORMATS[name]
    spoiled = private(folder)
    tree: dict[str, Any] = {
        "model": MODELS[model],
        "data": {"population": "somebody", "private": spoiled.source, "public": public(folder)},
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": ROWS},
        **defaults,
    }
    for section, values in sections.items():
        tree[section] = {**tree.get(section, {}), **values}
    return tree, spoiled
