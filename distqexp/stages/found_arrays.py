"""Public arrays and folders of images, for ``distqexp init``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.dataset import count_units
from distqexp.problem.readers import Reader, open_reader
from distqexp.problem.readers.dialect import Dialect
from distqexp.stages.found import Found, Task, quoted, task_of
from distqexp.stages.table_facts import Column

_ROWS = 1000
_COMMON = (3, 32, 32)
"""What images of several sizes are resized to."""


def found_arrays(path: Path, format: str, target: str | None, unit: str | None) -> Found:
    """Look at public arrays. Raises UsageError and FileContentError."""
    named = format in ("npz", "hdf5")
    for option, name in (("--target", target), ("--unit", unit)):
        if name is not None and not named:
            raise UsageError(f"{option} {name}: {path} has no names; expected none, or an .npz or .h5 file")
    columns = ColumnsConfig(target=target) if target is not None else ColumnsConfig()
    data = DataConfig(format=cast("Any", format), path=str(path), columns=columns, unit=unit)
    reader = open_reader(data)
    label = Column(target or "label")
    for first in range(0, reader.count, _ROWS):
        _, targets = reader.read(np.arange(first, min(first + _ROWS, reader.count)), reader.names)
        if targets.ndim > 1 and targets.shape[1:] != (1,):
            raise UsageError(
                f"{path}: labels of shape {targets.shape[1:]}; expected one a record; write the config by hand"
            )
        _add(label, targets)
    source = f"columns = {{ target = {quoted(target)} }}\n" if target is not None else ""
    units = count_units(data) if unit is not None else reader.count
    return Found(format, reader.count, units, task_of(label, path), source, remarks=_images(reader))


def found_images(path: Path, target: str | None, unit: str | None) -> Found:
    """Look at a public folder of images, with a subfolder for each class. Raises UsageError and FileContentError."""
    for option, name in (("--target", target), ("--unit", unit)):
        if name is not None:
            raise UsageError(
                f"{option} {name}: a folder of images has subfolders for labels; expected none, or a config with data.*.labels"
            )
    reader = open_reader(DataConfig(format="images", path=str(path)))
    rows = np.arange(reader.count)
    shape = None
    try:
        reader.survey(rows, None, False)
    except UsageError:  # of several sizes
        shape = _COMMON
        reader.survey(rows, shape, False)
    names = reader.class_names
    if not names:
        label = Column("label")
        for first in range(0, reader.count, _ROWS):
            _add(label, reader.read(rows[first : first + _ROWS], reader.names)[1])
        task = task_of(label, path)
    elif len(names) < 2:
        raise FileContentError(f"{path}: one subfolder, {names[0]!r}; expected one for each of two or more classes")
    else:
        task = Task("cross-entropy", len(names), f"{len(names)} classes ({', '.join(names[:4])})")
    return Found("images", reader.count, reader.count, task, "", shape=shape, remarks=_images(reader))


def _add(label: Column, targets: NDArray[Any]) -> None:
    for value in targets.reshape(-1).tolist():
        label.add(repr(float(value)), Dialect())


def _images(reader: Reader) -> tuple[str, ...]:
    return (f"images: {' x '.join(map(str, reader.shape))}, channels first",) if reader.image else ()
