"""A config as a nested mapping, and in the form that a plan carries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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


def differences(one: Config, other: Config) -> list[str]:
    """Return the dotted keys whose values differ between two configs, each with the value in ``one`` and in ``other``."""
    left, right = _flat(config_to_tree(one)), _flat(config_to_tree(other))
    keys = sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))
    return [f"{key} = {_short(left.get(key))}, not {_short(right.get(key))}" for key in keys]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        key: value for name, part in tree.items() for key, value in _flat(part, f"{prefix}.{name}".strip(".")).items()
    }
