"""What a config declares of records where there is no public source that shows it."""

from __future__ import annotations

from distqexp.config import DataConfig
from distqexp.errors import UsageError


def token_shape(data: DataConfig, record_shape: tuple[int, ...] | None) -> tuple[int, int]:
    """Return the shape (2, L) of tokens with their mask. Raises UsageError where L isn't declared."""
    length = record_shape if data.columns.length is None else (data.columns.length,)
    if length is None or len(length) != 1:
        actual = "absent" if length is None else list(length)
        raise UsageError(f"data.record_shape: {actual}; for tokens without data.public, expected [length]")
    return (2, *length)


def image_shape(record_shape: tuple[int, ...], grey: bool) -> tuple[int, ...]:
    """Return the shape (c, h, w) of images, given as (h, w) where they are grey. Raises UsageError."""
    if len(record_shape) == 2:
        return (1, *record_shape)
    if grey or len(record_shape) != 3 or record_shape[0] == 1:
        others = "" if grey else ", or [channels, height, width] of several channels"
        raise UsageError(f"data.record_shape: {list(record_shape)}; for images expected [height, width]{others}")
    return record_shape


def class_names(data: DataConfig, loss: str, shape: tuple[int, ...] | None) -> tuple[str, ...]:
    """Return the names of the classes of an image folder without public data. Raises UsageError where something isn't declared."""
    if shape is None:
        raise UsageError(
            "data.record_shape: not given; for folders of images without data.public, expected [height, width] or [3, height, width]"
        )
    if loss == "mean-squared-error":
        return ()
    if not data.columns.classes:
        raise UsageError(
            "data.*.columns.classes: not given; for folders of images without data.public, expected what the classes are called, in order"
        )
    return data.columns.classes
