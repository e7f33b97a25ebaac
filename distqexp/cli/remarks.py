"""What looks wrong in a site's records, told to their owner on a terminal alone, and the stop before anything is charged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


def teller(look: str, yes: bool) -> Callable[[Sequence[str]], None] | None:
    """Return what tells the owner of records, on a terminal alone, what looks wrong, and stops unless ``yes``; None to do neither."""
    terminal = sys.stderr.isatty()
    if yes and not terminal:
        return None

    def tell(remarks: Sequence[str]) -> None:
        from distqexp.errors import UsageError
        from distqexp.stages.check import WARNING

        if remarks and terminal:
            sys.stderr.write(
                "".join(f"{line}\n" for line in (WARNING, *(f"  looks wrong: {line}" for line in remarks)))
            )
        if remarks and not yes:
            where = "what is told above" if terminal else "something in the records"
            see = "" if terminal else f"see {look} on a terminal, "
            raise UsageError(f"sketch: {where} looks wrong; nothing is charged: {see}mend it, or give --yes to go on")

    return tell
