"""One unit, one id: the canonical text that every way of writing a unit's id is brought to.

- Numbers, and texts of whole numbers, become the whole number's digits: 17, 17.0, "17", " 17 ", "17.0" and b"17" become "17".
- Texts lose the blanks around them and take Unicode's form NFC; bytes are read as UTF-8; dates and other values become their text.
- Missing and unreadable ids (None, not a number, infinite, bytes that aren't UTF-8, blanks alone) become None.

Ids that remain in doubt are refused, and nothing is guessed: whole numbers that came as floats too large to be exact, and ids that
are different texts but one number, or one text except for case, width, or invisible signs.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import numpy as np

from distqexp.errors import FileContentError

_EXACT = 2**53
"""From this number on, two whole numbers may be one float64."""

_WHOLE = re.compile(r"(-?)(0|[1-9][0-9]*)(\.0*)?", re.ASCII)
_CANONICAL = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)
_IGNORED = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]")
_NUMBER = re.compile(r"([+-]?)([0-9]*)\.?([0-9]*)(?:e([+-]?[0-9]{1,9}))?", re.ASCII)


def canonical_id(value: Any, where: str = "unit ids") -> str | None:
    """Return the canonical text of a unit's id, None for a missing or unreadable one. A canonical text is left as it is.

    Args:
        value: the id as it stands in a file.
        where: file and column, for error messages.

    Raises:
        FileContentError: the id is a whole number that may have been rounded.
    """
    if value is None:
        return None
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            return None
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return _of_float(value, where)
    if isinstance(value, Decimal):
        if not value.is_finite():
            return None
        value = format(value, "f")
    return _of_text(str(value), where)


def refuse_mixture(names: Iterable[str], where: str = "unit ids") -> None:
    """Raise FileContentError where it is unclear whether two canonical ids are one unit or two."""
    name_of_key: dict[str, str] = {}
    whole = fraction = False
    for name in names:
        key, exponent = _likeness_key(name)
        if name_of_key.setdefault(key, name) != name:
            raise _mixture_error(where)
        whole |= _CANONICAL.fullmatch(name) is not None
        fraction |= exponent < 0
    if whole and fraction:
        raise _mixture_error(where)


def _of_float(value: Any, where: str) -> str | None:
    number = float(value)
    if not math.isfinite(number):
        return None
    if not number.is_integer():
        return repr(number)
    # A float32 or float16 column holds fewer whole numbers.
    exact = 2 ** (int(np.finfo(value.dtype).nmant) + 1) if isinstance(value, np.floating) else _EXACT
    if abs(number) >= min(exact, _EXACT):
        raise _rounding_error(where)
    return str(int(number))


def _of_text(text: str, where: str) -> str | None:
    text = unicodedata.normalize("NFC", text).strip()
    if not text or any("\ud800" <= sign <= "\udfff" for sign in text):
        return None
    match = _WHOLE.fullmatch(text)
    if match is None:
        return text
    if match[3] is not None and (len(match[2]) > 16 or int(match[2]) >= _EXACT):  # int() refuses thousands of digits
        raise _rounding_error(where)
    return "0" if match[2] == "0" else match[1] + match[2]


def _likeness_key(name: str) -> tuple[str, int]:
    """Return what ids that may be one unit share: for numbers their value, with the exponent of the last digit (else 0)."""
    if name.isascii() and name.isdigit() and name[0] != "0":
        digits = name.rstrip("0")
        return f"\0+{digits}e{len(name) - len(digits)}", 0
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", _visible(name)).casefold())
    text = " ".join(unicodedata.normalize("NFKC", _visible(text)).split())
    match = _NUMBER.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        return text, 0
    digits, exponent = (match[2] + match[3]).lstrip("0"), int(match[4] or 0) - len(match[3])
    short = digits.rstrip("0")
    if not short:
        return "\0+0e0", 0
    exponent += len(digits) - len(short)
    return f"\0{match[1].replace('+', '') or '+'}{short}e{exponent}", exponent


def _visible(text: str) -> str:
    return "".join(sign for sign in text if not _is_invisible(sign))


def _is_invisible(sign: str) -> bool:
    """Whether a sign is a format, a control that is no blank, a variation selector, or ignorable by default in Unicode."""
    category = unicodedata.category(sign)
    return category == "Cf" or (category == "Cc" and not sign.isspace()) or _IGNORED.fullmatch(sign) is not None


def _rounding_error(where: str) -> FileContentError:
    return FileContentError(
        f"{where}: a whole number is a float and too large to be exact, so that several ids may have become one; expected whole "
        "numbers as integers or texts; write the column anew"
    )


def _mixture_error(where: str) -> FileContentError:
    return FileContentError(
        f"{where}: ids that may or may not be one unit: one number or text in two ways of writing (such as 017 and 17, A1 and a1), or "
        "whole numbers beside fractions; expected one way for all, in every shard; write the column anew"
    )
