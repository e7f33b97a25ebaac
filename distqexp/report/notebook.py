"""Progress in a notebook: one bar for the whole run, in the cell that runs it."""

from __future__ import annotations

import html
import sys
from typing import Any


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook. IPython isn't imported for it."""
    shell = sys.modules.get("IPython")
    instance: Any = shell.get_ipython() if shell is not None and hasattr(shell, "get_ipython") else None
    return getattr(instance, "kernel", None) is not None


class NotebookBar:
    """One bar, which moves from 0 to 1 over all stages of a run, with the name of the running one.

    Args:
        rounds: The number of rounds; None for a single stage.
    """

    def __init__(self, rounds: int | None) -> None:
        self._stages = 1 if rounds is None else 2 + 3 * rounds  # plan, export; sketch, pool and release of every round
        self._finished = 0
        self._title = ""
        self._display: Any = None

    def show(self, title: str, share: float | None) -> None:
        """Move the bar to ``share`` of the stage ``title`` (None when unknown)."""
        if self._title and title != self._title:
            self._finished += 1
        self._title = title
        whole = min(1.0, (self._finished + (share or 0.0)) / self._stages)
        self._draw(title, whole)

    def say(self, text: str) -> None:
        """Print a line below the bar."""
        sys.stderr.write(f"{text}\n")

    def close(self) -> None:
        """Leave the bar as it is."""

    def _draw(self, title: str, share: float) -> None:
        from IPython import display

        shown: Any = display
        text = html.escape(title)
        bar = shown.HTML(
            f'<label>distqexp: {text} <progress value="{share:.3f}" max="1" aria-label="{text}"></progress> {share:.0%}</label>'
        )
        if self._display is None:
            self._display = shown.display(bar, display_id=True)
        else:
            self._display.update(bar)
