"""``distqexp.fit``: a live module and a script's own records through the same stages as a config file."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from distqexp.arrays import Arrays, IntegerArray
from distqexp.artefacts.card import ModelCard
from distqexp.artefacts.release import diagnostics_of
from distqexp.config import Config, config_from_tree, config_to_tree
from distqexp.engines import make_engine
from distqexp.engines.base import Control, Engine
from distqexp.engines.collectives import arrays_from_root, require
from distqexp.errors import BudgetError, UsageError
from distqexp.live.alignment import require_aligned
from distqexp.live.arguments import refuse_idle_target, refuse_second_values, require_units
from distqexp.live.batches import Roles, plain
from distqexp.live.marks import Marks
from distqexp.live.overlap import refuse_common_records, refuse_same_objects
from distqexp.live.public_figures import not_finite_line, scale_line, unscaled_targets_line
from distqexp.live.request import (
    POPULATION,
    Request,
    Sources,
    config_of,
    model_tree,
    nested,
    plain_number,
    require_types,
)
from distqexp.live.result import Facts, Fitted, facts_of
from distqexp.live.scratch import Scratch
from distqexp.live.spool import Spooled, spool
from distqexp.live.wording import Wording, told_once
from distqexp.privacy.ledger import Ledger
from distqexp.problem import lent
from distqexp.problem.models import build_model
from distqexp.problem.network import Network
from distqexp.problem.own_losses import lent_name
from distqexp.problem.weights import load_weights, write_weights
from distqexp.report.progress import Progress, ProgressEvent
from distqexp.stages.room import make_room
from distqexp.stages.rounds import FitResult, run

_ROLES = {"private": "private", "public": "public", "evaluation": "evaluation", "start": "model"}
"""The argument that each scratch file holds."""

_RUN = "run"


def fit(
    model: nn.Module | str,
    private: Any,
    *,
    epsilon: float,
    delta: float,
    public: Any = None,
    evaluation: Any = None,
    evaluation_private: bool = False,
    loss: str | Callable[..., Any] | None = None,
    target: str | None = None,
    features: Sequence[str] | None = None,
    classes: Sequence[Any] | None = None,
    unit: Any = None,
    units: int | None = None,
    population: str | None = None,
    standardise: bool | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    callback: Callable[[ProgressEvent], None] | None = None,
    engine: Engine | None = None,
    ledger: str | Path | None = None,
    insecure_noise_seed: int | None = None,
) -> Fitted:
    """Fine-tune a live module on private records with differential privacy; under MPI every rank passes its own shard.

    Records are ``(features, targets)`` as arrays or tensors (n, ...) and (n,) or (n, o), a mapping of arrays (``input_ids``,
    ``attention_mask``, ``labels``), a pandas DataFrame with ``target``, a torch Dataset, or a DataLoader, which is walked through once,
    batch by batch. They are written to a private scratch folder (mode 0700), in TMPDIR or beside ``out``, which is removed at the end,
    also when the process is killed, see ``scratch``.

    Args:
        model: The pretrained module, which stays as it is, or a factory "package.module:function" (its arguments in ``settings``, as
            "model.args"). Parameters with ``requires_grad=False`` stay frozen.
        private: The private records.
        epsilon: The epsilon that the run may cost.
        delta: The delta of the guarantee, below 1 / units.
        public: Public records of the same kind, if there are any: moments, curvature and clip come from them.
        evaluation: Records that metrics are computed on before and after; not covered by epsilon.
        evaluation_private: Whether these are private.
        loss: "cross-entropy", "binary-cross-entropy" or "mean-squared-error". When None it goes by the public targets, or by the type
            of the private ones and the number of outputs. Or a loss of your own: a function or module of outputs (n, C) and targets (n,),
            convex in the outputs, which it declares by an attribute ``convex = True`` (torch's own losses needn't), with a value a
            record (``reduction="none"``); it is tried on made-up outputs before anything is charged.
        target: The label's column of a DataFrame. With other records it is refused.
        features: The feature columns of DataFrames; all others when None.
        classes: The labels in the order of the outputs, where they are texts or not 0, 1, 2, ...; a record with another label counts
            as one without a label.
        unit: The privacy unit: a column of a DataFrame, an array of ids (n,), or the name of the ids in the batches of a loader,
            ``(features, targets, ids)``. When None each record is a unit. A Series must have the index of the records.
        units: A public number of units, at least 1. When None the units are counted, which is public but under add-remove adjacency,
            where a number has to be given.
        population: The name that the ledger keeps the budget under; records of other people need another name.
        standardise: Whether features are standardised by public moments before they reach the module. When None those of DataFrames
            are, and arrays and tensors stay as they are.
        settings: Further keys of a config, such as {"mechanism.rounds": 4, "privacy.adjacency": "replace-one"}; "columns" for DataFrames.
            Keys that have an argument here are refused.
        out: The folder of the run, new or empty. When None it is a temporary one that goes with the result.
        resume: Whether to go on with the run in ``out`` after a kill, with the same records and arguments.
        callback: Called with every progress event; nothing but warnings on the records is printed then. All warnings are in the
            result's ``warnings``.
        engine: Where the work runs; serial, or MPI under a launcher, when None.
        ledger: The ledger's file; the user's own when None.
        insecure_noise_seed: Seed of the noise, for tests. The result is NOT PRIVATE, and says so.

    Returns:
        The fitted model, on every rank.

    Raises:
        BudgetError: The population hasn't enough left; no record was looked at beyond its copy to the scratch file.
        DistqexpError: Anything else that ends a run, with one line that says what to do.
    """
    loss_name = loss if loss is None or isinstance(loss, str) else lent_name(loss)
    require_types({"features": features, "classes": classes}, settings, out, resume)
    request = Request(
        model, plain_number(epsilon), plain_number(delta), loss=loss_name, features=None if features is None else tuple(features),
        units=plain_number(units), population=population, settings=dict(settings or {}), standardise=standardise,
    )  # fmt: skip
    require_units(request.units)
    refuse_second_values(nested(request.settings))
    wording = Wording(isinstance(model, nn.Module), _ROLES)
    records = _Records(
        private, public, evaluation, evaluation_private, target, classes, unit, request.features, standardise
    )
    refuse_same_objects(private, records.others)
    refuse_idle_target(target, [private, public, evaluation])
    ledger_path = None if ledger is None else Path(ledger)
    with told_once(), ExitStack() as stack:
        with wording.errors():
            running = stack.enter_context(engine or make_engine(request.engine(), os.environ))
        # Inside of the engine, which tells what ends all ranks.
        stack.enter_context(wording.errors())
        if out is not None and not resume:
            running.on_root(lambda: make_room(Path(out), ledger=ledger_path))
        folders = stack.enter_context(_folders(running, None if out is None else Path(out)))
        wording.folder, wording.ranks = folders.records, running.size if running.kind == "mpi" else 1
        if loss_name is not None and loss is not loss_name:
            stack.enter_context(lent.lending(loss_name, loss))
        config = _config_on_all(request, records, folders.records, running)
        if isinstance(model, nn.Module):
            stack.enter_context(lent.lending(lent.name_of(model), model))
        progress = Progress(
            folders.run, rounds=config.mechanism.rounds, counts_public=config.privacy.adjacency.counts_public,
            silent=not running.is_root, callback=callback, stream=None if callback is None else io.StringIO(),
        )  # fmt: skip
        progress.wording = wording.of
        unscaled = unscaled_targets_line(config.model.loss, config.data.public is not None)
        progress.warn([*records.remarks, *filter(None, [unscaled])])
        with progress:
            try:
                result = run(
                    config, folders.run, running, progress,
                    resume=resume, noise_seed=insecure_noise_seed, ledger=ledger_path,
                )  # fmt: skip
            except BudgetError as error:
                raise _with_hint(error, population) from None
        card = None if result is None else _card(result, model, records.labels)
        return _fitted(result, card, config, running, folders, ledger_path)


@dataclass(frozen=True)
class _Records:
    """The records of a call, as they came."""

    private: Any
    public: Any
    evaluation: Any
    evaluation_private: bool
    target: str | None
    classes: Sequence[Any] | None
    unit: Any
    features: tuple[str, ...] | None
    standardise: bool | None
    remarks: list[str] = field(default_factory=list)
    """Lines of warning on public records, once they are spooled; on the root alone."""

    @property
    def others(self) -> dict[str, Any]:
        """The records that must not be private ones, by argument."""
        others = {"public": self.public, "evaluation": None if self.evaluation_private else self.evaluation}
        return {where: data for where, data in others.items() if data is not None}

    @property
    def labels(self) -> tuple[Any, ...] | None:
        """The classes in JSON types, None where none were declared. Raises UsageError for others."""
        if self.classes is None:
            return None
        labels = tuple(value.item() if isinstance(value, np.generic) else value for value in self.classes)
        known = all(isinstance(value, str | int | float) for value in labels)
        if not known or len(set(labels)) != len(labels) or len(labels) < 2:
            raise UsageError(f"classes: found {list(labels)[:6]}; expected two or more different texts or numbers")
        return labels

    def spool_private(self, folder: Path, rank: int) -> Spooled:
        """Write this rank's private records to the scratch folder."""
        require_aligned("private", self.private, self.unit)
        by_name = self.unit is None or isinstance(self.unit, str)
        name = self.unit if by_name else str(getattr(self.unit, "name", None) or "unit")
        ids = None if by_name else plain(self.unit, "unit").reshape(-1)
        roles = Roles("private", unit=name, ids=ids, classes=self.labels, features=self.features)
        spooled = spool(self.private, folder / f"private-{rank:04d}", roles, self.target)
        spooled.marks.write(_marks(spooled.path))
        return spooled

    def spool_other(self, data: Any, folder: Path, where: str, private: bool = False) -> Spooled | None:
        """Write public or evaluation records to the scratch folder; None where there are none."""
        if data is None:
            return None
        require_aligned(where, data)
        name = self.unit if isinstance(self.unit, str) else None
        unit = None if private else name
        roles = Roles(where, unit=unit, classes=self.labels, private=private, features=self.features)
        spooled = spool(data, folder / where, roles, self.target)
        if where in self.others and spooled.shape is not None:
            lines = [not_finite_line(where, spooled.path)]
            if where == "public" and not self.standardise:
                lines.append(scale_line(where, spooled.path))
            self.remarks.extend(filter(None, lines))
        return spooled


@dataclass(frozen=True)
class _Folders:
    """Where the records and the run's files go. ``own`` has both where no run's folder was asked for; None elsewhere."""

    records: Path
    run: Path
    own: Scratch | None


@contextmanager
def _folders(engine: Engine, out: Path | None) -> Iterator[_Folders]:
    """Make the private scratch folder on the root, and give its path on every rank; it goes at the end. Collective."""
    if out is None and engine.size > 1 and engine.kind == "mpi":
        raise UsageError("out: not given; under MPI expected the run's folder, which all ranks share: out='runs/name'")
    with ExitStack() as stack:
        made: list[Scratch] = []

        def make() -> str:
            made.append(Scratch(out))
            stack.callback(made[0].remove)
            return str(made[0].path)

        records = Path(engine.on_root(make))
        if out is not None:
            yield _Folders(records, out, None)
            return
        # What the run leaves when it is killed (features, sums) goes with the records.
        yield _Folders(records, made[0].folder(_RUN), made[0])
        made[0].keep(_RUN)
        stack.pop_all()


def _config_on_all(request: Request, records: _Records, folder: Path, engine: Engine) -> Config:
    """Spool every rank's records, and return the config that the root makes of them. Collective."""
    own: list[Spooled] = []
    ranks = engine.size if engine.kind == "mpi" else 1

    def work(_: Any, chunk: Sequence[int], control: Control) -> IntegerArray:
        own.append(records.spool_private(folder, engine.rank))
        forms = np.zeros(ranks, dtype=np.int64)
        forms[engine.rank if ranks > 1 else 0] = own[0].form()
        return np.array([own[0].units, *forms], dtype=np.int64)

    # The sum is also a barrier: the root looks at the files when all of them are written.
    total = engine.sum(work, None, range(ranks)) if ranks > 1 else work(None, [0], Control())

    def build() -> dict[str, Any]:
        first, (units, *forms) = own[0], require(total).tolist()
        private = [
            replace(first, path=first.path.with_name(f"private-{rank:04d}{first.path.suffix}")) for rank in range(ranks)
        ]
        for rank, source in enumerate(private):
            if not source.path.is_file():
                raise UsageError(
                    f"private: rank {rank} passed records of another kind, or its folder is another; expected one kind, and an out= that "
                    "all ranks share"
                )
            if forms[rank] != forms[0]:
                raise UsageError(
                    f"private of rank {rank}: records of another shape, or other columns, than rank 0's; expected the same on every rank"
                )
        sources = Sources(
            private=[replace(source, tree={**source.tree, "path": str(source.path)}) for source in private],
            public=records.spool_other(records.public, folder, "public"),
            evaluation=records.spool_other(records.evaluation, folder, "evaluation", records.evaluation_private),
            evaluation_private=records.evaluation_private,
            units=units,
        )
        config = config_of(request, sources)
        spooled = {"public": sources.public, "evaluation": sources.evaluation}
        refuse_common_records(
            [Marks.read(_marks(source.path)) for source in private],
            {where: require(spooled[where]).marks for where in records.others},
        )
        if isinstance(request.model, nn.Module) and config.model.factory != lent.FACTORY:
            path = folder / "start.safetensors"
            write_weights(path, Network(lent.copied(request.model)).state())
            config = replace(config, model=replace(config.model, weights=str(path)))
        tree: dict[str, Any] = config_to_tree(config)
        return tree

    return config_from_tree(engine.on_root(build))


def _marks(records: Path) -> Path:
    """The file of the marks of a rank's private records."""
    return records.with_suffix(".marks")


def _with_hint(error: BudgetError, population: str | None) -> BudgetError:
    """Return the refusal with what to do where the caller named no population."""
    if population is not None:
        return error
    return BudgetError(
        f"{error}; no population was named, so this run shares the budget of {POPULATION!r}: if the records are of other people, "
        "name them: population='icu-2024'"
    )


def _card(result: FitResult, model: nn.Module | str, classes: tuple[Any, ...] | None) -> ModelCard:
    """Write the card of the run with what only the script knows, and return it."""
    card = ModelCard.of_plan(result.plan, classes)
    if isinstance(model, nn.Module) and card.model["factory"] == lent.FACTORY:
        card = replace(card, model={**card.model, **model_tree(model)})
    card.write(result.out)
    return card


def _fitted(
    result: FitResult | None,
    card: ModelCard | None,
    config: Config,
    engine: Engine,
    folders: _Folders,
    ledger: Path | None,
) -> Fitted:
    """Return the result on every rank; the root alone has the run's. Collective."""
    text = engine.on_root(lambda: json.dumps(dataclasses.asdict(_facts(require(result), require(card), ledger))))
    module = build_model(config.model.factory, config.model.args)
    if config.engine.mixed_precision != "off":
        module = module.float()  # as what was trained is, whatever the factory makes
    network = Network(module, config.model.trainable)

    def state() -> Arrays:
        load_weights(network, folders.run / "model.safetensors")
        return network.state()

    network.load_state(arrays_from_root(engine, state))
    return Fitted(network, facts_of(text), folders.run, folders.own)


def _facts(result: FitResult, card: ModelCard, ledger: Path | None) -> Facts:
    privacy, population = result.plan.config.privacy, result.plan.config.data.population
    with Ledger.open(ledger) as books:
        cap = books.cap(population)
        epsilon, delta = (privacy.epsilon, privacy.delta) if cap is None else (cap.epsilon, cap.delta)
        spent = books.spent(population).epsilon(delta)
    budget = {
        "population": population,
        "cap": epsilon,
        "delta": delta,
        "spent": spent,
        "left": max(0.0, epsilon - spent),
    }
    history, before = [], result.plan.state.theta
    for release, figures in zip(result.releases, result.certificate["rounds"], strict=True):
        told = diagnostics_of(result.plan, release)
        moved = None if release.lacking or before.size == 0 else float(np.linalg.norm(release.theta - before))
        history.append({**figures, "moved": moved, "diagnostics": None if told is None else dataclasses.asdict(told)})
        before = release.theta
    unmoved = bool(np.array_equal(result.releases[-1].theta, result.plan.state.theta))
    return Facts(
        result.certificate, result.metrics, history, budget, result.seconds, card.tree(), list(result.warnings), unmoved
    )
