"""A config as a nested mapping, and as a plan carries it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from distqexp.config.sections import Config, DataConfig, OutputConfig


def config_to_tree(config: Any) -> Any:
    """The nested mapping of a config (or of any part of it): JSON types only, inverse of config_from_tree."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: config_to_tree(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {name: config_to_tree(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [config_to_tree(value) for value in config]
    return config


def without_paths(config: Config) -> Config:
    """The config as a plan carries it: no paths, no engine placement, no output choices, no rehearsals."""

    def strip(data: DataConfig) -> DataConfig:
        return dataclasses.replace(data, path=None, labels=None, blank=None)

    public, evaluation = config.data.public, config.data.eval
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, weights=None),
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
