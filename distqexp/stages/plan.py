"""Stage 1, plan: fix every rule of a run before any private record is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from distqexp.arrays import FloatArray
from distqexp.artefacts.derived import derived_calibration, derived_clip, derived_forecast, derived_grid, noise_budget
from distqexp.artefacts.named import Named
from distqexp.artefacts.plan import Plan
from distqexp.config import Config, without_paths
from distqexp.config.checks import check
from distqexp.engines.base import Engine
from distqexp.engines.collectives import arrays_from_root, require
from distqexp.engines.devices import refuse_mixed_devices
from distqexp.engines.threads import pin_threads
from distqexp.errors import TooFewDirectionsError, UsageError
from distqexp.expansion.source import curvature_source
from distqexp.expansion.state import next_state, public_norm
from distqexp.geometry.subspaces import subspace_kind
from distqexp.gradients.automatic import chosen, with_clip, with_directions
from distqexp.gradients.setup import build_network, subspace_of
from distqexp.gradients.worker import Worker
from distqexp.kinds import AUTO
from distqexp.problem.dataset import open_dataset
from distqexp.problem.endings import ending_warning
from distqexp.problem.independence import refuse_coupling, vocabulary_of
from distqexp.problem.losses import get_loss, is_own
from distqexp.problem.network import Network
from distqexp.problem.own_losses import check_own_loss, own_loss
from distqexp.problem.pages import in_pages
from distqexp.problem.pretrain import pretrain
from distqexp.problem.pretrained import FROM_FOLDER, resolved
from distqexp.problem.readers.base import some
from distqexp.problem.readers.tokenizer import check_vocabulary
from distqexp.problem.records import blank_inputs
from distqexp.problem.schema import Schema, fit_schema, schema_from_config
from distqexp.problem.sources import DataSource, ProbeSource, Readers
from distqexp.problem.target_scaling import start_in_run_units, unscaled_targets, with_target_moments
from distqexp.problem.user_code import own_code
from distqexp.problem.weights import load_weights
from distqexp.stages.advice import choices, expectation, warnings_of
from distqexp.stages.guard import Guard, refuse_unusable_start
from distqexp.stages.own_weights import namable, with_names
from distqexp.stages.shares import describe_shares
from distqexp.stages.table_warnings import table_warnings

CLIP_QUANTILE = 0.95
"""The share of public units that a clip of its own leaves whole, where the noise allows that much."""


def make_plan(config: Config, engine: Engine) -> Plan:
    """Make the plan of a config, as ``plan_and_worker`` does, and return it alone."""
    return plan_and_worker(config, engine)[0]


def plan_and_worker(config: Config, engine: Engine) -> tuple[Plan, Worker]:
    """Make the plan of a config; return it with each rank's worker on it. Collective; reads public data only.

    The plan is the same on every rank and for any number of ranks. Raises UsageError when k > d, the grid would overflow, or
    public data are missing.
    """
    pin_threads(config.engine.threads)
    config = _resolved(config, engine)
    network, readers = build_network(config), Readers()
    refuse_mixed_devices(config.engine.device, engine)
    schema = Schema.from_tree(engine.on_root(lambda: fitted_schema(config, network, readers).to_tree()))
    open_config, config = config, chosen(config, network, schema)
    check(config)  # as whoever reads the plan does: a choice that doesn't fit is refused before it costs anything
    candidates: list[Named] = []
    weights = in_pages(
        arrays_from_root(engine, lambda: _pretrained_network(config, schema, network, readers, candidates).state())
    )
    candidate_names: Named = engine.on_root(lambda: dict(candidates[0]))
    network.load_state(weights)
    theta = network.theta()
    source = curvature_source(config, config.data.public, schema, readers=readers)
    while True:
        worker = Worker(without_paths(config), schema, weights, network, readers)
        try:
            plan = with_names(_begun(worker, theta, source, engine), candidate_names)
            break
        except TooFewDirectionsError:
            if open_config.subspace.kind != AUTO or worker.k == 1:
                raise
            config = with_directions(config, worker.k // 2)
    if (
        open_config.mechanism.clips_by_itself
        and not config.private_curvature
        and (config.data.public or schema.input_shape)
    ):
        plan = _with_affordable_clip(plan, config, worker, source, engine)
    notes = plan.notes + (tuple(_root_notes(open_config, plan, network, readers)) if engine.is_root else ())
    forecast = derived_forecast(plan.config, plan.state.grid, plan.k)
    return dataclasses.replace(plan, forecast=forecast, notes=notes).with_identity(), worker


def _root_notes(config: Config, plan: Plan, network: Network, readers: Readers) -> Iterator[str]:
    """Yield what the plan chose of what ``config`` left open, and warnings about what the model gives."""
    yield from choices(config, plan)
    if config.data.public is not None and config.model.scale_targets and plan.schema.loss == "mean-squared-error":
        dataset = open_dataset(config.data.public, plan.schema, reader=readers.of(config.data.public, private=False))
        unscaled = unscaled_targets(plan.schema, dataset)
        yield from [] if unscaled is None else [f"distqexp: warning: {unscaled}"]
    ending = ending_warning(network, plan.schema)
    if ending is not None:
        yield f"distqexp: warning: {ending}"


def _begun(worker: Worker, theta: FloatArray, source: DataSource | ProbeSource | None, engine: Engine) -> Plan:
    """Return the plan of a worker's config with its first state, at the start ``theta`` (d,)."""
    config, k = worker.config, worker.k
    if not (config.by_blocks or config.subspace.traits.stored):
        subspace_of(config, worker.network.d, k, 0)
    if worker.schema.input_shape is not None:
        worker.refuse_indifferentiable(worker.schema.input_shape)
    calibration = derived_calibration(config, k)
    state = next_state(worker=worker, calibration=calibration, theta=theta, round=0, source=source, engine=engine)
    return Plan(
        config=config, d=worker.network.d, k=k, schema=worker.schema, calibration=calibration, weights=worker.weights,
        state=state, notes=tuple(worker.describe()) if engine.is_root else (),
    )  # fmt: skip


def _with_affordable_clip(
    plan: Plan, config: Config, worker: Worker, source: DataSource | ProbeSource | None, engine: Engine
) -> Plan:
    """Return the plan with a clip that hardly any public unit reaches, or less: as much as the noise may cost.

    What the noise costs is forecast, and then tried with seeded noise on public records or probes.
    """
    rounds, clip = plan.config.mechanism.rounds, require(plan.config.mechanism.clip_natural)
    largest = 1.0
    if isinstance(source, DataSource):
        largest = max(largest, clip / plan.state.clip * public_norm(worker, plan.state, source, engine, CLIP_QUANTILE))

    def affordable() -> float:
        guard = Guard(plan, config.data.public, worker)
        refuse_unusable_start(guard, plan.state.theta)
        budget = noise_budget(plan.config, plan.calibration, plan.k, guard.allowance / guard.unit)
        share = min(largest, budget) / clip
        for _ in range(20):
            cost = rounds * guard.cost_of_noise(plan.state, share)
            if cost <= guard.allowance:
                break
            share *= max(0.25, min(0.9, math.sqrt(guard.allowance / cost)))
        return float(f"{share * clip:.3g}")

    worker.config = with_clip(worker.config, engine.on_root(affordable))
    clip = require(derived_clip(worker.config, plan.calibration, plan.k, 0))
    grid = derived_grid(worker.config, plan.calibration, clip, plan.k)
    return dataclasses.replace(plan, config=worker.config, state=dataclasses.replace(plan.state, clip=clip, grid=grid))


def describe_plan(plan: Plan) -> list[str]:
    """Return the lines that the command ``plan`` prints: public figures, known before anything is spent."""
    calibration, grid, privacy = plan.calibration, plan.state.grid, plan.config.privacy
    mechanism = plan.config.mechanism
    parts = f" in {mechanism.parts} parts, {mechanism.passes} for each unit" if mechanism.parts > 1 else ""
    if mechanism.sampled:
        parts = f", each of a secret sample at {mechanism.sampling:g} (the work of {mechanism.work:g} passes)"
    in_all = " in all if a unit joined every round" if mechanism.sampled else " in all"
    micro_batch, k, d = plan.config.engine.micro_batch, plan.k, plan.d
    # With rounding by micro-batch no record's gradient is held: its factors are about as large as the activations of a plain pass.
    each = k if plan.config.by_batch else d + 2 * k
    memory = plan.nbytes + 8 * micro_batch * each + 8 * (plan.width - k)
    memory += subspace_kind(plan.config.subspace.kind).cached_bytes(d, k)
    return [
        expectation(plan),
        f"plan {plan.plan_id[:16]}: d = {d:,}, k = {k:,}, {mechanism.rounds} round(s){parts}, shards {', '.join(plan.config.shards)}",
        f"privacy: epsilon {privacy.epsilon:g}, delta {privacy.delta:g}, {privacy.adjacency}, "
        f"mu {calibration.mu_total:.6g}{in_all}, {grid.mu:.6g} a round",
        f"mechanism: clip {plan.state.clip:.6g}, temperature {grid.temperature:.6g}, noise {mechanism.noise}, "
        f"grid step {grid.step:g}, sigma {grid.sigma} grid units",
        *describe_shares(plan),
        *plan.notes,
        *_describe_diagnostics(plan),
        _describe_forecast(plan),
        *table_warnings(plan),
        *warnings_of(plan),
        f"a rank needs about {memory / 2**20:.0f} MiB besides the program, a sketch file about {(8 * plan.width) / 2**10:.0f} KiB",
    ]


def fitted_schema(config: Config, network: Network, readers: Readers) -> Schema:
    """Return the schema of a config's plan: fitted on the public records or, without any, as the config describes records.

    Args:
        config: The config.
        network: The model, built from the config.
        readers: The readers of this process.

    Raises:
        UsageError: The model and the records don't fit together.
        FileContentError: The public file can't be used.
    """
    loss, config_shape = config.model.loss, config.data.record_shape
    if config.data.public is None:
        schema = schema_from_config(config.data.private[0], loss=loss, record_shape=config_shape)
    else:
        reader = readers.of(config.data.public, private=False)
        schema = fit_schema(config.data.public, loss=loss, reader=reader, record_shape=config_shape)
    shape = schema.input_shape
    if shape is None:
        _refuse_untried(loss)
        return schema
    if config_shape is not None and config_shape != schema.record_shape:
        raise UsageError(
            f"data.record_shape: {list(config_shape)}; found {list(schema.record_shape)}; correct it or leave it out"
        )
    if schema.tokens:
        schema = dataclasses.replace(schema, vocabulary=vocabulary_of(network, schema.record_shape[0]))
        source = config.data.public or config.data.private[0]
        if source.format == "text":
            check_vocabulary(source.tokenizer, schema.vocabulary)
    with own_code(f"model.args: the model refuses a record of shape {shape}", "make its inputs those of data.public"):
        outputs = network.outputs(blank_inputs(schema, 2))[:1]
    refuse_coupling(network, shape, schema.tokens, schema.vocabulary, not config.by_blocks, config.records_together)
    if is_own(loss):
        check_own_loss(own_loss(loss), outputs.numel())
    if loss == "cross-entropy":
        return _with_classes(schema, outputs)
    if loss == "mean-squared-error" and config.model.scale_targets and config.data.public is not None:
        return with_target_moments(schema, open_dataset(config.data.public, schema, reader=reader), network)
    return schema


def _with_classes(schema: Schema, outputs: torch.Tensor) -> Schema:
    """Return the schema with as many classes as the model has outputs for one record."""
    if outputs.ndim != 2:
        raise UsageError(
            f"model.args: outputs of shape {tuple(outputs.shape)} for one record; cross-entropy expects (1, classes)"
        )
    if len(schema.class_names) > outputs.shape[1]:
        raise UsageError(
            f"model.args: {outputs.shape[1]} outputs for the {len(schema.class_names)} classes {some(schema.class_names)}; expected one a "
            "class, or more"
        )
    return dataclasses.replace(schema, classes=int(outputs.shape[1]))


def _resolved(config: Config, engine: Engine) -> Config:
    """Return the config with the model of a folder spelt out, which the root alone needs to have."""

    def model() -> dict[str, Any]:
        found = resolved(config).model
        return {"factory": found.factory, "args": dict(found.args)}

    if config.model.factory != FROM_FOLDER:
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **engine.on_root(model)))


def _refuse_untried(loss: str) -> None:
    if is_own(loss):
        raise UsageError(
            f"data.record_shape: absent; with model.loss = {loss!r} expected it, or data.public, so that the loss can be tried on outputs"
        )


def _pretrained_network(
    config: Config, schema: Schema, network: Network, readers: Readers, candidates: list[Named]
) -> Network:
    """Load the config's weights into ``network``, pretrain it on the public records where asked to, and return it.

    What may be named of the weights, as they were before that, is added to ``candidates``.
    """
    if config.model.weights is not None:
        load_weights(network, Path(config.model.weights), config.model.new_head)
    candidates.append(namable(network, config.model.new_head))
    if config.data.public is None:
        return network
    dataset = open_dataset(config.data.public, schema, reader=readers.of(config.data.public, private=False))
    start_in_run_units(network, schema, dataset)
    if config.model.pretrain is not None:
        records = dataset.read(dataset.slot_map().rows)
        with own_code(
            "model.pretrain: in training mode, for public records", "correct the model, or leave pretrain out"
        ):
            pretrain(network, get_loss(config.model.loss), records, config.model.pretrain)
    return network


def _describe_diagnostics(plan: Plan) -> list[str]:
    share, grid = plan.config.diagnostics.share, plan.state.grid
    if share == 0:
        return []
    return [
        f"diagnostics: every round tells units, share clipped and mean loss, for {100 * share:g} % of mu^2; "
        f"the noise of the count has standard deviation {grid.sigma * math.sqrt(plan.config.noise_excess) / grid.counter:.3g}"
    ]


def _describe_forecast(plan: Plan) -> str:
    forecast = plan.forecast
    if "bound" not in forecast:
        return (
            f"forecast: the release is above the minimum of the clipped quadratic in the ball of radius "
            f"{plan.config.mechanism.trust_radius:g} by at most {forecast['expected']:.6g} on average"
        )
    return (
        f"forecast: the release is above the minimum of its clipped quadratic by {forecast['expected']:.6g} on average, "
        f"at most {forecast['bound']:.6g} with probability {1 - forecast['failure_probability']:g}"
        + (
            f"; the choice of a sample adds at most {forecast['sampling']:.6g} on average"
            if "sampling" in forecast
            else ""
        )
    )
