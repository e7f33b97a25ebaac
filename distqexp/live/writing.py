"""Predictions as a file, which is as private as the records that they are for."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from distqexp.arrays import FloatArray
from distqexp.errors import FileContentError, UsageError
from distqexp.live.loading import load_model
from distqexp.live.new_records import file_names
from distqexp.live.predictor import Predictor
from distqexp.live.unpredicted import unpredicted_words
from distqexp.problem.dataset import Dataset
from distqexp.problem.readers.table import CsvReader
from distqexp.storage.atomic import write_atomic
from distqexp.storage.texts import printable


def predict_file(
    folder: Path, data: Path, out: Path, labels: Path | None = None, tokenizer: Path | None = None
) -> str | None:
    """Predict for the records of a file and write the predictions into a new file of mode 0600.

    Returns a line on the records without a prediction, as private as the records; None where all have one.

    A .csv has a row for each record, in the order of the records: ``prediction``, then ``probability_CLASS`` for each class; entries
    are empty for a record that the model can't take. For folders of images ``file`` comes first. A .npy has the probabilities, float64
    (n, classes), or a regression's values (n, o), NaN there.

    Args:
        folder: The folder of the model.
        data: The records.
        out: The new file, .csv or .npy.
        labels: Of an image folder, a CSV file with the names of the images to predict for.
        tokenizer: The tokenizer's folder, for raw texts; when None the model's own folder, where it has one.

    Raises:
        UsageError: ``out`` is there already, or has another suffix; or the model isn't there.
        FileContentError: The model or the records can't be used, or no record has a prediction; nothing is written then.
    """
    if out.suffix not in (".csv", ".npy"):
        raise UsageError(f"--out {out}: found the suffix {out.suffix!r}; expected .csv or .npy")
    if out.exists():
        raise UsageError(f"--out {out}: exists; expected a new file, nothing is overwritten")
    model = load_model(folder)
    records = model.records(data, labels, tokenizer)
    outputs = model.outputs_of_records(records)
    names = file_names(records)
    blank = np.flatnonzero(np.isnan(outputs).any(axis=1))
    words = unpredicted_words(records, blank, names) if len(blank) else ""
    if len(blank) == len(outputs):
        signs = (
            f"numbers are read with the decimal sign {_decimal(records)!r}, as in the training: "
            if _decimal(records)
            else ""
        )
        raise FileContentError(
            f"{data}: no record has a prediction ({words}); expected records as in the training; {signs}correct them, nothing was written"
        )
    values = outputs if model.classes is None else model.probabilities_of(outputs)

    def write(file: BinaryIO) -> None:
        if out.suffix == ".npy":
            np.save(file, values)
        else:
            _write_table(file, model, outputs, values, names)

    write_atomic(out, write, private=True)
    return f"{len(blank):,} of {len(outputs):,} records have no prediction: {words}" if len(blank) else None


def _decimal(records: Dataset) -> str | None:
    """Return the decimal sign of a table of text; None elsewhere."""
    return records.reader.dialect.decimal if isinstance(records.reader, CsvReader) else None


def _write_table(
    file: BinaryIO, model: Predictor, outputs: FloatArray, values: FloatArray, names: list[str | None] | None
) -> None:
    if model.classes is None:
        width = values.shape[1]
        header = ["prediction"] if width == 1 else [f"prediction_{place}" for place in range(width)]
        rows = [[_entry(value) for value in row] for row in values.tolist()]
    else:
        header = ["prediction", *(f"probability_{_text(name)}" for name in model.classes.tolist())]
        labels = model.labels_of(outputs).tolist()
        rows = [[_label(label), *map(_entry, row)] for label, row in zip(labels, values.tolist(), strict=True)]
    if names is not None:
        header, rows = ["file", *header], [[_text(name or ""), *row] for name, row in zip(names, rows, strict=True)]
    text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    text.flush()
    text.detach()


def _entry(value: float) -> str:
    return "" if value != value else repr(value)


def _label(value: Any) -> Any:
    """Return a label as it is written; whole numbers beside missing ones came as floats."""
    if value is None or value != value:
        return ""
    if isinstance(value, str):
        return _text(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(value: Any) -> str:
    """Return a text from a model's folder, or a file's name, that neither a spreadsheet nor a terminal takes for a command."""
    text = printable(str(value))
    formula = text[:1] in ("=", "@") or (text[:1] in ("+", "-") and not text[1:].replace(".", "", 1).isdecimal())
    return f"'{text}" if formula else text
