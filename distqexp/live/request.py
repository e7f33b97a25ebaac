"""A call of ``fit`` as a config: the same plan, ledger and certificate as for a file."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from distqexp.config import Config, EngineConfig, config_from_tree
from distqexp.errors import UsageError
from distqexp.live.agreement import require_agreement
from distqexp.live.spool import Spooled
from distqexp.problem import layers, lent
from distqexp.problem.admission import admit, refuse_unfit
from distqexp.problem.huggingface import adapt
from distqexp.problem.readers.base import some
from distqexp.problem.readers.codings import FIRST_DAY
from distqexp.problem.schema import fit_schema

POPULATION = "default"
"""The population where none is named: whatever is fitted without a name shares one budget."""


@dataclass(frozen=True)
class Request:
    """What a script asked for, its records aside. Public.

    Attributes:
        model: The live module, or a factory "package.module:function".
        epsilon: The epsilon of the run.
        delta: The delta of the run.
        loss: The training loss; None to take it from the targets.
        features: The feature columns of tables; None for all others.
        units: The public number of units; None to count them.
        population: The name that the budget is kept under.
        settings: Further keys of a config, nested or with dots.
        standardise: Whether features are standardised by public moments; None for tables alone.
    """

    model: nn.Module | str
    epsilon: float
    delta: float
    loss: str | None = None
    features: tuple[str, ...] | None = None
    units: int | None = None
    population: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    standardise: bool | None = None

    def engine(self) -> EngineConfig:
        """Return what the settings say of the engine, before the rest of the config is known."""
        section = _section(self.settings, "engine")
        known = {name: section[name] for name in ("kind", "scheduler", "workers", "threads") if name in section}
        return EngineConfig(**known)


@dataclass(frozen=True)
class Sources:
    """The spooled records of a fit.

    Attributes:
        private: One source a rank, in order.
        public: The public records, if any.
        evaluation: The evaluation records, if any.
        evaluation_private: Whether these are private.
        units: The number of private units over all ranks.
    """

    private: Sequence[Spooled]
    public: Spooled | None
    evaluation: Spooled | None
    evaluation_private: bool
    units: int


def model_tree(model: nn.Module | str) -> dict[str, Any]:
    """Return the keys of [model] that name a module.

    A factory's name is taken as it is; torch's own layers are described; anything else is lent, see ``problem.lent``. Parameters that
    the module keeps from being trained stay so. Raises UsageError for something that is neither.
    """
    if isinstance(model, str):
        return {"factory": model}
    if not isinstance(model, nn.Module):
        raise UsageError(
            f'model: found {type(model).__name__}; expected a torch.nn.Module, or a factory "package.module:function"'
        )
    refuse_unfit(model)
    _refuse_untrainable(model)
    description = layers.describe(model)
    tree: dict[str, Any] = (
        {"factory": lent.FACTORY, "args": {"module": lent.name_of(model)}}
        if description is None
        else {"factory": layers.FACTORY, "args": description}
    )
    free = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if len(free) < len(list(model.named_parameters())):
        tree["trainable"] = [glob.escape(name) for name in free]
    return tree


def _refuse_untrainable(model: nn.Module) -> None:
    named = list(model.named_parameters())
    if not any(parameter.requires_grad for _, parameter in named):
        raise UsageError(
            f"model: none of its {len(named)} parameters has requires_grad=True; expected some to train"
            + ("; freeze less of it" if named else "; a module without parameters can't be fine-tuned")
        )
    broken = [name for name, parameter in named if not bool(torch.isfinite(parameter.detach()).all())]
    if broken:
        raise UsageError(
            f"model: {some(broken)} holds values that aren't finite; expected numbers; train or load it again"
        )


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of the settings. Raises UsageError for a value in the place of one."""
    found = nested(settings).get(name, {})
    if not isinstance(found, Mapping):
        raise UsageError(f'settings: {name}: found {found!r}; expected keys in it: {{"{name}": {{...}}}}')
    return found


def _model(request: Request) -> dict[str, Any]:
    tree = model_tree(request.model)
    if "pretrain" in _section(request.settings, "model") and isinstance(request.model, nn.Module):
        # Pretraining goes on from the module's own weights, which a factory doesn't know.
        tree |= {"factory": lent.FACTORY, "args": {"module": lent.name_of(request.model)}}
    return tree


def config_of(request: Request, sources: Sources) -> Config:
    """Return the checked config of a fit. Raises UsageError as a config file would."""
    first = sources.private[0]
    named = {"private": first, "public": sources.public, "evaluation": sources.evaluation}
    given = {where: source for where, source in named.items() if source is not None}
    require_agreement(given, request.features, _section(request.settings, "columns"))
    private: list[dict[str, Any]] = []
    coded = {} if sources.public is None else sources.public.coded
    for number, source in enumerate(sources.private):
        table = _table(source, request, coded)
        private.append(table | ({"shard": f"rank-{number:04d}"} if len(sources.private) > 1 else {}))
    data: dict[str, Any] = {"private": private, "population": request.population or POPULATION}
    if sources.public is not None:
        data["public"] = _table(sources.public, request, coded)
    elif first.shape is not None:
        data["record_shape"] = list(first.shape)
    if sources.evaluation is not None:
        data |= {"eval": _table(sources.evaluation, request, coded), "eval_private": sources.evaluation_private}
    model = _model(request)
    tree = {
        "model": {**model, "loss": request.loss or "cross-entropy"},
        "data": data,
        "privacy": {
            "epsilon": request.epsilon,
            "delta": request.delta,
            "units": sources.units if request.units is None else request.units,
        },
    }
    if request.loss is None:
        shape = first.shape or (len(_names(first, request)),)
        public = config_from_tree(tree).data.public if coded and sources.public and sources.public.whole else None
        if public is not None:
            shape = fit_schema(public, loss="cross-entropy").input_shape or shape
        tree["model"] = {**model, "loss": _loss_of(request.model, sources, shape)}
    settings = {name: value for name, value in nested(request.settings).items() if name != "columns"}
    if request.units is None and _section(request.settings, "privacy").get("adjacency") == "add-remove":
        raise UsageError(
            "units: not given; under add-remove the number of units is private: expected a public figure, units=1000"
        )
    return config_from_tree(_merged(tree, settings))


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with keys such as "mechanism.rounds" as nested tables."""
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        node: dict[str, Any] = {}
        leaf = node
        *sections, key = str(name).split(".")
        for section in sections:
            leaf[section] = {}
            leaf = leaf[section]
        leaf[key] = nested(value) if isinstance(value, Mapping) else value
        tree = _merged(tree, node)
    return tree


def _merged(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(tree)
    for name, value in other.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def _names(source: Spooled, request: Request) -> list[str]:
    """Return the feature columns of a table."""
    left_out = _section(request.settings, "columns").get("exclude", ())
    return [name for name in request.features or source.features if name not in left_out]


def _table(source: Spooled, request: Request, coded: Mapping[str, str]) -> dict[str, Any]:
    """Return the config's table of one source, with the columns that the request names, and what public ones are meant as."""
    tree = dict(source.tree)
    if source.shape is None:
        names = _names(source, request)
        columns = {key: value for key, value in _section(request.settings, "columns").items() if key != "exclude"}
        meant = {} if {"categorical", "levels", "dates", "booleans"} & set(columns) else coded
        roles: dict[str, Any] = {
            key: [name for name in names if meant.get(name) == kind]
            for key, kind in (("categorical", "levels"), ("booleans", "boolean"))
        }
        roles["dates"] = {name: FIRST_DAY for name in names if meant.get(name) == "days"}
        tree["columns"] = {**tree["columns"], "features": names, **roles, **columns}
    if request.standardise is not None and "tokens" not in tree["columns"]:
        tree["columns"] = {**tree["columns"], "standardise": request.standardise}
    return tree


def _loss_of(model: nn.Module | str, sources: Sources, shape: tuple[int, ...]) -> str:
    """Return the loss that goes with the targets: by the public ones, or else by the private ones' type alone.

    ``shape`` is that of a record's inputs.
    """
    known = sources.public or sources.private[0]
    if not known.whole:
        if sources.public is None:
            raise UsageError(
                "loss: not given, and targets are fractions or may be; expected one of cross-entropy, binary-cross-entropy and "
                "mean-squared-error"
            )
        return "mean-squared-error"
    if isinstance(model, str) or "tokens" in sources.private[0].tree["columns"]:
        raise UsageError(
            "loss: not given; expected cross-entropy, binary-cross-entropy or mean-squared-error with this model"
        )
    own = admit(lent.copied(model)).eval()
    adapt(own)
    dtype = next((parameter.dtype for parameter in own.parameters()), torch.float32)
    try:
        with torch.no_grad():
            outputs = own(torch.zeros(2, *shape, dtype=dtype))
        width = int(outputs.reshape(2, -1).shape[1])
    except Exception as error:  # noqa: BLE001 - a module of any kind, on zeros: whatever it says is public
        raise UsageError(
            f"model: refuses records of shape {shape}{_coded_inputs(sources)} ({type(error).__name__}: {' '.join(str(error).split())}); "
            "expected a model of such inputs"
        ) from None
    return "binary-cross-entropy" if width == 1 else "cross-entropy"


def _coded_inputs(sources: Sources) -> str:
    """Return, in words, which columns of public tables are more than one input or none as they stand."""
    levels = [name for name, meant in (sources.public.coded if sources.public else {}).items() if meant == "levels"]
    return f", where {some(levels, 20)} is an input for each of its levels and one for all others" if levels else ""


def plain_number(value: Any) -> Any:
    """Return a number of NumPy or a tensor of one number as Python's own, which a config is made of; anything else as it is.

    One of less than double precision is the shortest decimal that it stands for: 0.1, not 0.10000000149.
    """
    if not isinstance(value, np.generic | np.ndarray | torch.Tensor) or np.ndim(value) != 0:
        return value
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.item() if value.dtype == torch.bfloat16 else value.numpy()
    number = np.asarray(value)[()]
    return float(str(number)) if number.dtype.kind == "f" and number.dtype.itemsize < 8 else number.item()


def require_types(lists: Mapping[str, Any], settings: Any, out: Any, resume: bool) -> None:
    """Refuse (UsageError) arguments that would be taken for something else than they are meant as."""
    for name, value in lists.items():
        if isinstance(value, str):
            raise UsageError(f"{name}: {value!r} is a text; expected a list of them: {name}=[{value!r}]")
    if settings is not None and not isinstance(settings, Mapping):
        raise UsageError(
            f'settings: found {type(settings).__name__}; expected a mapping, such as {{"mechanism.rounds": 4}}'
        )
    if resume and out is None:
        raise UsageError(
            "resume: True, and out is not given; expected the folder of the run that goes on: out='runs/name'"
        )
