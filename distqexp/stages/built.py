"""What a plan says about its model, against the model as this machine builds it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from distqexp.errors import FileContentError
from distqexp.geometry.precisions import IdentityPrecision, KroneckerPrecision, precision_from_arrays
from distqexp.geometry.subspaces.kronecker import KroneckerSubspace
from distqexp.geometry.whitening import combined_whitening
from distqexp.problem.independence import vocabulary_of
from distqexp.problem.network import Network
from distqexp.stages.artefacts import Plan, RoundState
from distqexp.stages.context import RoundContext, blocks_of, dimension_of, subspace_of
from distqexp.stages.derived import derived_factor_grid
from distqexp.stages.recomputed import refuse_unlike


def check_built(plan: Plan, network: Network, state: RoundState | None = None) -> None:
    """Refuse (FileContentError, UsageError) a plan that is not of this model: d, k, theta, classes, blocks, curvature rows.

    network: built from the plan's config; its parameters are the plan's afterwards. state: a later round's, looked at too.
    """
    network.load_state(dict(plan.weights))
    refuse_unlike("d", plan.d, network.d)
    refuse_unlike("k", plan.k, dimension_of(plan.config, network))
    if not np.array_equal(network.theta(), plan.state.theta, equal_nan=True):
        place = int(np.argmax(network.theta() != plan.state.theta))
        refuse_unlike(f"state.theta[{place}]", float(plan.state.theta[place]), float(network.theta()[place]))
    schema = plan.schema
    if schema.tokens:
        refuse_unlike("schema.vocabulary", schema.vocabulary, vocabulary_of(network, schema.record_shape[0]))
    if schema.input_shape is not None and schema.loss == "cross-entropy":
        refuse_unlike("schema.classes", schema.classes, int(_outputs(plan, network).shape[-1]))
    for found in [plan.state] + ([] if state is None else [state]):
        _check_blocks(plan, network, found)
        _check_factors(plan, network, found)


def _outputs(plan: Plan, network: Network) -> Any:
    try:
        return network.outputs(plan.schema.blank_inputs(2).to(network.device))[:1]
    except (RuntimeError, ValueError, TypeError, IndexError):
        raise FileContentError(
            f"schema.shape: the model refuses a record of shape {plan.schema.input_shape}; the file was changed: get it again"
        ) from None


def _check_blocks(plan: Plan, network: Network, state: RoundState) -> None:
    """Arrays of subspace and precision, where both work layer by layer."""
    blocks = blocks_of(plan.config, network)
    if blocks is None:
        return
    subspace = subspace_of(plan.config, plan.d, plan.k, state.round, blocks, state.subspace)
    precision = precision_from_arrays(plan.config.precision.kind, plan.k, dict(state.precision))
    if isinstance(subspace, KroneckerSubspace) and isinstance(precision, IdentityPrecision | KroneckerPrecision):
        combined_whitening(subspace, precision)


def _check_factors(plan: Plan, network: Network, state: RoundState) -> None:
    if state.factors is None:
        return
    context = RoundContext.of_state(plan, state, ())
    expected = derived_factor_grid(plan.config, state.grid, plan.k, context.curvature_rows)
    refuse_unlike("state.factors", asdict(state.factors), asdict(expected) if expected else None)
