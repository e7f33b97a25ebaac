"""[data]: the public and the private records. The config of a source is public, whatever its records are."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import ClassVar, Literal

from distqexp.config.rules import Need, Rule, field_needs, key

ARRAY_FORMATS = ("hdf5", "npz", "npy")
"""The formats of arrays, which may hold images or tokens."""
FOLDER_FORMATS = ("images", "arrow")
"""The formats whose path is a folder."""
CLINICAL_FORMATS = ("mimic-iv", "meds")
"""The formats of clinical databases, whose path is a folder, or the file that distqexp stays made of it."""

SEPARATORS = (",", ";", "\t", "|")
"""The signs that may stand between two fields of a CSV file."""


@dataclass(frozen=True)
class ColumnsConfig:
    """[data.*.columns]: the roles of the columns of a table, or of arrays."""

    target: str | None = key("column or array of the label", default=None)
    features: tuple[str, ...] | None = key("feature columns or one array; all the others when absent", default=None)
    exclude: tuple[str, ...] = key("columns that are never features", default=())
    missing_flag_above: float | None = key(
        "add a 0/1 missingness column for features missing in more than this share of the public rows",
        Rule("a share, 0 or more and below 1", lambda value: 0 <= value < 1),
        default=None,
    )
    standardise: bool = key("centre and scale features by public moments", default=True)
    winsorise_above: float | None = key(
        "cut standardised features off at so many public standard deviations above and below the public mean",
        default=None,
    )
    constant: bool = key("append a column of ones", default=False)
    tokens: bool = key("arrays: features are token numbers, whole numbers (n, L), all of one length", default=False)
    mask: str | None = key("tokens: array (n, L) of 1 for tokens and 0 for padding; all 1 when absent", default=None)
    images: bool | None = key(
        "arrays: features are images of bytes, divided by 255; when absent, uint8 of 3 or 4 axes is, but in hdf5 only without target",
        default=None,
    )
    length: int | None = key(
        "text and arrow: so many tokens a record; more are cut off, fewer are padded; for arrow the longest public list when absent",
        Rule("1 or more", lambda value: value >= 1),
        default=None,
    )
    categorical: tuple[str, ...] = key(
        "columns of categories: one input for each level of the public records, and one for all other levels",
        default=(),
    )
    levels: tuple[tuple[str, tuple[str, ...]], ...] = key(
        'declared levels of categorical columns, in the place of those of the public records: { ward = ["north", "south"] }',
        default=(),
    )
    dates: tuple[tuple[str, str], ...] = key(
        'columns of dates (YYYY-MM-DD), read as days since a day: { admitted = "2020-01-01" }', default=()
    )
    booleans: tuple[str, ...] = key(
        "columns of true/false, t/f, yes/no, y/n or 1/0, in upper or lower case", default=()
    )
    classes: tuple[str, ...] = key(
        'the texts of the label in the order of their class numbers: ["no", "yes"]; when absent, tables have numbers, and image folders '
        "the names of the public classes in the order of the alphabet",
        default=(),
    )

    @property
    def coded(self) -> tuple[str, ...]:
        """The columns that are categorical, dates or booleans."""
        levels, dates = ([name for name, _ in pairs] for pairs in (self.levels, self.dates))
        return tuple(dict.fromkeys([*self.categorical, *levels])) + tuple(dates) + self.booleans

    def _coding_needs(self, where: str, format: str) -> Iterator[Need]:
        """Yield what the keys of columns that aren't numbers must be."""
        tables, classes = ("csv", "parquet"), self.classes
        worded = (*tables, "arrow", "text", "images")
        yield Need(not self.coded or format in tables, where, list(self.coded), "format = csv or parquet with them")
        named = not classes or format in worded
        yield Need(named, f"{where}.classes", list(classes), f"format = {', '.join(worded[:-1])} or images with them")
        twice = sorted({name for name in self.coded if self.coded.count(name) > 1})
        yield Need(not twice, where, twice, "each in one of categorical, levels, dates and booleans")
        roles = [name for name in self.coded if name in (self.target, *self.exclude)]
        yield Need(not roles, where, roles, "features in categorical, levels, dates and booleans; labels have classes")
        for name, levels in (*self.levels, ("classes", self.classes)):
            distinct = len(set(levels)) == len(levels) and all(level.strip() == level != "" for level in levels)
            yield Need(distinct, f"{where}.{name}", list(levels), "different texts without blanks around them")
        for name, day in self.dates:
            yield Need(_is_day(day), f"{where}.dates.{name}", day, "a day such as 2020-01-01")

    def needs(self, where: str, format: str) -> Iterator[Need]:
        """Yield what the keys must be, by themselves and together, in a source of this format. ``where`` names the section."""
        yield from self._coding_needs(where, format)
        tabular, arrays = format in ("csv", "parquet", "arrow", "text", *CLINICAL_FORMATS), format in ARRAY_FORMATS
        yield Need(not tabular or self.target is not None, f"{where}.target", None, "the column of the label")
        listed = arrays or format == "arrow"
        yield Need(not self.tokens or listed, f"{where}.tokens", True, "format = hdf5, npz, npy or arrow")
        texts = format == "text"
        yield Need(
            self.length is None or texts or format == "arrow", f"{where}.length", self.length, "format = text or arrow"
        )
        yield Need(not texts or self.length is not None, f"{where}.length", None, "the number of tokens of a record")
        yield Need(
            not texts or len(self.features or ()) == 1,
            f"{where}.features",
            self.features,
            "the one column of the texts",
        )
        yield Need(self.images is None or arrays, f"{where}.images", self.images, "format = hdf5, npz or npy")
        yield Need(not (self.tokens and self.images), f"{where}.images", True, "tokens = false with it")
        named = [name for name in ("target", "features", "mask") if getattr(self, name) is not None]
        yield Need(
            format != "npy" or not named,
            f"{where}.{''.join(named[:1])}",
            "a name",
            "none: npy has no names; use npz, or labels",
        )
        yield Need(self.mask is None or self.tokens, f"{where}.mask", self.mask, "columns.tokens = true with it")
        extra = self.constant or self.missing_flag_above is not None
        yield Need(
            not (self.tokens and extra), f"{where}.tokens", True, "neither constant nor missing_flag_above with it"
        )
        yield from field_needs(where, self)
        bound = self.winsorise_above
        yield Need(
            bound is None or (bound > 0 and math.isfinite(bound) and self.standardise),
            f"{where}.winsorise_above", bound, "a finite number above 0, and standardise = true",
        )  # fmt: skip
        yield Need(bound is None or not self.tokens, f"{where}.tokens", True, "no winsorise_above with it")


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


@dataclass(frozen=True)
class DataConfig:
    """[data.public], [data.private] and [data.eval]: one source of records each."""

    labelled: ClassVar[bool] = True
    """Whether the records have labels, which are read with them."""

    format: Literal[
        "digits", "idx", "csv", "parquet", "hdf5", "npz", "npy", "images", "arrow", "text", "mimic-iv", "meds"
    ] = key("the reader")
    path: str | None = key(
        "file, for images and arrow a folder, for mimic-iv and meds a folder or what distqexp stays made of it; ${NAME} is an environment "
        "variable; relative to the config file; a name such as ward-*.csv is that of several tables",
        default=None,
    )
    labels: str | None = key(
        "file of the labels, for idx and npy; for npy it may be absent where one beside is named y as path is named x; for images a "
        "CSV file of names and labels, absent where each class is a subfolder",
        default=None,
    )
    tokenizer: str | None = key(
        "text: folder with the file tokenizer.json; every site needs the same, which is compared", default=None
    )
    rows: tuple[tuple[int, int], ...] | None = key("half-open ranges [first, last) of rows of the file", default=None)
    where: str | None = key('filter on columns, such as "CCU == 1 and Age >= 18"; of images, "label < 5"', default=None)
    rotate: float = key(
        "rotate images by so many degrees, counter-clockwise", Rule("degrees", math.isfinite), default=0.0
    )
    columns: ColumnsConfig = key("roles of the columns", default_factory=ColumnsConfig)
    unit: str | None = key(
        "column or array of the privacy unit's id; when absent, every record is a unit of its own", default=None
    )
    shard: str | None = key("name of the shard; the plan expects each name exactly once", default=None)
    blank: str | None = key(
        ".npy file of booleans, one for each row of the file; true blanks that record's slot", default=None
    )
    separator: str | None = key(
        'csv: the sign between two fields: "," ";" "\\t" or "|"; found in the header when absent', default=None
    )
    decimal: str | None = key(
        'csv: the decimal sign, "." or ","; when absent, found in public records and "." in private ones', default=None
    )
    encoding: str | None = key(
        "csv: how letters are stored; when absent, utf-8, or utf-16 where its mark is there",
        default=None,
        one_of=("utf-8", "latin-1", "cp1252", "cp1250", "mac-roman"),
    )
    quotes: bool = key("csv: whether quotation marks enclose fields; false where they are plain text", default=True)

    @property
    def unit_name(self) -> str:
        """The column of the unit's id, or "record" where every record is a unit of its own."""
        return "record" if self.unit is None else self.unit

    @property
    def tokens(self) -> bool:
        """Whether the records are tokens with their mask."""
        return self.columns.tokens or self.format == "text"

    @property
    def images(self) -> bool | None:
        """Whether the records are images; None where only the file tells."""
        if self.format in ARRAY_FORMATS and not self.columns.tokens:
            detected = self.format != "hdf5" or self.columns.target is None
            return self.columns.images if self.columns.images is not None or detected else False
        return self.format in ("digits", "idx", "images")

    def needs(self, where: str) -> Iterator[Need]:
        """Yield what the keys of one source must be. ``where`` names the section."""
        for first, last in self.rows or ():
            yield Need(0 <= first < last, f"{where}.rows", [first, last], "0 <= first < last")
        tokenizer = self.tokenizer
        yield Need(tokenizer is None or self.format == "text", f"{where}.tokenizer", tokenizer, "format = text")
        yield from field_needs(where, self)
        text = self.format == "csv"
        for name, value in (("separator", self.separator), ("decimal", self.decimal), ("encoding", self.encoding)):
            yield Need(text or value is None, f"{where}.{name}", value, "format = csv, the only one that has it")
        yield Need(text or self.quotes, f"{where}.quotes", self.quotes, "format = csv, the only one that has it")
        yield Need(
            self.separator in (None, *SEPARATORS), f"{where}.separator", self.separator, '"," ";" "\\t" (a tab) or "|"'
        )
        yield Need(self.decimal in (None, ".", ","), f"{where}.decimal", self.decimal, '"." or ","')
        yield Need(
            self.decimal != "," or self.separator != "," or self.quotes,
            f"{where}.decimal", ",", "quotes = true with separator = \",\": numbers with a comma stand in quotes there",
        )  # fmt: skip
        yield from self.columns.needs(f"{where}.columns", self.format)
        person = self.format not in CLINICAL_FORMATS or not self.labelled or self.unit == "subject_id"
        yield Need(
            person or where != "data.private", f"{where}.unit", self.unit, "subject_id: a patient has several stays"
        )


@dataclass(frozen=True)
class NewRecords(DataConfig):
    """Records to predict for: a source whose labels are never looked at. No config has one."""

    labelled: ClassVar[bool] = False


@dataclass(frozen=True)
class AllDataConfig:
    """[data]: all sources of records."""

    private: tuple[DataConfig, ...] = key("the sensitive records: a table, or an array of tables (one for each shard)")
    population: str = key(
        "name under which the ledger keeps the budget", Rule("a name", lambda value: bool(value.strip()))
    )
    public: DataConfig | None = key("public records: pretraining, curvature, clip quantile", default=None)
    record_shape: tuple[int, ...] | None = key(
        "shape of a record, where no data.public shows it: [28, 28] for grey images, [3, 32, 32] for others or arrays, [128] for tokens",
        Rule("sizes of 1 or more", lambda value: bool(value) and min(value) >= 1),
        default=None,
    )
    eval: DataConfig | None = key("records that metrics are computed on", default=None)
    eval_private: bool = key("whether data.eval is private: its metrics are then marked as not covered", default=False)
    classes_private: bool = key(
        "whether the classes were taken from private labels: the certificate then says so", default=False
    )

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the expected shards, in order."""
        return tuple(data.shard or "all" for data in self.private)

    def needs(self) -> Iterator[Need]:
        """Yield what the keys must be, by themselves and together."""
        names = self.shards
        yield Need(len(self.private) > 0, "data.private", "no shard", "at least one table")
        yield Need(len(set(names)) == len(names), "data.private.shard", list(names), "a different name for every shard")
        for name in names:
            plain = name.replace("-", "").replace("_", "").isalnum()
            yield Need(plain, "data.private.shard", name, "letters, digits, - and _ only")
        for where, data in (("data.public", self.public), ("data.eval", self.eval)):
            if data is not None:
                yield from data.needs(where)
        for data in self.private:
            yield from data.needs("data.private")
            yield Need(
                data.unit is None or (data.unit != "record" and bool(data.unit.strip())),
                "data.private.unit", data.unit, "another name of a column: record is the ledger's word for records that are units of "
                "their own; rename the column, or leave the key out",
            )  # fmt: skip
        yield Need(
            len({data.unit is None for data in self.private}) == 1,
            "data.private.unit", [data.unit for data in self.private], "a column in every shard or in none: a run protects one kind "
            "of unit",
        )  # fmt: skip
        yield from field_needs("data", self)
        normal = unicodedata.normalize("NFC", self.population).strip()
        yield Need(
            self.population == normal,
            "data.population", self.population, f"{normal!r}: no blanks around it, Unicode form NFC",
        )  # fmt: skip
        yield Need(
            self.population.isprintable(),
            "data.population", self.population, "a name of signs that can be seen: two that look alike would have a budget each",
        )  # fmt: skip
