"""The schema: what turns rows of a file into model inputs, fitted on public data only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import FloatArray
from distqexp.config import ARRAY_FORMATS, CLINICAL_FORMATS, DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem import declared
from distqexp.problem.fitted_codings import declared_codings, fitted_codings, need_codings
from distqexp.problem.id_columns import looks_like_id
from distqexp.problem.losses import is_own
from distqexp.problem.public_columns import column_blocks, unlabelled_rows
from distqexp.problem.readers import Reader, open_reader
from distqexp.problem.readers.base import PIXELS, some
from distqexp.problem.readers.clinical import catalogue
from distqexp.problem.readers.codings import Coding
from distqexp.problem.readers.dialect import Dialect
from distqexp.problem.readers.tokenizer import open_tokenizer
from distqexp.problem.selection import select_rows

_OPTIONAL = ("absent", "definition")
"""Fields that stand in a plan where they say something alone, so that other plans keep their identity."""


@dataclass(frozen=True)
class Schema:
    """Everything that a site needs to read its own file as the plan reads the public one. Public.

    Inputs are the features that aren't categorical, then those that are (an input for each level, one for all other levels, all zero
    where missing), then the flags, then the constant. ``medians``, ``means`` and ``scales`` hold one number a raw feature,
    flattened; they are empty for images and without public data, which stands for zero, zero and one.

    Attributes:
        loss: the name of the loss.
        image: whether records are images.
        names: the feature columns in order; for an array its one name.
        shape: the shape of a record's raw features; None when it wasn't known without a file.
        pixel_scale: the factor on pixels.
        classes: the number of outputs of a cross-entropy model; labels are 0 .. classes - 1.
        medians: what stands in for missing values.
        means: what is subtracted from the features.
        scales: what the features are divided by then.
        flags: the positions of the features with a missingness column.
        bound: standardised features are cut off at plus and minus this number, where there is one.
        constant: whether the inputs end with a constant 1.
        tokens: whether inputs are int64 (n, 2, L), tokens of 0 .. vocabulary - 1 and their mask.
        vocabulary: the number of tokens, where it is known.
        class_names: what the classes are called in image folders, in the order of their numbers; empty where labels are numbers.
        tokenizer: the digest of the tokenizer that makes tokens of texts, if one does.
        codings: how the columns that aren't numbers are read, and the label.
        dialect: how the public file is written, where it is a CSV file.
        id_like: the features that look like ids in public records, which a warning names.
        unlabelled: the number of public records without a label, which are left out.
        target_means: what is subtracted from the targets of a regression, one number a target; empty where they are as they are.
        target_scales: what targets are divided by then.
        target_head: the name of the model's last layer, which turns outputs back into the targets' own units.
        absent: the share of public records that miss each raw feature; empty where none does, and then in no file.
        definition: how the features of a clinical database are made, see ``clinical.catalogue``; None for other records.
    """

    loss: str
    image: bool
    names: tuple[str, ...]
    shape: tuple[int, ...] | None = None
    pixel_scale: float = 1.0
    classes: int | None = None
    medians: tuple[float, ...] = ()
    means: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    flags: tuple[int, ...] = ()
    bound: float | None = None
    constant: bool = False
    tokens: bool = False
    vocabulary: int | None = None
    class_names: tuple[str, ...] = ()
    tokenizer: str | None = None
    codings: tuple[Coding, ...] = ()
    dialect: Dialect | None = None
    id_like: tuple[str, ...] = ()
    unlabelled: int = 0
    target_means: tuple[float, ...] = ()
    target_scales: tuple[float, ...] = ()
    target_head: str | None = None
    absent: tuple[float, ...] = ()
    definition: str | None = None

    @property
    def levels(self) -> dict[int, Coding]:
        """The codings of the categorical features, by the position of the feature."""
        return {self.names.index(coding.column): coding for coding in self.codings if coding.kind == "levels"}

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """The shape of one record's model input, where it is known."""
        if self.shape is None:
            return None
        extra = len(self.flags) + int(self.constant) + sum(coding.width - 1 for coding in self.levels.values())
        return (self.shape[0] + extra,) if extra else self.shape

    @property
    def record_shape(self) -> tuple[int, ...]:
        """``shape`` as a config gives it: of an idx image without its channel, of tokens without their mask."""
        shape = self.shape or ()
        return shape[1:] if self.tokens or (self.image and shape[:1] == (1,)) else shape

    def inputs(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Turn raw features (n, *shape), NaN where missing, into model inputs, float64 (n, *input_shape), row by row.

        Tokens are left as they are: int64.
        """
        if self.tokens:
            return raw
        values = np.asarray(raw, dtype=np.float64)
        if self.image:
            return values * self.pixel_scale
        flat = values.reshape(len(values), math.prod(values.shape[1:]))
        missing = np.isnan(flat)
        width = flat.shape[1]
        features = np.where(missing, _vector(self.medians, width, 0.0), flat)
        with np.errstate(all="ignore"):
            features = (features - _vector(self.means, width, 0.0)) / _vector(self.scales, width, 1.0)
        if self.bound is not None:  # infinity stays: its record is refused
            features = np.where(np.isfinite(features), np.clip(features, -self.bound, self.bound), features)
        levels = self.levels
        if not self.flags and not self.constant and not levels:
            return features.reshape(values.shape)
        if levels:
            numeric = [at for at in range(width) if at not in levels]
            features = np.concatenate(
                [features[:, numeric], *(_indicators(flat[:, at], coding.width) for at, coding in levels.items())],
                axis=1,
            )
        extra = [missing[:, list(self.flags)].astype(np.float64)]
        if self.constant:
            extra.append(np.ones((len(flat), 1)))
        return np.concatenate([features, *extra], axis=1)

    def targets(self, raw: FloatArray) -> FloatArray:
        """Turn targets in their own units, float64 (n,) or (n, o), into those of the run."""
        if not self.target_scales:
            return raw
        matrix = raw.reshape(len(raw), len(self.target_scales))
        scaled = (matrix - np.array(self.target_means)) / np.array(self.target_scales)
        return scaled.reshape(raw.shape)

    def check(self, reader: Reader) -> None:
        """Raise FileContentError unless the reader's file has the schema's columns and shape; the message names both."""
        where = ", ".join(str(path) for path in reader.files()) or "the file"
        if self.names == (PIXELS,) != reader.names and self.image and not reader.image:
            raise FileContentError(
                f"{where}: its records aren't images of bytes, as the plan's are; expected uint8 in 3 or 4 dimensions, or another format "
                "of images; write them so, and set data.*.columns.images = true"
            )
        missing = [name for name in self.names if name not in reader.names]
        unexpected = [name for name in reader.names if name not in self.names]
        if missing or unexpected or len(self.names) != len(reader.names):
            raise FileContentError(
                f"{where}: other columns than the plan's {len(self.names)} features: missing {some(missing)}; "
                f"unexpected {some(unexpected)}; give the plan's columns, or list the others in data.*.columns.exclude"
            )
        if self.shape is not None and tuple(reader.shape) != self.shape:
            raise FileContentError(f"{where}: records of shape {tuple(reader.shape)}; expected the plan's {self.shape}")
        if reader.tokenizer is not None and reader.tokenizer != self.tokenizer:
            expected = (self.tokenizer or "none")[:16]
            raise FileContentError(
                f"data.tokenizer: its digest is {reader.tokenizer[:16]}; expected {expected}, the plan's: every site needs the same files; "
                "get them from whoever made the plan"
            )
        if None not in (reader.definition, self.definition) and reader.definition != self.definition:
            raise FileContentError(
                f"{where}: features made by another definition than the plan's: other itemids, ranges or windows; expected the same "
                "at every site: use the version of distqexp that made the plan"
            )
        single = self.loss != "mean-squared-error" and not is_own(self.loss)
        if single and reader.target_shape not in ((), (1,)):
            raise FileContentError(
                f"{where}: labels of shape {reader.target_shape}; expected one label a record for {self.loss}; "
                "recode them, or correct model.loss"
            )

    @property
    def words_of_classes(self) -> tuple[str, ...]:
        """What the classes are called, in the order of their numbers; empty where labels are numbers."""
        return next((coding.values for coding in self.codings if coding.kind == "classes"), self.class_names)

    def to_tree(self) -> dict[str, Any]:
        """Return the schema in JSON types; floats keep every bit."""
        tree = dataclasses.asdict(self)
        tree["codings"] = [[coding.column, coding.kind, list(coding.values)] for coding in self.codings]
        tree = {name: value for name, value in tree.items() if value or name not in _OPTIONAL}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in tree.items()}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Schema:
        """Make the schema that ``to_tree`` returned this tree of.

        Raises FileContentError for anything else, as the tree may come from elsewhere.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        if {*tree, *_OPTIONAL} != fields:
            raise FileContentError(f"schema: keys {some(sorted(tree), 20)}; expected {some(sorted(fields), 20)}")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in tree.items()}
        try:
            values["codings"] = tuple(Coding(name, kind, tuple(texts)) for name, kind, texts in values["codings"])
            values["dialect"] = None if values["dialect"] is None else Dialect(**values["dialect"])
        except (TypeError, ValueError):
            raise FileContentError("schema: codings or dialect of another form; get the plan again") from None
        schema = cls(**values)
        schema._validate()
        need_codings(schema.codings, schema.names, schema.dialect)
        return schema

    def _validate(self) -> None:
        def need(good: bool, what: str) -> None:
            if not good:
                raise FileContentError(f"schema: {what}; the plan is damaged, or of another program: make a new one")

        need(isinstance(self.loss, str) and _all((self.image, self.constant, self.tokens), bool), "wrong types")
        need(_all(self.names, str) and len(self.names) > 0, "names must be texts")
        need(self.shape is None or (_all(self.shape, int) and min(self.shape, default=0) >= 1), "shape must be sizes")
        for name, bound in (("classes", self.classes), ("vocabulary", self.vocabulary)):
            need(bound is None or (type(bound) is int and bound >= 1), f"{name} must be 1 or more")
        pair = self.shape is None or (len(self.shape) == 2 and self.shape[0] == 2)
        need(not self.tokens or (pair and not (self.image or self.means)), "tokens come with their mask, as they are")
        need(_all(self.id_like, str) and type(self.unlabelled) is int, "id_like must be texts, unlabelled a number")
        numbers = (self.pixel_scale, *self.medians, *self.means, *self.scales, *self.target_means, *self.target_scales)
        need(_all(numbers, (int, float)) and all(map(math.isfinite, numbers)), "statistics must be finite numbers")
        width = math.prod(self.shape) if self.shape is not None else None
        need(all(len(part) in (0, width) for part in (self.medians, self.means, self.scales)), "one number a feature")
        absent = _all(self.absent, float) and len(self.absent) in (0, len(self.means))
        need(absent and all(0 <= x <= 1 for x in self.absent), "absent must be a share of each feature")
        need(all(scale > 0 for scale in (*self.scales, *self.target_scales)), "scales must be above 0")
        need(len(self.target_means) == len(self.target_scales), "one mean and one scale a target")
        head = self.target_head
        need(isinstance(head, str) if self.target_scales else head is None, "scaled targets have a head")
        need(self.bound is None or (type(self.bound) is float and 0 < self.bound < math.inf), "bound must be above 0")
        names = self.class_names
        need(_all(names, str) and len(set(names)) == len(names), "class names must be distinct texts")
        need(self.tokenizer is None or (isinstance(self.tokenizer, str) and self.tokens), "a tokenizer makes tokens")
        need(self.definition is None or isinstance(self.definition, str), "definition must be a text")
        need(_all(self.flags, int) and all(0 <= at < (width or 0) for at in self.flags), "flags must be positions")
        vector = self.shape is not None and len(self.shape) == 1
        need(vector or not (self.flags or self.constant), "flags and constant need a vector a record")


def fit_schema(
    data: DataConfig,
    *,
    loss: str,
    classes: int | None = None,
    reader: Reader | None = None,
    record_shape: tuple[int, ...] | None = None,
) -> Schema:
    """Fit a schema on the public records that ``data`` selects (rows, where, blank).

    Medians ignore missing values and those beyond float32. Means and scales (the standard deviation, or 1 where it is zero) are
    taken after imputation. Raises UsageError and FileContentError as the readers do.

    Args:
        data: the public source.
        loss: the name of the loss.
        classes: the number of classes, where it is known.
        reader: a reader of the source, where one is open already.
        record_shape: the shape of a record as the config declares it, which images in folders are resized to.
    """
    reader = open_reader(data) if reader is None else reader
    rows = select_rows(data, reader)
    if len(rows) == 0:
        raise UsageError("data.public: rows and where leave no record; expected at least one; widen them")
    roles = data.columns
    tokens, numbers = data.tokens, loss == "mean-squared-error"
    reader.survey(rows, record_shape, numbers)
    codings = fitted_codings(data, reader, rows)
    reader = reader.coded(codings)
    base = Schema(loss, reader.image, reader.names, tuple(reader.shape), reader.scale, classes, tokens=tokens)
    base = dataclasses.replace(base, codings=codings, dialect=reader.dialect, definition=reader.definition)
    if data.format == "images" and not numbers:
        base = dataclasses.replace(base, class_names=roles.classes or reader.class_names)
    if reader.image or tokens:
        return dataclasses.replace(base, tokenizer=reader.tokenizer)
    if len(reader.shape) > 1 and (roles.constant or roles.missing_flag_above is not None):
        raise UsageError("data.*.columns: constant and missing_flag_above need vectors; remove them for arrays")
    medians, means, scales, shares = [], [], [], []
    id_like: list[str] = []
    coded = {coding.column for coding in codings}
    for first, block in column_blocks(reader, rows):
        missing = np.isnan(block)
        if len(reader.names) == math.prod(reader.shape):
            columns = zip(reader.names[first:], block.T, strict=False)
            id_like += [name for name, column in columns if name not in coded and looks_like_id(name, column)]
        shares.append(missing.mean(axis=0))
        block[~(np.abs(block) <= np.finfo(np.float32).max)] = np.nan  # what no record can hold
        middle = np.array(
            [np.median(numbers) if len(numbers := column[~np.isnan(column)]) else 0.0 for column in block.T]
        )
        block = np.where(np.isnan(block), middle, block)
        spread = np.where(block.max(axis=0) > block.min(axis=0), block.std(axis=0), 1.0)
        medians.append(middle)
        means.append(block.mean(axis=0) if roles.standardise else np.zeros(len(middle)))
        scales.append(np.where(spread > 0, spread, 1.0) if roles.standardise else np.ones(len(middle)))
    absent, most = np.concatenate(shares), roles.missing_flag_above
    return dataclasses.replace(
        base,
        medians=tuple(np.concatenate(medians).tolist()),
        means=tuple(np.concatenate(means).tolist()),
        scales=tuple(np.concatenate(scales).tolist()),
        flags=() if most is None else tuple(np.flatnonzero(absent > most).tolist()),
        bound=None if roles.winsorise_above is None else float(roles.winsorise_above),
        constant=roles.constant,
        id_like=tuple(id_like),
        unlabelled=unlabelled_rows(reader, rows),
        absent=tuple(absent.tolist()) if absent.any() else (),
    )


def schema_from_config(
    data: DataConfig, *, loss: str, classes: int | None = None, record_shape: tuple[int, ...] | None = None
) -> Schema:
    """Make the schema without public data: no file is opened, zeros stand for missing values, and nothing is standardised.

    A table must then list its features, and there are no missingness columns. Raises UsageError.

    Args:
        data: the private source.
        loss: the name of the loss.
        classes: the number of classes, where it is known.
        record_shape: the shape of a grey image (h, w) or of another (c, h, w), of an array's record, or of its tokens (L,).
    """
    if data.format in ("digits", *CLINICAL_FORMATS):
        return _schema_of_format(data, loss, classes)
    if data.images:
        shape = None if record_shape is None else declared.image_shape(record_shape, grey=data.format == "idx")
        names = declared.class_names(data, loss, shape) if data.format == "images" else ()
        return Schema(loss, True, (PIXELS,), shape, 1.0 / 255.0, classes, class_names=names)
    roles = data.columns
    if data.format in ("npy", "npz") and data.images is None:
        raise UsageError("data.*.columns.images: not given; without data.public, expected true or false")
    if roles.winsorise_above is not None:
        raise UsageError("data.*.columns.winsorise_above: needs data.public, whose moments it counts in; remove it")
    features = ("features",) if data.format == "npy" else roles.features
    if features is None:
        raise UsageError("data.*.columns.features: not given; without data.public, expected the list of the features")
    if data.format in ARRAY_FORMATS:
        if roles.constant:
            raise UsageError(
                "data.*.columns.constant: true; with arrays it needs data.public; remove it, or use a bias"
            )
        if not roles.tokens:
            return Schema(loss, False, features, record_shape, 1.0, classes)
    if data.tokens:
        tokenizer = None if data.tokenizer is None else open_tokenizer(data.tokenizer).digest
        shape = declared.token_shape(data, record_shape)
        codings = declared_codings(data)
        return Schema(loss, False, features, shape, 1.0, classes, tokens=True, tokenizer=tokenizer, codings=codings)
    codings = declared_codings(data)
    return Schema(loss, False, features, (len(features),), 1.0, classes, constant=roles.constant, codings=codings)


def _schema_of_format(data: DataConfig, loss: str, classes: int | None) -> Schema:
    """Make the schema of records whose format says what they are.

    Of ICU stays textbooks' figures stand for missing values, and for means and scales.
    """
    if data.format == "digits":
        return Schema(loss, True, ("pixels",), (1, 8, 8), 1.0 / 16.0, classes)
    roles, names = data.columns, catalogue.chosen(data.columns.features, data.columns.exclude)
    typical, spreads = (
        tuple(figures[catalogue.FEATURES.index(name)] for name in names)
        for figures in (catalogue.TYPICAL, catalogue.SPREADS)
    )
    return Schema(
        loss, False, names, (len(names),), 1.0, classes,
        medians=typical, means=typical if roles.standardise else (), scales=spreads if roles.standardise else (),
        bound=None if roles.winsorise_above is None else float(roles.winsorise_above),
        constant=roles.constant, definition=catalogue.definition(),
    )  # fmt: skip


def _indicators(codes: FloatArray, width: int) -> FloatArray:
    """Return float64 (n, width): a 1 in the column of each code; zeros where a code is missing."""
    return np.asarray(codes[:, None] == np.arange(width), dtype=np.float64)


def _vector(values: tuple[float, ...], width: int, default: float) -> FloatArray:
    return np.array(values, dtype=np.float64) if values else np.full(width, default)


def _all(values: Any, kind: Any) -> bool:
    """Whether ``values`` is a tuple of this kind alone, where a bool is no number."""
    exact = kind is bool
    return isinstance(values, tuple) and all(isinstance(x, kind) and (isinstance(x, bool) == exact) for x in values)
