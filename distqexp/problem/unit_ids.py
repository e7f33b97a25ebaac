"""One unit, one id: the text that every way of writing a unit's id is brought to.

- Numbers, and texts of whole numbers, become the whole number's digits: 17, 17.0, "17", " 17 ", "17.0" and b"17" are "17".
- Texts lose the blanks around them and take Unicode's form NFC; bytes are UTF-8; dates and other values are their text.
- Missing and unreadable ids (None, not a number, infinite, bytes that aren't UTF-8, blanks alone) are None.

What that leaves in doubt is refused, never guessed: whole numbers that came as floats too large for each to be one number, and
ids that are different texts but one number, or one text but for case, width, or invisible signs.
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

EXACT = 2**53
"""From here on two whole numbers may be one float64."""

_WHOLE = re.compile(r"(-?)(0|[1-9][0-9]*)(\.0*)?", re.ASCII)
_CANONICAL = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)
_IGNORED = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]")
_NUMBER = re.compile(r"([+-]?)([0-9]*)\.?([0-9]*)(?:e([+-]?[0-9]{1,9}))?", re.ASCII)


def canonical_id(value: Any, where: str = "unit ids") -> str | None:
    """The one text of a unit's id, see above; None for a missing or unreadable one. The same again for what it returns.

    where: file and column, for the message. Raises FileContentError for a whole number that may have been rounded.
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
    """Raise FileContentError when canonical ids can't be told to be different units, or the same."""
    seen: dict[str, str] = {}
    whole = fraction = False
    for name in names:
        key, exponent = _loose(name)
        if seen.setdefault(key, name) != name:
            raise _mixture(where)
        whole |= _CANONICAL.fullmatch(name) is not None
        fraction |= exponent < 0
    if whole and fraction:
        raise _mixture(where)


def _of_float(value: Any, where: str) -> str | None:
    number = float(value)
    if not math.isfinite(number):
        return None
    if not number.is_integer():
        return repr(number)
    # A float32 or float16 column holds fewer whole numbers.
    exact = 2 ** (int(np.finfo(value.dtype).nmant) + 1) if isinstance(value, np.floating) else EXACT
    if abs(number) >= min(exact, EXACT):
        raise _rounded(where)
    return str(int(number))


def _of_text(text: str, where: str) -> str | None:
    text = unicodedata.normalize("NFC", text).strip()
    if not text or any("\ud800" <= sign <= "\udfff" for sign in text):
        return None
    found = _WHOLE.fullmatch(text)
    if found is None:
        return text
    if found[3] is not None and (len(found[2]) > 16 or int(found[2]) >= EXACT):  # int() refuses thousands of digits
        raise _rounded(where)
    return "0" if found[2] == "0" else found[1] + found[2]


def _loose(name: str) -> tuple[str, int]:
    """What ids that may be one unit have in common; of numbers the value, and the exponent of its last digit (else 0)."""
    if name.isascii() and name.isdigit() and name[0] != "0":
        digits = name.rstrip("0")
        return f"\0+{digits}e{len(name) - len(digits)}", 0
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", _visible(name)).casefold())
    text = " ".join(unicodedata.normalize("NFKC", _visible(text)).split())
    found = _NUMBER.fullmatch(text)
    if found is None or not (found[2] or found[3]):
        return text, 0
    digits, exponent = (found[2] + found[3]).lstrip("0"), int(found[4] or 0) - len(found[3])
    short = digits.rstrip("0")
    if not short:
        return "\0+0e0", 0
    exponent += len(digits) - len(short)
    return f"\0{found[1].replace('+', '') or '+'}{short}e{exponent}", exponent


def _visible(text: str) -> str:
    return "".join(sign for sign in text if not _is_invisible(sign))


def _is_invisible(sign: str) -> bool:
    """Formats, controls that are no blanks, variation selectors and the other signs that Unicode has ignored when it can't show them."""
    category = unicodedata.category(sign)
    return category == "Cf" or (category == "Cc" and not sign.isspace()) or _IGNORED.fullmatch(sign) is not None


def _rounded(where: str) -> FileContentError:
    return FileContentError(
        f"{where}: a whole number is a float and too large to be exact, so that several ids may have become one; expected whole "
        "numbers as integers or texts; write the column anew"
    )


def _mixture(where: str) -> FileContentError:
    return FileContentError(
        f"{where}: ids that may or may not be one unit: one number or text in two ways of writing (such as 017 and 17, A1 and a1), or "
        "whole numbers beside fractions; expected one way for all, in every shard; write the column anew"
    )
