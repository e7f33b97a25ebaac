"""Looks for the files that a config names, before anything else is done; they are opened later."""

from __future__ import annotations

from pathlib import Path

from distqexp.config import CLINICAL_FORMATS, FOLDER_FORMATS, Config, DataConfig
from distqexp.problem.checkpoints import existing_weights
from distqexp.problem.readers.base import existing_file, existing_folder, label_file
from distqexp.problem.readers.patterns import existing_files


def check_paths(config: Config) -> None:
    """Refuse a config whose files are missing, before hours of work, without opening any. Raises UsageError."""
    check_files("data.public", config.data.public)
    check_files("data.eval", config.data.eval)
    for data in config.data.private:
        check_files("data.private", data)
    if config.model.weights is not None:
        existing_weights(config.model.weights)


def check_files(where: str, data: DataConfig | None) -> None:
    """Refuse a source of records, named ``where`` in the message, whose files are missing. Raises UsageError."""
    if data is None:
        return
    if data.format != "digits":
        either = data.format in ("text", *CLINICAL_FORMATS)
        is_folder = data.format in FOLDER_FORMATS or (either and Path(data.path or "x").is_dir())
        if is_folder:
            existing_folder(data.path, f"{where}.path")
        else:
            existing_files(data.path, f"{where}.path")
    if data.format == "text":
        existing_folder(data.tokenizer, f"{where}.tokenizer")
    if data.format == "idx" or label_file(data) is not None:
        existing_file(label_file(data), f"{where}.labels")
    if data.blank is not None:
        existing_file(data.blank, f"{where}.blank")
