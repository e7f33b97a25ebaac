"""The keys of a config: each field states its meaning and the rules of its value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from distqexp.errors import UsageError


@dataclass(frozen=True)
class Rule:
    """A rule of the value of one key. A value of None, where a key may be absent, is always allowed.

    Attributes:
        expected: What is expected, in words, for the error message.
        holds: Tells whether a value is allowed.
        each: Whether the rule is for every value of a list.
    """

    expected: str
    holds: Callable[[Any], bool]
    each: bool = False


class Need(NamedTuple):
    """One demand on a config, with what an error message needs.

    Attributes:
        holds: Whether the config meets the demand.
        where: The key, with its section.
        value: The value of the key.
        expected: What is expected, in words.
    """

    holds: bool
    where: str
    value: object
    expected: str


def key(
    doc: str,
    *rules: Rule,
    one_of: Mapping[str, object] | tuple[str, ...] | None = None,
    open_as: str | None = None,
    unsaid: bool = False,
    **kwargs: Any,
) -> Any:
    """Return a dataclass field that carries its meaning and the rules of its value.

    Args:
        doc: The meaning in one line, for the generated table.
        rules: The rules of the value.
        one_of: The names that a text may be, also those that are registered later; None where it may be any.
        open_as: One more name, which leaves the choice to the plan.
        unsaid: Whether a plan leaves the key out at its default, so that plans from before the key keep their identity.
        kwargs: Further arguments of ``dataclasses.field``, such as the default.
    """
    return dataclasses.field(
        metadata={"doc": doc, "rules": rules, "one_of": one_of, "open_as": open_as, "unsaid": unsaid}, **kwargs
    )


def at_least(least: int) -> Rule:
    """Return the rule of a finite number that is at least ``least``."""
    return Rule(f"{least} or more", lambda value: least <= value < math.inf)


def between(least: float, most: float, expected: str) -> Rule:
    """Return the rule of a number from ``least`` to ``most``, which ``expected`` says in words."""
    return Rule(expected, lambda value: least <= value <= most)


POSITIVE = Rule("a finite number above 0", lambda value: 0 < value < math.inf)
SEED = Rule("0 to 2^63 - 1", lambda value: 0 <= value < 2**63)
SHARE = Rule("a share, above 0 and below 1", lambda value: 0 < value < 1)


def allowed_names(metadata: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names that a key with this metadata may have now; None where it may be any text."""
    if metadata.get("one_of") is None:
        return None
    first = metadata.get("open_as")
    return (*([first] if first else []), *metadata["one_of"])


def field_needs(where: str, section: Any) -> Iterator[Need]:
    """Yield the rules of every key of a section, whose name in the file is ``where``."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if value is None:
            continue
        key_path = f"{where}.{field.name}"
        names = allowed_names(field.metadata)
        if names is not None:
            yield Need(value in names, key_path, value, f"one of {', '.join(names)}")
        for rule in field.metadata.get("rules", ()):
            for item in value if rule.each else [value]:
                yield Need(rule.holds(item), key_path, item, rule.expected)


def require(needs: Iterator[Need]) -> None:
    """Raise UsageError at the first need that doesn't hold, with the key, its value and what is expected."""
    for need in needs:
        if not need.holds:
            raise UsageError(f"config key {need.where}: found {need.value!r}; expected {need.expected}")
