"""Folders of PNG and JPEG images: a subfolder for each class, or a CSV file of names and labels."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.readers.base import LABEL, PIXELS, Reader, existing_file, existing_folder, some
from distqexp.problem.readers.dialect import Dialect, separator_of
from distqexp.problem.readers.entries import UNREADABLE, number_of
from distqexp.problem.readers.folders import Folder
from distqexp.problem.readers.lines import first_record
from distqexp.problem.readers.pictures import NoPictureError, picture_shape, read_picture
from distqexp.problem.readers.table import TableReader
from distqexp.problem.readers.text_bytes import TextSource

_SUFFIXES = (".png", ".jpg", ".jpeg")
_FILE_COLUMNS = ("file_name", "filename", "file", "image", "path")
_LABEL_COLUMNS = ("label", "labels", "class", "target", "y")


class ImageFolderReader(Reader):
    """Images of one folder, with pixels divided by 255; a record has shape (c, h, w).

    Without ``data.labels`` every image lies in a subfolder that is called as its class, and rows are in the order of the names.
    With it, rows are those of a CSV file, which has a column of names relative to the folder, one of labels, and perhaps one of unit ids.
    What the labels are called is a class number by its place in ``class_names``; without class names labels are numbers.
    Of records without labels a row is any image in the folder, at any depth, or a row of the CSV file, which needs names alone.
    Sizes, channels and class names are those of ``survey`` or ``follow``: they never come from private files.
    """

    scale = 1.0 / 255.0
    image = True
    names = (PIXELS,)

    def __init__(self, data: DataConfig) -> None:
        self.path = existing_folder(data.path, "data.path")
        self._data = data
        self._open: Folder | None = None
        self.shape = ()
        self._table = None if data.labels is None else _table(data, existing_file(data.labels, "data.labels"))
        if self._table is not None:
            self.count = self._table.count
            self._entries: tuple[list[str | None], list[str | None]] | None = None
            return
        files = [name for name in self._folder().files if name.lower().endswith(_SUFFIXES)]
        if not files:
            raise FileContentError(f"{self.path}: no image in it; expected PNG or JPEG files; correct data.*.path")
        if not data.labelled:
            self._entries = (list(files), [None] * len(files))
            self.count = len(files)
            return
        if any("/" not in name for name in files):
            raise FileContentError(
                f"{self.path}: images lie in it beside its subfolders; expected a subfolder for each class: move them, or give "
                "data.labels, a CSV file with their names and labels"
            )
        self._entries = (list(files), [name.split("/")[0] for name in files])
        self.count = len(files)

    def survey(self, rows: IntegerArray, record_shape: tuple[int, ...] | None, numbers: bool) -> None:
        files, labels = self._rows()
        texts = {text for row in rows.tolist() if (text := labels[row]) is not None}
        if not self._data.columns.classes and not numbers and not all(map(_is_number, texts)):
            self.class_names = tuple(sorted(texts))
        if record_shape is not None:
            self.shape = record_shape if len(record_shape) == 3 else (1, *record_shape)
            return
        shapes = set()
        for row in rows.tolist():
            try:
                with self._folder().open(self._name(files[row])) as file:
                    shapes.add(picture_shape(file))
            except NoPictureError:
                raise self._no_picture(files[row]) from None
        sizes = {shape[1:] for shape in shapes}
        if len(sizes) > 1:
            raise UsageError(
                f"data.record_shape: not given, and the images of {self.path} have {len(sizes)} sizes, from {min(sizes)} to {max(sizes)}; "
                "expected [height, width], or [3, height, width] for colours: images are resized to it"
            )
        self.shape = (max(shape[0] for shape in shapes), *sizes.pop())

    def follow(self, shape: tuple[int, ...] | None, class_names: tuple[str, ...]) -> None:
        if shape is not None:
            self.shape = shape
        if len(self.shape) != 3 or self.shape[0] not in (1, 3, 4):
            raise UsageError(f"data.*.format: images of shape {self.shape}; expected (1, h, w), (3, h, w) or (4, h, w)")
        declared = self._data.columns.classes
        if class_names and declared not in ((), class_names):
            raise UsageError(
                f"data.*.columns.classes: {some(declared)}; expected the plan's {some(class_names)}, in this order; declare the same, or "
                "leave the key out here"
            )
        self.class_names = class_names
        labelled = self._table is None and self._data.labelled
        if labelled and not any(self._is_known(text) for text in set(self._rows()[1])):
            known = some(class_names) if class_names else "numbers"
            raise FileContentError(
                f"{self.path}: none of its subfolders is called as a class of the plan ({known}); expected "
                "a subfolder for each class; rename them"
            )

    def read(self, rows: IntegerArray, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        files, labels = self._rows()
        pixels: NDArray[Any] = np.zeros((len(rows), *self.shape), dtype=np.uint8)
        bad = np.zeros(len(rows), dtype=np.bool_)
        for place, row in enumerate(rows.tolist()):
            picture = self._picture(files[row])
            if picture is None:
                bad[place] = True
            else:
                pixels[place] = picture
        if bad.any():
            if not self.private:
                raise self._no_picture(files[int(rows[np.flatnonzero(bad)[0]])])
            pixels = pixels.astype(np.float64)
            pixels[bad] = UNREADABLE
        return pixels, np.array([self._label(labels[row]) for row in rows.tolist()], dtype=np.float64)

    def unreadable(self, rows: IntegerArray, names: Sequence[str]) -> BoolArray:
        files, labels = self._rows()
        marks = [
            [self._picture(files[row]) is None, (text := labels[row]) is not None and not self._is_legible(text)]
            for row in rows.tolist()
        ]
        return np.array(marks, dtype=np.bool_).reshape(len(rows), 2)

    def check_whole(self) -> None:
        """Do nothing: damage is the matter of its record."""

    def files(self) -> tuple[Path, ...]:
        return (self.path, *(self._table.files() if self._table is not None else ()))

    def facts(self) -> tuple[tuple[int, int, int, int, int], ...]:
        return (self._folder().facts(), *(self._table.facts() if self._table is not None else ()))

    def identifiers(self, name: str, rows: IntegerArray) -> list[Any]:
        return self._named_table("data.unit", name).identifiers(name, rows)

    def numbers(self, name: str) -> FloatArray:
        """Return a column of the CSV file, or of a folder the names of the classes, ``label``, as far as they are numbers."""
        if self._table is None and name == LABEL:
            return np.array([float(text) if text and _is_number(text) else np.nan for text in self._rows()[1]])
        return self._named_table("data.where", name).numbers(name)

    def texts(self, name: str) -> list[str | None]:
        if self._table is None and name == LABEL:
            return self._rows()[1]
        return self._named_table("data.where", name).texts(name)

    def file_names(self) -> list[str | None]:
        """Return the name of each row's file, relative to the folder; None where the CSV file has none."""
        return self._rows()[0]

    def _folder(self) -> Folder:
        if self._open is None:
            self._open = Folder(self.path)
        return self._open

    def _rows(self) -> tuple[list[str | None], list[str | None]]:
        """Return the name of each row's file, and its label as a text; None where missing."""
        if self._entries is None:
            table = self._named_table("data.labels", None)
            texts = table.texts(table.target) if self._data.labelled else [None] * table.count
            labels = [None if text is None else text.strip() for text in texts]
            self._entries = (table.texts(table.names[0]), labels)
        return self._entries

    def _named_table(self, key: str, name: str | None) -> TableReader:
        if self._table is None:
            raise UsageError(
                f"{key}: names {name!r}, but a folder of images has label alone; give data.labels, a CSV file with that column"
            )
        self._table.private = self.private
        return self._table

    def _name(self, text: str | None) -> str:
        """Return the name of a file of the folder. Raises NoPictureError for any other."""
        name = os.path.normpath(text) if text else ""
        if name not in self._folder().files:
            raise NoPictureError
        return name

    def _picture(self, text: str | None) -> NDArray[np.uint8] | None:
        channels, height, width = self.shape
        try:
            with self._folder().open(self._name(text)) as file:
                return read_picture(file, (channels, height, width))
        except NoPictureError:
            return None

    def _no_picture(self, text: str | None) -> FileContentError:
        return FileContentError(
            f"{self.path}: {text!r} isn't a whole PNG or JPEG image of at most 64 million pixels; expected one; mend it or take it out"
        )

    def _label(self, text: str | None) -> float:
        if text is None:
            return math.nan
        if self.class_names:
            known = text in self.class_names
            return float(self.class_names.index(text)) if known else -1.0
        number = number_of(text)
        if number is None and not self.private:
            raise FileContentError(
                f"{self.path}: label {text!r} is not a number; expected numbers; name all classes in data.*.columns.classes"
            )
        return UNREADABLE if number is None else number

    def _is_known(self, text: str | None) -> bool:
        return text is not None and (text in self.class_names if self.class_names else _is_number(text))

    def _is_legible(self, text: str) -> bool:
        return bool(self.class_names) or number_of(text) is not None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}


def _table(data: DataConfig, path: Path) -> TableReader:
    """Open the CSV file of names and labels; columns without a role in the config are found by their usual names."""
    from distqexp.problem.readers import open_reader  # which imports this module

    roles = data.columns
    names = [] if roles.target and roles.features else _header(path, data)
    target = (roles.target or _usual(path, names, _LABEL_COLUMNS, "target")) if data.labelled else None
    file = (roles.features or (_usual(path, names, _FILE_COLUMNS, "features"),))[0]
    columns = ColumnsConfig(target=target, features=(file,))
    table = dataclasses.replace(data, format="csv", path=str(path), labels=None, columns=columns)
    return cast("TableReader", open_reader(table, private=True))


def _header(path: Path, data: DataConfig) -> list[str]:
    source = TextSource(path)
    header = source.read(*first_record(source)).decode("utf-8-sig", "replace")
    return [name.strip() for name in Dialect(separator_of(header, data, path)).fields(header) or ()]


def _usual(path: Path, names: Sequence[str], usual: Sequence[str], role: str) -> str:
    found = [name for name in names if name in usual]
    if len(found) != 1:
        raise FileContentError(
            f"{path}: {len(found)} of its columns are called {' or '.join(usual)}; expected one; name the column in data.*.columns.{role}"
        )
    return found[0]


def _is_number(text: str) -> bool:
    number = number_of(text)
    return number is not None and math.isfinite(number)
