"""Records to predict for: in the form that the training had, or in another that has the same features. Their labels are never read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from distqexp.artefacts.card import ModelCard
from distqexp.config import ARRAY_FORMATS, CLINICAL_FORMATS, FOLDER_FORMATS, ColumnsConfig, NewRecords
from distqexp.errors import UsageError
from distqexp.problem.dataset import Dataset
from distqexp.problem.readers import open_reader
from distqexp.problem.readers.arrays import image_shape
from distqexp.problem.schema import Schema

_TABLES = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_ARRAYS = {".h5": "hdf5", ".hdf5": "hdf5", ".npz": "npz", ".npy": "npy"}
_PACKED = (".gz", ".bz2", ".xz", ".zst")


def new_records(card: ModelCard, path: Path, labels: Path | None, tokenizer: Path | None) -> NewRecords:
    """Return the source of records to predict for.

    A folder is one of images, a saved dataset, or texts in one; a file is a table, an array file (.npy, .npz, .h5), or IDX. What the
    ending leaves open is as in the training.

    Args:
        card: The model's card.
        path: The file, the folder, or a pattern of tables.
        labels: Of an image folder, a CSV file of names; otherwise nothing.
        tokenizer: The tokenizer's folder, for texts.

    Raises:
        UsageError: The model is for records of another kind, or a tokenizer is missing.
    """
    own, schema = card.data, card.schema
    format = _format(card, path)
    if format == "text" and tokenizer is None:
        raise UsageError(
            f"{path}: raw texts for a model of tokens; expected --tokenizer, the folder of the tokenizer that the training had"
        )
    csv = format in ("csv", "text")
    return NewRecords(
        format=cast("Any", format),
        path=str(path),
        labels=None if labels is None or format != "images" else str(labels),
        tokenizer=str(tokenizer) if format == "text" else None,
        rotate=own.rotate if schema.image else 0.0,
        columns=_columns(card, format),
        encoding=own.encoding if csv else None,
        decimal=own.decimal if csv else None,
        quotes=own.quotes,
    )


def _columns(card: ModelCard, format: str) -> ColumnsConfig:
    own, schema, roles = card.data, card.schema, card.data.columns
    if format == "images":
        return roles if own.format == "images" else ColumnsConfig()
    if format not in ARRAY_FORMATS:
        return dataclasses.replace(roles, features=schema.names, exclude=())
    named = format != "npy" and own.format in (*ARRAY_FORMATS, "arrow")
    return ColumnsConfig(
        features=roles.features if named and len(roles.features or ()) == 1 else None,
        tokens=schema.tokens,
        mask=roles.mask if named else None,
        images=None if schema.image else False,
    )


def open_new_records(card: ModelCard, data: NewRecords) -> Dataset:
    """Open records to predict for, and check them against the model's schema.

    Raises:
        UsageError: A path is wrong.
        FileContentError: The file is damaged, or has not the features of the training.
    """
    schema = card.schema
    # Labels have codings too, and there are none here.
    features = tuple(coding for coding in schema.codings if coding.kind != "classes")
    schema = dataclasses.replace(schema, codings=features)
    reader = open_reader(data, private=True)
    reader.follow(schema.shape, schema.class_names)
    if data.format in ARRAY_FORMATS and (not schema.image or card.data.format == "digits"):
        reader.names = schema.names  # one array, whatever it is called
    schema.check(reader)
    return Dataset(data, schema, reader)


def file_names(records: Dataset) -> list[str | None] | None:
    """Return the name of each record's file where each has its own; None elsewhere."""
    from distqexp.problem.readers.image_folder import ImageFolderReader  # only where there are images

    return records.reader.file_names() if isinstance(records.reader, ImageFolderReader) else None


def class_names_of(schema: Schema) -> tuple[str, ...]:
    """Return what the classes are called, in the order of their numbers; nothing where labels are numbers."""
    return schema.words_of_classes


def as_images(values: NDArray[Any], shape: tuple[int, ...] | None) -> NDArray[Any]:
    """Return images (n, h, w), (n, c, h, w) or (n, h, w, c) in the schema's form (n, c, h, w); others as they are."""
    if values.ndim not in (3, 4) or values.shape[1:] == shape:
        return values
    last, found = image_shape(values.shape[1:])
    return values.reshape(len(values), *found) if not last else np.moveaxis(values, -1, 1)


def _format(card: ModelCard, path: Path) -> str:
    """Return the format of a path. Raises UsageError where the model's records can't be such."""
    own, tokens, image = card.data.format, card.schema.tokens, card.schema.image
    if path.is_dir():
        if own in (*FOLDER_FORMATS, *CLINICAL_FORMATS, "text"):
            return own
        found = "arrow" if (path / "state.json").is_file() else "images"
        if found == "images" and not image:
            raise _other_kind(card, path, "a folder")
        return found
    plain = path.with_suffix("") if path.suffix in _PACKED else path
    if own == "text" and plain.suffix not in _ARRAYS:
        return own
    if own == "images" and plain.suffix not in _ARRAYS:
        raise _other_kind(card, path, "a file")
    if plain.suffix in _TABLES and (tokens or image or own in ARRAY_FORMATS):
        raise _other_kind(card, path, "a table")
    if own in FOLDER_FORMATS and plain.suffix not in {**_TABLES, **_ARRAYS}:
        raise _other_kind(card, path, "a file")
    format = _TABLES.get(plain.suffix) or _ARRAYS.get(plain.suffix) or own
    if format == "digits":
        raise _other_kind(card, path, "a file")
    return format


def _other_kind(card: ModelCard, path: Path, found: str) -> UsageError:
    kind = "tokens" if card.schema.tokens else "images" if card.schema.image else "numbers"
    return UsageError(
        f"{path}: {'no such file or folder' if not path.exists() else found}; the model was trained on {kind} in {card.data.format} "
        "format; expected records of that kind: docs/formats.md lists their forms"
    )
