"""How a CSV file is written: its separator and its decimal sign, found where they are public, and refused where they are in doubt."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distqexp.config import DataConfig
from distqexp.config.data import SEPARATORS
from distqexp.errors import FileContentError

_WITH_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?", re.ASCII)
_WITH_POINT = re.compile(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_EXCEL = re.compile(r"sep=[,;\t|]?", re.ASCII | re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?\d{1,3},\d{3}", re.ASCII)


@dataclass(frozen=True)
class Dialect:
    """How the fields of a CSV file are written. Public: it is declared, or found in public records or in a header.

    Attributes:
        separator: what stands between two fields.
        decimal: the decimal sign.
        encoding: how letters are stored.
        quotes: whether quotation marks enclose fields.
    """

    separator: str = ","
    decimal: str = "."
    encoding: str = "utf-8"
    quotes: bool = True

    def fields(self, text: str) -> list[str] | None:
        """Return the fields of one record; None where the text is not one."""
        rows = self.rows([text])
        return rows[0] if rows is not None and len(rows) == 1 else None

    def rows(self, texts: Iterable[str]) -> list[list[str]] | None:
        """Return the fields of records, parsed all at once; None where a text is no record."""
        try:
            if self.quotes:
                return list(csv.reader(texts, delimiter=self.separator, strict=True))
            return list(csv.reader(texts, delimiter=self.separator, quoting=csv.QUOTE_NONE, strict=True))
        except csv.Error:
            return None

    def number_text(self, text: str) -> str:
        """Return the text of a number with a decimal point; a text that isn't written with the decimal sign stays no number."""
        if self.decimal == ".":
            return text
        return text.replace(",", ".") if "." not in text else f"{text}?"


def separator_of(header: str, data: DataConfig, path: Path) -> str:
    """Return the separator of a header: the declared one, or the only one that the header has or that its roles fit.

    Raises FileContentError where the header has another one than is declared, or several that would do, or is none.
    """
    first = header.strip()
    if _EXCEL.fullmatch(first) or (first.startswith("#") and not any(sign in first for sign in SEPARATORS)):
        what = "a comment" if first.startswith("#") else "Excel's note of the separator"
        raise FileContentError(
            f"{path}: its first line is {what}; expected the names of the columns: take the line out"
        )
    quoted = re.compile('"[^"]*"') if data.quotes else re.compile("(?!)")
    present = [sign for sign in SEPARATORS if sign in quoted.sub("", header)]
    if data.separator is not None:
        if present and data.separator not in present:
            raise FileContentError(
                f"{path}: its header is separated by {_words(present)}; expected {data.separator!r}, as data.*.separator says; correct one"
            )
        return data.separator
    roles = [name for name in (data.columns.target, data.unit, *(data.columns.features or ())) if name is not None]
    fitting = [
        sign
        for sign in present
        if set(roles) <= {name.strip() for name in Dialect(sign, quotes=data.quotes).fields(header) or ()}
    ]
    if len(present) <= 1 or not fitting:
        return "," if "," in present else (present or [","])[0]
    if len(fitting) > 1 and "," not in fitting:
        raise FileContentError(
            f"{path}: its header can be read with the separators {_words(fitting)}; expected one: say data.*.separator"
        )
    return "," if "," in fitting else fitting[0]


def decimal_of(columns: Sequence[str], records: Iterable[Sequence[str]], path: Path) -> str:
    """Return the decimal sign of public records: a comma where there are numbers with one and none with a point.

    Args:
        columns: the names of the columns to look at.
        records: the entries of these columns, a record at a time.
        path: the file, for messages.

    Raises:
        FileContentError: both signs are there, or each comma may separate thousands.
    """
    comma, point, thousands = set[str](), set[str](), True
    for record in records:
        for name, entry in zip(columns, record, strict=True):
            text = entry.strip()
            if _WITH_COMMA.fullmatch(text):
                comma.add(name)
                thousands = thousands and _THOUSANDS.fullmatch(text) is not None
            elif _WITH_POINT.fullmatch(text):
                point.add(name)
    if not comma or (point and comma & point):
        if comma:
            raise _decimal_in_doubt(path, sorted(comma), "beside numbers with a point")
        return "."
    if point:
        raise _decimal_in_doubt(path, sorted(comma), f"and with a point in {', '.join(map(repr, sorted(point)))}")
    if thousands:
        raise _decimal_in_doubt(path, sorted(comma), "which may separate thousands")
    return ","


def refuse_unlike_dialect(path: Path, data: DataConfig, found: Dialect, public: Dialect | None) -> None:
    """Refuse a private file that nothing public says how to read: no entry of it may tell, as entries are private.

    Args:
        path: the private file.
        data: its source, which may declare what it is.
        found: how it is read, by what is declared and by its header.
        public: how the public file is written; None where there is none, or no CSV file.

    Raises:
        FileContentError: the decimal sign or the encoding isn't declared and need not be that of the public file.
    """
    like, whose = public or Dialect(), "data.public is" if public else "without data.public it is taken to be"
    doubts, lines = [], []
    if data.decimal is None and (found.separator, found.decimal) != (like.separator, like.decimal):
        doubts.append(
            f"separated by {found.separator!r} ({whose} by {like.separator!r}, with decimal {like.decimal!r})"
        )
        lines.append('decimal = "," or decimal = "."')
    if data.encoding is None and found.encoding != like.encoding:
        doubts.append(f"of no declared encoding ({whose} {like.encoding})")
        lines.append(f'encoding = "{like.encoding}" or encoding = "utf-8"')
    if data.quotes and not like.quotes:
        doubts.append(f"with quotation marks around fields ({whose} without)")
        lines.append("quotes = false")
    if lines:
        raise FileContentError(
            f"{path}: {', '.join(doubts)}; expected to be told how to read it, since private entries aren't looked at for this: add to its "
            f"section (data.private or data.eval) {', '.join(lines)}"
        )


def _words(signs: Sequence[str]) -> str:
    return " and ".join(map(repr, signs))


def _decimal_in_doubt(path: Path, columns: Sequence[str], what: str) -> FileContentError:
    shown = ", ".join(map(repr, columns[:6]))
    return FileContentError(
        f"{path}: numbers with a comma in {shown}, {what}; expected one decimal sign in all columns: say data.*.decimal, or recode them"
    )
