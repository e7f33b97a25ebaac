"""The generated table of every key of a config, with types and values in words."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

from distqexp.config.rules import allowed_names
from distqexp.config.sections import (
    AllDataConfig,
    AugmentConfig,
    ColumnsConfig,
    DataConfig,
    DiagnosticsConfig,
    EngineConfig,
    MechanismConfig,
    ModelConfig,
    OutputConfig,
    PrecisionConfig,
    PretrainConfig,
    PrivacyConfig,
    SubspaceConfig,
    TuneConfig,
)
from distqexp.config.trees import config_to_tree


def config_table() -> str:
    """Return the Markdown table of every key, which is part of docs/config.md."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for prefix, cls in (
        ("model", ModelConfig),
        ("model.pretrain", PretrainConfig),
        ("data", AllDataConfig),
        ("data.public, data.private, data.eval", DataConfig),
        ("data.*.columns", ColumnsConfig),
        ("augment", AugmentConfig),
        ("privacy", PrivacyConfig),
        ("subspace", SubspaceConfig),
        ("precision", PrecisionConfig),
        ("mechanism", MechanismConfig),
        ("diagnostics", DiagnosticsConfig),
        ("engine", EngineConfig),
        ("output", OutputConfig),
        ("tune", TuneConfig),
    ):
        hints = typing.get_type_hints(cls)
        lines.append(f"| **[{prefix}]** | | | |")
        for f in dataclasses.fields(cls):
            meaning = str(f.metadata["doc"]).replace("|", "\\|")
            lines.append(f"| {f.name} | {_names(f) or type_name(hints[f.name])} | {_default_name(f)} | {meaning} |")
    return "\n".join(lines) + "\n"


def type_name(hint: Any) -> str:
    """Return the name of a type, in the words of a TOML file."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_name(a) for a in arguments if a is not type(None))
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return " / ".join(hint)
    if origin is Literal:
        return " / ".join(str(a) for a in arguments)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is not Ellipsis:
            return "pair"
        pair = typing.get_args(arguments[0])
        if len(pair) == 2 and pair[0] is str and pair[1] is not Ellipsis:
            return "table"
        return f"list of {type_name(arguments[0])}"
    if dataclasses.is_dataclass(hint) or hint is dict or (origin is not None and issubclass(origin, Mapping)):
        return "table"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}.get(hint, str(hint))


def _names(f: dataclasses.Field[Any]) -> str:
    return " / ".join(allowed_names(f.metadata) or ())


def _default_name(f: dataclasses.Field[Any]) -> str:
    if f.default is not dataclasses.MISSING:
        return "none" if f.default is None else json.dumps(config_to_tree(f.default))
    return "**required**" if f.default_factory is dataclasses.MISSING else "{}"
