"""Synthetic records, which public curvature is taken from where there are no public data.

Natural inputs are neither white nor flat: neighbouring pixels agree, and layers see mostly slow changes. Probes are a mixture
of smooth fields, white noise and a constant level, so that every direction that inputs can take is met at some share
(compare DP-KFC, arXiv 2605.13418).
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from scipy.special import ndtri

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.errors import UsageError
from distqexp.problem.images import Views, with_views
from distqexp.problem.records import Records, concatenate
from distqexp.problem.schema import Schema

_FREQUENCIES = 6
"""The largest number of waves along an axis of a smooth field."""


class Probes:
    """A source of synthetic records, read by number as ``Dataset`` is by row. Public.

    Record i of a round is a function of (seed, round, i) and the schema alone. Targets are zeros: labels of probes are drawn from
    the model where they are needed.
    """

    def __init__(self, schema: Schema, seed: int, round: int) -> None:
        self.schema = schema
        self._stream = (seed, round)

    def read(self, rows: IntegerArray, views: Views | None = None) -> Records:
        """Read the records of these numbers, in this order; ``views`` are made of every image, where they are given."""
        parts = [synthetic_records(self.schema, 1, *self._stream, int(row)) for row in rows]
        records = concatenate(parts)
        return with_views(records, rows, views) if views else records


def synthetic_records(schema: Schema, count: int, seed: int, round: int, first: int) -> Records:
    """Return the records ``first`` .. ``first + count - 1`` of the stream of (seed, round).

    Images have pixels from 0 to 1. Tables and arrays are about standard normal, with one level of each category, missingness columns of
    0 or 1 and the constant 1. Tokens are uniform over the vocabulary, and so is their number from one to the longest; padding has token
    0. Raises UsageError when the schema doesn't know the shape of a record.
    """
    shape = schema.input_shape
    if shape is None or (schema.tokens and schema.vocabulary is None):
        raise UsageError(
            "precision.source: probes need the shape of a record, which is not known without data.public; set data.record_shape"
        )
    arrays = [_record(schema, shape, _Stream(seed, round, first + i)) for i in range(count)]
    kind = np.int64 if schema.tokens else np.float32
    inputs = np.stack(arrays).astype(kind) if arrays else np.zeros((0, *shape), dtype=kind)
    targets = torch.zeros(count, dtype=torch.int64 if schema.loss == "cross-entropy" else torch.float32)
    return Records(torch.from_numpy(inputs), targets, torch.ones(count, dtype=torch.bool))


class _Stream:
    """The random numbers of one record, from raw Philox words: distributions built on these may change between versions."""

    def __init__(self, seed: int, round: int, record: int) -> None:
        key = hashlib.sha256(f"probes/{seed}/{round}/{record}".encode()).digest()[:16]
        self._philox = np.random.Philox(key=int.from_bytes(key, "little"))

    def uniform(self, *shape: int) -> FloatArray:
        """Return uniform numbers, strictly between 0 and 1."""
        words = np.asarray(self._philox.random_raw(int(np.prod(shape))), dtype=np.uint64)
        fractions = ((words >> np.uint64(12)) + 0.5).astype(np.float64) * 2.0**-52
        return fractions.reshape(shape)

    def normal(self, *shape: int) -> FloatArray:
        """Return standard normal numbers."""
        return np.asarray(ndtri(self.uniform(*shape)))


def _record(schema: Schema, shape: tuple[int, ...], stream: _Stream) -> FloatArray | IntegerArray:
    if schema.tokens:
        length = shape[1]
        tokens = np.floor(stream.uniform(length) * (schema.vocabulary or 1)).astype(np.int64)
        # Texts are shorter than the longest: a token of a short one weighs more in a mean, and curvature must know that.
        seen = (np.arange(length) < length * stream.uniform(1)).astype(np.int64)
        return np.stack([tokens * seen, seen])
    if schema.image:
        return _image(shape, stream)
    if len(shape) > 1:
        return _field(shape, stream)
    flags, widths = len(schema.flags), [coding.width for coding in schema.levels.values()]
    plain = stream.normal(shape[0] - flags - int(schema.constant) - sum(widths))
    levels = [np.arange(width) == np.floor(stream.uniform(1) * width) for width in widths]
    missing = (stream.uniform(flags) < 0.5).astype(np.float64)
    return np.concatenate([plain, *levels, missing, np.ones(int(schema.constant))])


def _image(shape: tuple[int, ...], stream: _Stream) -> FloatArray:
    """Make a field about a grey level, stretched and cut off at black and white: from washed out to shapes on a ground."""
    level, stretch = stream.uniform(2)
    contrast = 0.2 * 10.0**stretch
    field = _field(shape, stream)
    return np.clip(level + contrast * (field - field.mean()), 0.0, 1.0)


def _field(shape: tuple[int, ...], stream: _Stream) -> FloatArray:
    """Make a field (channels, ...) of variance about 1, which a level, a smooth field and white noise share at random.

    The channels of a record have a part in common, as colours have.
    """
    shares = -np.log(stream.uniform(3))
    weights = np.sqrt(shares / shares.sum())
    channels, sizes = shape[0], shape[1:]
    common = np.sqrt(stream.uniform(1))[0] if channels > 1 else 0.0
    own = np.sqrt(1 - common**2)
    level = common * stream.normal(1) + own * stream.normal(channels)
    smooth = common * _smooth(sizes, stream)[None] + own * np.stack([_smooth(sizes, stream) for _ in range(channels)])
    white = stream.normal(*shape)
    levels = level.reshape(channels, *(1 for _ in sizes))
    return np.asarray(weights[0] * levels + weights[1] * smooth + weights[2] * white)


def _smooth(sizes: tuple[int, ...], stream: _Stream) -> FloatArray:
    """Sum cosine waves of low frequency whose power falls with the square of the frequency; the variance is about 1."""
    waves = [min(size, _FREQUENCIES) for size in sizes]
    grids = np.meshgrid(*(np.arange(count, dtype=np.float64) for count in waves), indexing="ij")
    power = 1.0 / (0.5 + np.square(np.stack(grids)).sum(axis=0))
    field = stream.normal(*waves) * np.sqrt(power / power.sum())
    for axis, (size, count) in enumerate(zip(sizes, waves, strict=True)):
        places = (np.arange(size) + 0.5) / size
        basis = np.cos(np.pi * np.outer(places, np.arange(count)))
        basis[:, 1:] *= np.sqrt(2.0)
        field = np.moveaxis(np.tensordot(basis, field, axes=(1, axis)), 0, axis)
    return np.asarray(field)
