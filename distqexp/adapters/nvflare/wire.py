"""What travels between a coordinator and its sites: tasks by name, with bytes, and exit codes in place of error texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from distqexp.errors import FileContentError

SKETCH = "distqexp-sketch"
"""A site sketches its records; its sketch file comes back. Private."""
VISIT = "distqexp-visit"
"""A site of a study takes what the coordinator sent, and sends what its round asks for: signed messages, to and fro."""
ANSWER = "distqexp-answer"
"""A helper of a study answers a closing."""

TASKS = (SKETCH, VISIT, ANSWER)

Payload = Mapping[str, Any]
"""The content of a task or of what comes back: bytes, texts, whole numbers, and lists and tables of bytes."""


class Answer(NamedTuple):
    """What a client sent back: an exit code, 0 where all went well, and a payload, which is empty otherwise."""

    code: int
    payload: Payload


Ask = Callable[[str, Mapping[str, Payload]], Mapping[str, Answer]]
"""Gives a task to each of the named clients, and returns the answers of those that gave one in time, by the name of the client."""

_MEANINGS = {
    2: "its settings or files are wrong, or the task is not one for it",
    3: "it refused a file's content",
    4: "its budget is spent",
    5: "it failed",
    6: "its disk is full or can't be written",
    70: "a defect of distqexp",
    75: "it was stopped",
}


def meaning(code: int) -> str:
    """Return what a site's exit code means, for the coordinator: a class of errors, with nothing of the site in it."""
    return f"exit code {code}: {_MEANINGS.get(code, _MEANINGS[5])}"


def failures(clients: Iterable[str], answers: Mapping[str, Answer]) -> str:
    """Return which clients failed, and how, in words that hold nothing private."""
    failed = [
        f"client {client}: {meaning(answers[client].code) if client in answers else 'no answer in time'}"
        for client in clients
        if client not in answers or answers[client].code
    ]
    return "; ".join(failed) or "all clients answered"


def field(payload: Payload, name: str, kind: type) -> Any:
    """Return a field of a payload. Raises FileContentError where it is missing or of another type."""
    value = payload.get(name)
    if type(value) is not kind:
        raise FileContentError(
            f"task: {name} is {type(value).__name__}; expected {kind.__name__}: use one version everywhere"
        )
    return value


def several(payload: Payload, name: str) -> list[bytes]:
    """Return a field that is a list of bytes. Raises FileContentError where it is none."""
    values: list[Any] = field(payload, name, list)
    return [field({name: value}, name, bytes) for value in values]
