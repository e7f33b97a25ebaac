"""Runs that are remembered: one line of a file each, so that hours of work can stop and go on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Parameters = Mapping[str, Any]
Result = dict[str, Any]


class Runs:
    """Results by their parameters, kept in a JSON Lines file that only grows.

    A run that the file has is not repeated. Another one is made while there is time (``seconds``; None: without end)
    and ``allowed``; else it is counted in ``missing``, by method and epsilon. A last line without its end, of a run that
    was killed as it wrote, is cut off.
    """

    def __init__(self, path: Path, seconds: float | None = None) -> None:
        self.path = path
        self.missing: dict[str, int] = {}
        self.made = 0
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._longest: dict[str, float] = {}
        self._found: dict[str, Result] = {}
        text = path.read_text("utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, "utf-8")
        for line in whole.splitlines():
            entry = json.loads(line)
            self._found[_name(entry["parameters"])] = entry["result"]

    def result(self, parameters: Parameters, make: Callable[[], Result], allowed: bool = True) -> Result | None:
        """The result of these parameters: a remembered one, else a new one, else None."""
        name, kind = _name(parameters), f"{parameters['method']}, epsilon {parameters.get('epsilon')}"
        if name not in self._found:
            if not (allowed and self._time_for(kind)):
                self.missing[kind] = self.missing.get(kind, 0) + 1
                return None
            started = time.monotonic()
            result = make()
            self._longest[kind] = max(self._longest.get(kind, 0.0), time.monotonic() - started)
            line = json.dumps({"parameters": dict(parameters), "result": result}, sort_keys=True, allow_nan=False)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            self._found[name] = json.loads(line)["result"]
            self.made += 1
            facts = {name: value for name, value in parameters.items() if name not in ("task", "method", "epsilon")}
            print(f"{time.strftime('%H:%M:%S')} {kind}: {facts}: {result.get('metrics', '')}", flush=True)
        return self._found[name]

    def _time_for(self, kind: str) -> bool:
        return self._deadline is None or time.monotonic() + self._longest.get(kind, 0.0) < self._deadline


def _name(parameters: Parameters) -> str:
    return json.dumps(dict(parameters), sort_keys=True)
