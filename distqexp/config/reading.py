"""Reading TOML into a checked config. Errors name the key, the value that was found, and the remedy."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
import string
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from distqexp.config.checks import check
from distqexp.config.sections import Config, DataConfig
from distqexp.config.table import type_name
from distqexp.errors import UsageError

AUTOMATIC_ROUNDS = 10
"""The rounds of a config that sets neither rounds nor clip."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, apply overrides, and check the result.

    Args:
        path: The file; None for the embedded digits task. Relative paths in it are taken from its folder and become absolute.
        overrides: Texts of the form ``section.key=value``, whose values are TOML.

    Raises:
        UsageError: The file can't be read, or a key or a value is not allowed.
    """
    return config_from_tree(*read_tree(None if path is None else Path(path), overrides))


def read_tree(path: Path | None, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Path]:
    """Return the tables of a TOML file with overrides applied, and the folder from which its paths start.

    Args:
        path: The file; None for the embedded digits task, whose paths start from the current folder.
        overrides: Texts of the form ``section.key=value``, whose values are TOML.

    Raises:
        UsageError: The file can't be read, is not TOML, or an override does not fit it.
    """
    if path is None:
        text, base = resources.files("distqexp").joinpath("tasks", "digits.toml").read_text("utf-8"), Path.cwd()
    else:
        try:
            text, base = path.read_text("utf-8"), path.resolve().parent
        except FileNotFoundError:
            raise UsageError(
                f"config {path}: no such file; give the path of a TOML config, or none for digits"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"config {path}: can't be read ({error}); give a readable TOML file") from None
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not TOML, a number of thousands of digits, or tables without end
        raise UsageError(f"config {path or 'digits'}: not valid TOML ({error}); correct it there") from None
    for override in overrides:
        _apply_override(tree, override)
    return tree, base


def config_from_tree(tree: Mapping[str, Any], base: Path | None = None) -> Config:
    """Build a Config from nested mappings and check it.

    Args:
        tree: The sections by name, as in a TOML file.
        base: The folder from which relative paths are resolved; None leaves paths as they are.

    Raises:
        UsageError: A key is unknown or missing, or a value is not allowed.
    """
    tree = typing.cast("dict[str, Any]", json.loads(json.dumps(tree, default=_refuse_type)))
    for section in (tree.get("data"), tree.get("tune")):
        if isinstance(section, dict) and isinstance(section.get("private"), dict):
            section["private"] = [section["private"]]
    _set_rounds(tree)
    config = typing.cast(Config, _build(Config, tree, ""))
    if base is not None:
        config = _resolve_paths(config, base)
    check(config)
    return config


def _set_rounds(tree: dict[str, Any]) -> None:
    """Where a config sets neither clip nor rounds, set about AUTOMATIC_ROUNDS rounds, a multiple of the parts."""
    mechanism = tree.setdefault("mechanism", {})
    if not isinstance(mechanism, dict) or "rounds" in mechanism:
        return
    if all(mechanism.get(name) is None for name in ("clip", "clip_quantile", "clip_natural")):
        parts = mechanism.get("parts", 1)
        known = isinstance(parts, int) and parts >= 1
        mechanism["rounds"] = -(-AUTOMATIC_ROUNDS // parts) * parts if known else AUTOMATIC_ROUNDS


def _refuse_type(value: Any) -> Any:
    raise UsageError(f"config: {value!r} is a {type(value).__name__}; a config holds numbers, texts, lists and tables")


def _build(cls: type, tree: Any, where: str) -> Any:
    """Return the section ``cls`` from the table ``tree``, which is at ``where`` in the config."""
    if not isinstance(tree, dict):
        raise UsageError(f"config key {where}: {tree!r} is a {_type_of(tree)}; expected a table [{where}]")
    hints, prefix = _hints(cls), f"{where}." if where else ""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in tree:
        if name not in fields:
            nearest = difflib.get_close_matches(name, fields, n=1, cutoff=0.0)[0]
            raise UsageError(f"config key {prefix}{name}: unknown; the nearest known key is {prefix}{nearest}")
    missing = [name for name, f in fields.items() if name not in tree and _is_required(f)]
    values = {}
    for name, f in fields.items():
        key_path = prefix + name
        if name in tree:
            values[name] = _convert(hints[name], tree[name], key_path)
        elif name in missing:
            others = "".join(f"; {prefix}{other} is missing too" for other in missing[1:])
            raise UsageError(
                f"config key {key_path}: missing; expected {type_name(hints[name])}: {f.metadata['doc']}{others}"
            )
    return cls(**values)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Return the value in the form that a key of this type has. Raises UsageError for a value of another type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        kinds = [a for a in arguments if a is not type(None)]  # at most a scalar and a list
        is_list = isinstance(value, list)
        return _convert(next((a for a in kinds if (typing.get_origin(a) is tuple) == is_list), kinds[0]), value, where)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    if origin is Literal:
        return _one_of(arguments, value, where)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint(_one_of(tuple(hint), value, where))
    if origin is tuple:
        return _list(hint, arguments, value, where)
    return _scalar(dict if origin is not None and issubclass(origin, Mapping) else hint, value, where)


def _one_of(names: tuple[Any, ...], value: Any, where: str) -> Any:
    if value in names:
        return value
    raise UsageError(f"config key {where}: found {value!r}; expected one of {', '.join(names)}")


def _list(hint: Any, arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    pair = len(arguments) == 2 and arguments[1] is not Ellipsis
    inner = arguments[0]
    if isinstance(value, str) and inner is str and not pair:
        value = [value]
    if isinstance(value, dict) and _is_named(inner):
        value = [[name, item] for name, item in value.items()]
    if not isinstance(value, list):
        raise UsageError(f"config key {where}: {value!r} is a {_type_of(value)}; expected {type_name(hint)}")
    if pair and len(value) != 2:
        raise UsageError(f"config key {where}: found {value!r}; expected a pair [first, last]")
    kinds = arguments if pair else [inner] * len(value)
    return tuple(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _is_named(hint: Any) -> bool:
    """Whether a list of this type is a table in a file: its items are pairs of a name and a value."""
    arguments = typing.get_args(hint)
    return len(arguments) == 2 and arguments[0] is str and arguments[1] is not Ellipsis


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > 2**1023:
            raise UsageError(
                f"config key {where}: found a whole number of {value.bit_length()} bits; expected a number"
            )
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UsageError(f"config key {where}: {value!r} is a {_type_of(value)}; expected {type_name(hint)}")
    return value


def _apply_override(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    path = name.strip().split(".")
    if not equals or not all(path):
        raise UsageError(f"--set {override}: expected section.key=value, such as privacy.epsilon=1.0")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    node: Any = tree
    for depth, part in enumerate(path):
        if isinstance(node, list) and part.isdecimal() and int(part) < len(node) and depth + 1 < len(path):
            node = node[int(part)]
        elif isinstance(node, dict) and depth + 1 < len(path):
            node = node.setdefault(part, {})
        elif isinstance(node, dict):
            node[part] = value
        else:
            raise UsageError(
                f"--set {override}: {'.'.join(path[:depth])} is a {_type_of(node)}; expected a table, or in a list of "
                "tables the number of one, such as data.private.0.rows"
            )


def _type_of(value: Any) -> str:
    """Return the type of a value, in the words of a TOML file."""
    return {bool: "boolean", int: "whole number", float: "number", str: "text", list: "list", dict: "table"}.get(
        type(value), type(value).__name__
    )


def resolved_path(text: str, where: str, base: Path) -> str:
    """Return a path of a config as an absolute path, with environment variables filled in.

    Args:
        text: The path as the config has it.
        where: The key, for error messages.
        base: The folder from which relative paths start.

    Raises:
        UsageError: A variable or a user is unknown.
    """
    try:
        text = string.Template(text).substitute(os.environ)
    except (KeyError, ValueError) as error:
        raise UsageError(f"config key {where}: {text!r} needs the environment variable {error}; export it") from None
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UsageError(f"config key {where}: {text!r} begins with an unknown user; give the whole path") from None
    return str(path if path.is_absolute() else base / path)


def _resolve_paths(config: Config, base: Path) -> Config:
    def resolve(text: str | None, where: str) -> str | None:
        return None if text is None else resolved_path(text, where, base)

    def resolve_data(data: DataConfig | None, where: str) -> DataConfig | None:
        if data is None:
            return None
        return dataclasses.replace(
            data,
            path=resolve(data.path, f"{where}.path"),
            labels=resolve(data.labels, f"{where}.labels"),
            tokenizer=resolve(data.tokenizer, f"{where}.tokenizer"),
            blank=resolve(data.blank, f"{where}.blank"),
        )

    def resolve_all(sources: tuple[DataConfig, ...], where: str) -> tuple[DataConfig, ...]:
        return typing.cast("tuple[DataConfig, ...]", tuple(resolve_data(data, where) for data in sources))

    tune = config.tune
    if tune is not None:
        private, evaluation = resolve_all(tune.private, "tune.private"), resolve_data(tune.eval, "tune.eval")
        tune = dataclasses.replace(tune, private=private, eval=evaluation)
    return dataclasses.replace(
        config,
        tune=tune,
        model=dataclasses.replace(config.model, weights=resolve(config.model.weights, "model.weights")),
        data=dataclasses.replace(
            config.data,
            private=resolve_all(config.data.private, "data.private"),
            public=resolve_data(config.data.public, "data.public"),
            eval=resolve_data(config.data.eval, "data.eval"),
        ),
    )
