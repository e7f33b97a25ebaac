"""From a round's whitened coordinates back to the parameters. Public."""

from __future__ import annotations

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.geometry.precisions import precision_from_arrays
from distqexp.geometry.whitening import Whitening
from distqexp.gradients.worker import Worker


def whitening_of(plan: Plan, state: RoundState, worker: Worker) -> Whitening:
    """Return the whitening of the round of ``state``: its subspace, and the factor of its precision."""
    precision = precision_from_arrays(plan.config.precision.kind, plan.k, dict(state.precision))
    return Whitening(worker.subspace_at(plan.d, plan.k, state.round, state.subspace), precision)
