"""Texts of files from elsewhere, as they may be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text of a file from elsewhere without signs that would act on a terminal: they are spelt as in Python."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
