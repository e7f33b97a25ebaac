"""A config as a nested mapping, and in the form that a plan carries."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from distqexp.config.sections import Config, DataConfig, OutputConfig


def config_to_tree(config: Any) -> Any:
    """Return a config, or any part of it, as nested mappings of JSON types. ``config_from_tree`` is the inverse.

    Keys that say nothing at their default (``unsaid``) are left out where they have it.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = [
            f
            for f in dataclasses.fields(config)
            if not (f.metadata.get("unsaid") and getattr(config, f.name) == f.default)
        ]
        return {f.name: config_to_tree(getattr(config, f.name)) for f in fields}
    if isinstance(config, Mapping):
        return {name: config_to_tree(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [config_to_tree(value) for value in config]
    return str(config) if isinstance(config, StrEnum) else config


def without_paths(config: Config) -> Config:
    """Return the config as a plan carries it: without paths, placement of the engine, [output] and [tune]."""

    def strip(data: DataConfig) -> DataConfig:
        return dataclasses.replace(data, path=None, labels=None, tokenizer=None, blank=None)

    public, evaluation = config.data.public, config.data.eval
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, weights=None, new_head=()),
        data=dataclasses.replace(
            config.data,
            private=tuple(strip(data) for data in config.data.private),
            public=strip(public) if public else None,
            eval=strip(evaluation) if evaluation else None,
        ),
        engine=dataclasses.replace(config.engine, kind="auto", scheduler=None, workers=None),
        output=OutputConfig(),
        tune=None,
    )


_ABSENT = object()


def differences(one: Config, other: Config) -> list[str]:
    """Return the dotted keys whose values differ between two configs, each with the value in ``one`` and in ``other``."""
    return list(_differences(config_to_tree(one), config_to_tree(other), ""))


def _differences(one: Any, other: Any, where: str) -> Iterator[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in sorted(one.keys() | other.keys()):
            yield from _differences(one.get(name, _ABSENT), other.get(name, _ABSENT), f"{where}.{name}".lstrip("."))
    elif _text(one) != _text(other):
        yield f"{where} = {_short(_text(one))}, not {_short(_text(other))}"


def _text(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, sort_keys=True)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
