"""The choice of a round's sketcher."""

from __future__ import annotations

from distqexp.artefacts.state import RoundState
from distqexp.gradients.by_layer import BlockGradients
from distqexp.gradients.context import RoundContext
from distqexp.mechanism.rounding_slack import CANCELLATION, LARGEST_TERMS
from distqexp.sketching.counters import UnitCounters
from distqexp.sketching.curvature_sketcher import CurvatureSketcher
from distqexp.sketching.sketcher import BatchSketcher, Sketcher


def sketcher_of(context: RoundContext, state: RoundState) -> Sketcher | BatchSketcher | CurvatureSketcher:
    """Return the sketcher for a round's state, which works on the gradients of ``context``."""
    grid, trust_radius = state.grid, context.config.mechanism.trust_radius
    if state.factors is not None and trust_radius is not None:
        return CurvatureSketcher(
            context.whole_gradients,
            step=grid.step,
            clip_integer=grid.clip_integer,
            trust_radius=trust_radius,
            factor_step=state.factors.step,
            price=state.factors.price,
            largest_trace=state.factors.largest_trace,
        )
    gradients, counters = context.gradients, _counters(context, grid.counter)
    if context.config.by_batch and isinstance(gradients, BlockGradients):
        return BatchSketcher(
            gradients,
            clip=state.clip,
            step=grid.step,
            cancellation=CANCELLATION,
            largest_terms=LARGEST_TERMS,
            counters=counters,
        )
    return Sketcher(gradients, clip=state.clip, step=grid.step, clip_integer=grid.clip_integer, counters=counters)


def _counters(context: RoundContext, counter: int) -> UnitCounters | None:
    """Return the counters of diagnostics; None without diagnostics, where the grid's ``counter`` is 0."""
    if counter == 0:
        return None
    largest = context.config.diagnostics.largest_loss
    return UnitCounters(context.network, context.loss, context.config.engine.micro_batch, counter, largest)
