"""Holds what a plan says about its model against the model as this machine builds it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distqexp.artefacts.derived import derived_factor_grid, derived_step
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.recomputed import TOLERANCE, refuse_unlike
from distqexp.artefacts.release import Release
from distqexp.artefacts.restoring import with_file_errors
from distqexp.artefacts.state import RoundState
from distqexp.errors import FileContentError
from distqexp.expansion.passes import PublicContext
from distqexp.geometry.precisions import make_precision, precision_from_arrays
from distqexp.geometry.whitening import Whitening
from distqexp.gradients.setup import damping_of, dimension_of, subspace_of
from distqexp.gradients.worker import Worker
from distqexp.kinds import Needs
from distqexp.problem.independence import vocabulary_of
from distqexp.problem.network import Network
from distqexp.problem.records import blank_inputs


def check_built(plan: Plan, worker: Worker, state: RoundState | None = None) -> None:
    """Refuse a plan that does not fit its model: by d, k, theta, classes, vocabulary, blocks or curvature rows.

    Args:
        plan: The plan.
        worker: A worker on the plan; its model's parameters are set anew.
        state: The state of a later round, to be checked as well.

    Raises:
        FileContentError: A figure differs from the model's.
        UsageError: The plan's own figures are impossible for the model.
    """
    network = worker.lend()
    network.load_state(dict(plan.weights))
    refuse_unlike("d", plan.d, network.d)
    refuse_unlike("k", plan.k, dimension_of(plan.config, network))
    at = 0
    for tensor, expected in zip(network.trainable_parameters, network.split(plan.state.theta).values(), strict=True):
        own = (
            tensor.detach().to("cpu", torch.float64).numpy()
        )  # one after the other: all of a large model take gigabytes
        if not np.array_equal(own, expected, equal_nan=True):
            place = int(np.argmax(own != expected))
            refuse_unlike(f"state.theta[{at + place}]", float(expected.flat[place]), float(own.flat[place]))
        at += own.size
    schema = plan.schema
    if schema.tokens:
        refuse_unlike("schema.vocabulary", schema.vocabulary, vocabulary_of(network, schema.record_shape[0]))
    if schema.input_shape is not None and schema.loss == "cross-entropy":
        refuse_unlike("schema.classes", schema.classes, int(_outputs(plan, network).shape[-1]))
    for each in [plan.state] + ([] if state is None else [state]):
        _check_blocks(plan, worker, each)
        _check_factors(plan, worker, each)


def _outputs(plan: Plan, network: Network) -> Any:
    try:
        return network.outputs(blank_inputs(plan.schema, 2).to(network.device))[:1]
    except (RuntimeError, ValueError, TypeError, IndexError):
        raise FileContentError(
            f"schema.shape: the model refuses a record of shape {plan.schema.input_shape}; the file was changed: get it again"
        ) from None


def read_plan(path: Path) -> Plan:
    """Read a plan file and check the geometry of its state too. Raises FileContentError."""
    plan = Plan.read(path)
    with_file_errors(path, lambda: check_geometry(plan, plan.state, "state"))
    return plan


def read_release(path: Path, plan: Plan) -> Release:
    """Read a release of the plan and check the geometry of the next round's state too. Raises FileContentError."""
    release = Release.read(path, plan)
    successor = release.next_state
    if successor is not None and not release.same:  # the state before it is needed for the arrays that they share
        with_file_errors(path, lambda: check_geometry(plan, successor, "next"))
    return release


def check_geometry(plan: Plan, state: RoundState, where: str) -> None:
    """Refuse a state whose precision or flat subspace is not of the plan's kind and size; ``where`` names it in the message.

    Raises FileContentError or UsageError.
    """
    config, k = plan.config, plan.k
    precision = precision_from_arrays(config.precision.kind, k, dict(state.precision))
    if config.precision.traits.needs is Needs.NOTHING:  # The config alone gives the precision.
        step, damping = derived_step(config, plan.calibration, k, state.round), damping_of(config)
        expected = make_precision(config.precision.kind, k, None, 0, config.units_in_a_round, step, damping).to_arrays()
        for name, array in precision.to_arrays().items():
            refuse_unlike(f"{where}.precision.{name}", array.tolist(), expected[name].tolist(), TOLERANCE)
    if config.subspace.traits.stored and not config.by_blocks:
        subspace_of(config, plan.d, k, state.round, None, state.subspace)


def _check_blocks(plan: Plan, worker: Worker, state: RoundState) -> None:
    """Refuse arrays of subspace and precision that don't fit the model's blocks, where either works layer by layer."""
    if worker.blocks is None:
        return
    subspace = subspace_of(plan.config, plan.d, plan.k, state.round, worker.blocks, state.subspace)
    precision = precision_from_arrays(plan.config.precision.kind, plan.k, dict(state.precision))
    Whitening(subspace, precision).by_blocks()


def _check_factors(plan: Plan, worker: Worker, state: RoundState) -> None:
    if state.factors is None:
        return
    context = PublicContext.of_state(plan, state, (), worker)
    expected = derived_factor_grid(plan.config, state.grid, plan.k, context.curvature_rows)
    refuse_unlike("state.factors", asdict(state.factors), asdict(expected) if expected else None)
