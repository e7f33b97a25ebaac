"""The configuration: TOML to frozen dataclasses.

Every key that a config file may hold is a field of a dataclass below, with its type, its default and its
meaning; the table in docs/config.md is generated from them. Errors name the key, the value found and the
remedy. Everything in a config is public.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import string
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from distqexp.errors import NotAvailableYet, UsageError

ADJACENCIES = ("zero-out", "add-remove", "replace-one")
LOSSES = ("cross-entropy", "binary-cross-entropy", "mean-squared-error")
FORMATS = ("digits", "idx", "csv", "parquet", "hdf5")
SUBSPACES = ("identity", "gaussian", "rademacher", "sjlt", "srht")
PRECISIONS = ("identity", "diagonal", "dense")
NOISES = ("discrete", "gaussian")
ENGINES = ("auto", "serial", "mpi", "dask")

LATER_SUBSPACES = ("kronecker", "kronecker-pca", "public-pca")
LATER_PRECISIONS = ("kronecker",)


def key(doc: str, **kwargs: Any) -> Any:
    """A dataclass field with its one-line meaning, for the generated table."""
    return field(metadata={"doc": doc}, **kwargs)


@dataclass(frozen=True)
class PretrainConfig:
    """[model.pretrain]: fit theta_0 on the public data before anything else."""

    epochs: int = key("passes over the public records", default=10)
    optimiser: str = key("adam, sgd or lbfgs (full batch)", default="adam")
    learning_rate: float = key("step of the optimiser", default=0.001)
    batch: int = key("records a step (ignored by lbfgs)", default=128)
    weight_decay: float = key("L2 penalty, added to the mean loss as weight_decay/2 * ||theta||^2", default=0.0)
    seed: int = key("seed of the initial weights and of the order of the records", default=0)


@dataclass(frozen=True)
class ModelConfig:
    """[model]: what is fine-tuned."""

    factory: str = key('"package.module:function" that returns a torch.nn.Module')
    loss: Literal["cross-entropy", "binary-cross-entropy", "mean-squared-error"] = key("the training loss")
    args: Mapping[str, Any] = key("keyword arguments of the factory", default_factory=dict)
    weights: str | None = key("pretrained weights: .safetensors, or a torch file of tensors", default=None)
    pretrain: PretrainConfig | None = key("pretrain on data.public instead of loading weights", default=None)
    trainable: tuple[str, ...] = key("patterns (fnmatch) of the parameters that are fine-tuned", default=("*",))


@dataclass(frozen=True)
class ColumnsConfig:
    """[data.*.columns]: the roles of a table's columns or of an HDF5 file's arrays."""

    target: str | None = key("column or HDF5 dataset of the label", default=None)
    features: tuple[str, ...] | None = key(
        "feature columns or one HDF5 dataset; all the others when absent", default=None
    )
    exclude: tuple[str, ...] = key("columns that are never features", default=())
    missing_flag_above: float | None = key(
        "add a 0/1 missingness column for features missing in more than this share of the public rows", default=None
    )
    standardise: bool = key("centre and scale features by public moments", default=True)
    constant: bool = key("append a column of ones", default=False)


@dataclass(frozen=True)
class DataConfig:
    """[data.public], [data.private], [data.eval]: one source of records each."""

    format: Literal["digits", "idx", "csv", "parquet", "hdf5"] = key("the reader")
    path: str | None = key("file; ${NAME} is an environment variable; relative to the config file", default=None)
    labels: str | None = key("file of the labels, for idx", default=None)
    rows: tuple[tuple[int, int], ...] | None = key("half-open ranges [first, last) of rows of the file", default=None)
    where: str | None = key('filter on columns, such as "CCU == 1 and Age >= 18"', default=None)
    rotate: float = key("rotate images by so many degrees, counter-clockwise", default=0.0)
    columns: ColumnsConfig = key("roles of the columns", default_factory=ColumnsConfig)
    unit: str | None = key("column or array of the privacy unit's id; one record a unit when absent", default=None)
    shard: str | None = key("name of the shard; the plan expects each name exactly once", default=None)
    blank: str | None = key(
        ".npy file of booleans, a row of the file each: true blanks that record's slot", default=None
    )


@dataclass(frozen=True)
class AllDataConfig:
    """[data]."""

    private: tuple[DataConfig, ...] = key("the sensitive records: a table, or an array of tables (one a shard)")
    population: str = key("name that budgets are kept under in the ledger")
    public: DataConfig | None = key("public records: pretraining, curvature, clip quantile", default=None)
    eval: DataConfig | None = key("records that metrics are computed on", default=None)
    eval_private: bool = key("whether data.eval is private: its metrics are then marked as not covered", default=False)


@dataclass(frozen=True)
class PrivacyConfig:
    """[privacy]: the guarantee."""

    epsilon: float = key("target epsilon of the whole run, above 0")
    delta: float = key("target delta of the whole run, strictly between 0 and 1")
    units: int = key("n_bar, a public nominal number of privacy units; never taken from the data")
    adjacency: Literal["zero-out", "add-remove", "replace-one"] = key(
        "which datasets are neighbours", default="zero-out"
    )


@dataclass(frozen=True)
class SubspaceConfig:
    """[subspace]: P."""

    kind: Literal["identity", "gaussian", "rademacher", "sjlt", "srht"] = key("kind of subspace", default="identity")
    k: int | None = key("dimension of the subspace; identity takes every trainable parameter", default=None)
    seed: int = key("seed; round r draws from (seed, r)", default=0)
    nonzeros: int = key("nonzeros a row, for sjlt", default=4)


@dataclass(frozen=True)
class PrecisionConfig:
    """[precision]: A."""

    kind: Literal["identity", "diagonal", "dense"] = key("form of the public precision", default="identity")
    source: str = key("where the curvature comes from: public", default="public")
    damping: float = key("added to the curvature, relative to its mean eigenvalue", default=1.0)
    samples: int = key("at most so many public records are used a round", default=500)


@dataclass(frozen=True)
class MechanismConfig:
    """[mechanism]: the exponential mechanism on the clipped quadratic."""

    rounds: int = key("re-expansions of the quadratic", default=1)
    parts: int = key("parts of a partitioned pass (1: every round uses every unit)", default=1)
    step: float = key("step: the prior precision is (n_bar / step) (curvature + damping)", default=1.0)
    clip: float | None = key("C, in whitened units", default=None)
    clip_quantile: float | None = key("C as this quantile of the whitened norms of public units", default=None)
    trust_radius: float | None = key("R; infinite when absent", default=None)
    curvature: str = key('"public", or "private" for beta = 1', default="public")
    noise: Literal["discrete", "gaussian"] = key(
        "discrete: exact integers; gaussian: idealised float64", default="discrete"
    )
    grid: int | None = key("exponent of the grid step h = 2^grid; chosen by the plan when absent", default=None)


@dataclass(frozen=True)
class EngineConfig:
    """[engine]: where the work runs. Only micro_batch, threads and device enter the plan."""

    kind: Literal["auto", "serial", "mpi", "dask"] = key("auto: mpi under a launcher, else serial", default="auto")
    micro_batch: int = key("slots a micro-batch, one fixed shape", default=64)
    device: str = key("cpu, or cuda (each rank takes the device of its local rank)", default="cpu")
    threads: int = key("threads a rank", default=1)
    scheduler: str | None = key("address of a Dask scheduler; a local cluster when absent", default=None)
    workers: int | None = key("processes of the local Dask cluster; one a core when absent", default=None)


@dataclass(frozen=True)
class OutputConfig:
    """[output]."""

    keep_sketches: bool = key("keep the private sketch and quadratic files after their release", default=False)


@dataclass(frozen=True)
class Config:
    """A whole configuration file, checked."""

    model: ModelConfig = key("what is fine-tuned")
    data: AllDataConfig = key("records")
    privacy: PrivacyConfig = key("the guarantee")
    subspace: SubspaceConfig = key("the subspace", default_factory=SubspaceConfig)
    precision: PrecisionConfig = key("the public precision", default_factory=PrecisionConfig)
    mechanism: MechanismConfig = key("the mechanism", default_factory=MechanismConfig)
    engine: EngineConfig = key("where the work runs", default_factory=EngineConfig)
    output: OutputConfig = key("what is kept", default_factory=OutputConfig)

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the expected shards, in order."""
        return tuple(data.shard or "all" for data in self.data.private)


# --- reading -------------------------------------------------------------------------------------------------


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file (the embedded digits task when None), apply ``section.key=value`` overrides, check.

    Relative paths in the file are taken from its folder and become absolute. Raises UsageError.
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
    return config_from_tree(tree, base)


def config_from_tree(tree: Mapping[str, Any], base: Path | None = None) -> Config:
    """Build and check a Config from nested mappings. Paths are resolved against ``base`` when it is given."""
    tree = json.loads(json.dumps(tree, default=_refuse_type))
    data = tree.get("data")
    if isinstance(data, dict) and isinstance(data.get("private"), dict):
        data["private"] = [data["private"]]
    config = typing.cast(Config, _build(Config, tree, ""))
    if base is not None:
        config = _resolve_paths(config, base)
    _check(config)
    return config


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
    """The config as a plan carries it: no paths, no engine placement, no output choices."""

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
    )


def config_table() -> str:
    """The Markdown table of every key: generated into docs/config.md."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for prefix, cls in (
        ("model", ModelConfig),
        ("model.pretrain", PretrainConfig),
        ("data", AllDataConfig),
        ("data.public, data.private, data.eval", DataConfig),
        ("data.*.columns", ColumnsConfig),
        ("privacy", PrivacyConfig),
        ("subspace", SubspaceConfig),
        ("precision", PrecisionConfig),
        ("mechanism", MechanismConfig),
        ("engine", EngineConfig),
        ("output", OutputConfig),
    ):
        hints = typing.get_type_hints(cls)
        lines.append(f"| **[{prefix}]** | | | |")
        for f in dataclasses.fields(cls):
            meaning = str(f.metadata["doc"]).replace("|", "\\|")
            lines.append(f"| {f.name} | {_type_name(hints[f.name])} | {_default_name(f)} | {meaning} |")
    return "\n".join(lines) + "\n"


# --- building ------------------------------------------------------------------------------------------------


def _refuse_type(value: Any) -> Any:
    raise UsageError(f"config: {value!r} is a {type(value).__name__}; a config holds numbers, texts, lists and tables")


def _build(cls: type, tree: Any, where: str) -> Any:
    if not isinstance(tree, dict):
        raise UsageError(f"config key {where}: {tree!r} is a {_found(tree)}; expected a table [{where}]")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    for name in tree:
        if name not in known:
            full = f"{where}.{name}" if where else name
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise UsageError(
                f"config key {full}: unknown; the nearest known key is {where + '.' if where else ''}{near[0]}"
            )
    values = {}
    for name, f in known.items():
        full = f"{where}.{name}" if where else name
        if name in tree:
            values[name] = _convert(hints[name], tree[name], full)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UsageError(f"config key {full}: missing; expected {_type_name(hints[name])}: {f.metadata['doc']}")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    if origin is Literal:
        if value in arguments:
            return value
        later = {"subspace.kind": LATER_SUBSPACES, "precision.kind": LATER_PRECISIONS}.get(where, ())
        if value in later:
            raise NotAvailableYet(f"config key {where}: {value!r}")
        raise UsageError(f"config key {where}: found {value!r}; expected one of {', '.join(arguments)}")
    if origin is tuple:
        inner = arguments[0]
        if isinstance(value, str) and inner is str:
            value = [value]
        if not isinstance(value, list):
            raise UsageError(f"config key {where}: {value!r} is a {_found(value)}; expected {_type_name(hint)}")
        if len(arguments) == 2 and arguments[1] is not Ellipsis and len(value) != 2:
            raise UsageError(f"config key {where}: found {value!r}; expected a pair [first, last]")
        return tuple(_convert(inner, item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > 2**1023:
            raise UsageError(
                f"config key {where}: found a whole number of {value.bit_length()} bits; expected a number"
            )
        return float(value)
    if origin is not None and issubclass(origin, Mapping):
        hint = dict
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UsageError(f"config key {where}: {value!r} is a {_found(value)}; expected {_type_name(hint)}")
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
                f"--set {override}: {'.'.join(path[:depth])} is a {_found(node)}; expected a table, or in a list of "
                "tables the number of one, such as data.private.0.rows"
            )


def _found(value: Any) -> str:
    return {bool: "boolean", int: "whole number", float: "number", str: "text", list: "list", dict: "table"}.get(
        type(value), type(value).__name__
    )


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type_name(a) for a in arguments if a is not type(None))
    if origin is Literal:
        return " / ".join(str(a) for a in arguments)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is not Ellipsis:
            return "pair"
        return f"list of {_type_name(arguments[0])}"
    if dataclasses.is_dataclass(hint) or hint is dict or (origin is not None and issubclass(origin, Mapping)):
        return "table"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}.get(hint, str(hint))


def _default_name(f: dataclasses.Field[Any]) -> str:
    if f.default is not dataclasses.MISSING:
        return "none" if f.default is None else json.dumps(config_to_tree(f.default))
    return "**required**" if f.default_factory is dataclasses.MISSING else "{}"


# --- checking ------------------------------------------------------------------------------------------------


def _resolve_paths(config: Config, base: Path) -> Config:
    def resolve(text: str | None, where: str) -> str | None:
        if text is None:
            return None
        try:
            text = string.Template(text).substitute(os.environ)
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"config key {where}: {text!r} needs the environment variable {error}; export it"
            ) from None
        try:
            path = Path(text).expanduser()
        except RuntimeError:
            raise UsageError(f"config key {where}: {text!r} begins with an unknown user; give the whole path") from None
        return str(path if path.is_absolute() else base / path)

    def resolve_data(data: DataConfig | None, where: str) -> DataConfig | None:
        if data is None:
            return None
        return dataclasses.replace(
            data,
            path=resolve(data.path, f"{where}.path"),
            labels=resolve(data.labels, f"{where}.labels"),
            blank=resolve(data.blank, f"{where}.blank"),
        )

    private = tuple(resolve_data(data, "data.private") for data in config.data.private)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, weights=resolve(config.model.weights, "model.weights")),
        data=dataclasses.replace(
            config.data,
            private=typing.cast("tuple[DataConfig, ...]", private),
            public=resolve_data(config.data.public, "data.public"),
            eval=resolve_data(config.data.eval, "data.eval"),
        ),
    )


def _check(config: Config) -> None:
    def need(good: bool, where: str, value: object, expected: str) -> None:
        if not good:
            raise UsageError(f"config key {where}: found {value!r}; expected {expected}")

    def positive(where: str, value: float | None) -> None:
        need(value is None or (math.isfinite(value) and value > 0), where, value, "a finite number above 0")

    def seed(where: str, value: int) -> None:
        need(0 <= value < 2**63, where, value, "0 to 2^63 - 1")

    model, privacy, mechanism = config.model, config.privacy, config.mechanism
    need(model.factory.count(":") == 1, "model.factory", model.factory, '"package.module:function"')
    need(not (model.weights and model.pretrain), "model.weights", model.weights, "either weights or pretrain, not both")
    if model.pretrain is not None:
        pretrain = model.pretrain
        need(config.data.public is not None, "model.pretrain", "no data.public", "public data to pretrain on")
        need(pretrain.epochs >= 0, "model.pretrain.epochs", pretrain.epochs, "0 or more")
        need(pretrain.batch >= 1, "model.pretrain.batch", pretrain.batch, "1 or more")
        need(
            math.isfinite(pretrain.weight_decay) and pretrain.weight_decay >= 0,
            "model.pretrain.weight_decay",
            pretrain.weight_decay,
            "0 or more",
        )
        seed("model.pretrain.seed", pretrain.seed)
        need(
            pretrain.optimiser in ("adam", "sgd", "lbfgs"),
            "model.pretrain.optimiser",
            pretrain.optimiser,
            "adam, sgd or lbfgs",
        )
        positive("model.pretrain.learning_rate", pretrain.learning_rate)
        need(pretrain.learning_rate <= 1e30, "model.pretrain.learning_rate", pretrain.learning_rate, "at most 1e30")
    need(len(config.data.private) > 0, "data.private", "no shard", "at least one table")
    names = config.shards
    need(len(set(names)) == len(names), "data.private.shard", list(names), "a different name for every shard")
    for name in names:
        need(
            name.replace("-", "").replace("_", "").isalnum(),
            "data.private.shard",
            name,
            "letters, digits, - and _ only",
        )
    for where, data in (("data.public", config.data.public), ("data.eval", config.data.eval)):
        if data is not None:
            _check_data(where, data, need)
    for data in config.data.private:
        _check_data("data.private", data, need)
    need(bool(config.data.population.strip()), "data.population", config.data.population, "a name")

    positive("privacy.epsilon", privacy.epsilon)
    need(privacy.epsilon <= 1e4, "privacy.epsilon", privacy.epsilon, "at most 10000")
    if privacy.delta == 0:
        raise NotAvailableYet("config key privacy.delta: 0 (pure differential privacy)")
    need(0 < privacy.delta < 1, "privacy.delta", privacy.delta, "a number strictly between 0 and 1")
    need(privacy.delta >= 1e-300, "privacy.delta", privacy.delta, "1e-300 or more")
    need(1 <= privacy.units <= 2**53, "privacy.units", privacy.units, "a public number of units, 1 to 2^53")

    subspace = config.subspace
    need(subspace.k is None or subspace.k >= 1, "subspace.k", subspace.k, "1 or more")
    need(subspace.kind == "identity" or subspace.k is not None, "subspace.k", None, f"a dimension for {subspace.kind}")
    seed("subspace.seed", subspace.seed)
    need(subspace.nonzeros >= 1, "subspace.nonzeros", subspace.nonzeros, "1 or more")

    precision = config.precision
    if precision.source == "probes":
        raise NotAvailableYet("config key precision.source: 'probes'")
    need(precision.source == "public", "precision.source", precision.source, "public")
    need(
        math.isfinite(precision.damping) and precision.damping >= 0, "precision.damping", precision.damping, "0 or more"
    )
    need(precision.samples >= 1, "precision.samples", precision.samples, "1 or more")
    need(
        precision.kind == "identity" or config.data.public is not None,
        "precision.kind", precision.kind, "data.public for the curvature, or kind = identity",
    )  # fmt: skip

    need(mechanism.rounds >= 1, "mechanism.rounds", mechanism.rounds, "1 or more")
    if mechanism.parts != 1:
        raise NotAvailableYet(f"config key mechanism.parts: {mechanism.parts}")
    if mechanism.trust_radius is not None:
        raise NotAvailableYet(f"config key mechanism.trust_radius: {mechanism.trust_radius}")
    if mechanism.curvature == "private":
        raise NotAvailableYet("config key mechanism.curvature: 'private'")
    need(mechanism.curvature == "public", "mechanism.curvature", mechanism.curvature, "public")
    positive("mechanism.step", mechanism.step)
    positive("mechanism.clip", mechanism.clip)
    need(
        (mechanism.clip is None) != (mechanism.clip_quantile is None),
        "mechanism.clip", mechanism.clip, "exactly one of mechanism.clip and mechanism.clip_quantile",
    )  # fmt: skip
    need(mechanism.grid is None or -500 <= mechanism.grid <= 450, "mechanism.grid", mechanism.grid, "-500 to 450")
    if mechanism.clip_quantile is not None:
        need(0 < mechanism.clip_quantile <= 1, "mechanism.clip_quantile", mechanism.clip_quantile, "above 0, at most 1")
        need(
            config.data.public is not None,
            "mechanism.clip_quantile",
            mechanism.clip_quantile,
            "data.public, or mechanism.clip",
        )

    engine = config.engine
    need(1 <= engine.micro_batch < 2**31, "engine.micro_batch", engine.micro_batch, "1 or more, below 2^31")
    need(1 <= engine.threads <= 1024, "engine.threads", engine.threads, "1 to 1024")
    need(engine.device in ("cpu", "cuda"), "engine.device", engine.device, "cpu or cuda")
    need(engine.workers is None or engine.workers >= 1, "engine.workers", engine.workers, "1 or more")


def _check_data(where: str, data: DataConfig, need: Any) -> None:
    for first, last in data.rows or ():
        need(0 <= first < last, f"{where}.rows", [first, last], "0 <= first < last")
    need(math.isfinite(data.rotate), f"{where}.rotate", data.rotate, "degrees")
    if data.format in ("csv", "parquet", "hdf5"):
        need(data.columns.target is not None, f"{where}.columns.target", None, "the column of the label")
    share = data.columns.missing_flag_above
    need(
        share is None or 0 <= share < 1, f"{where}.columns.missing_flag_above", share, "a share, 0 or more and below 1"
    )
