"""What a plan says of its own choices, and what it warns of; and the last lines of a run. Public figures alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from distqexp.artefacts.derived import noise_ratio, step_shrinkage
from distqexp.artefacts.moves import HALVINGS
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.config import Config
from distqexp.gradients.automatic import LARGEST_DENSE
from distqexp.kinds import AUTO
from distqexp.privacy.ledger.left import Left
from distqexp.problem import lent
from distqexp.problem.losses import is_own
from distqexp.problem.models import is_allowed
from distqexp.problem.own_losses import LENT
from distqexp.stages.charging import Charging
from distqexp.stages.guard import LEAST_NOISE_COST, LOSS_SHARE
from distqexp.stages.table_warnings import table_warnings

_LARGE_EPSILON = 20.0
_LITTLE = 0.1
"""Noise of this share of the largest sum shortens steps by about a hundredth."""

_NEW_HEAD = (
    "; its new head (model.new_head) began untrained: model.pretrain fits one on public records first, from Python"
)

_LOSSES = ("log_loss", "mean_squared_error", "loss")


def choices(config: Config, plan: Plan) -> list[str]:
    """Return a line for everything that ``config`` left open and the plan chose, with the reason."""
    chosen, lines = plan.config, []
    subspace, precision, mechanism = chosen.subspace, chosen.precision, chosen.mechanism
    if config.precision.kind == AUTO:
        where = {
            "identity": "no curvature: neither data.public nor data.record_shape is given",
            "public": "from data.public",
        }
        source = (
            where["identity"]
            if precision.kind == "identity"
            else where.get(precision.source, "from probes: no data.public")
        )
        damped = precision.kind != "identity" and precision.reference == "winsorized"
        left_out = ", damped by its mean but for outliers" if damped else ""
        small = (
            precision.traits.by_blocks and config.subspace.kind == AUTO and plan.d <= LARGEST_DENSE and mechanism.head
        )
        by_layers = "; not dense, as mechanism.head lets layers stand still" if small else ""
        lines.append(f"chosen: precision {precision.kind}, {source}{left_out}{by_layers}")
        if precision.kind == "identity":
            lines.append(
                "distqexp: warning: data.record_shape: without it and without data.public nothing is known of the model's curvature, and a "
                "run may hardly move whatever the epsilon; give the shape of a record (probes then tell the curvature), or public records"
            )
    if config.subspace.kind == AUTO and config.precision.kind == AUTO:
        if subspace.kind == "identity":
            lines.append(
                f"chosen: all {plan.d:,} parameters move (they are at most {LARGEST_DENSE:,}, or have no curvature)"
            )
        elif subspace.k is not None:
            lines.append(
                f"chosen: {subspace.k} leading directions of public gradients, of {plan.d:,} parameters: a layer is too wide for more"
            )
        else:
            lines.append(
                f"chosen: {subspace.k_in} x {subspace.k_out} directions of each layer, of {plan.d:,} parameters in all: as many as the "
                "noise leaves a whole clip, 8 x 8 at least"
            )
    if config.mechanism.clips_by_itself:
        lines.append(
            f"chosen: clip_natural {mechanism.clip_natural:g} in {mechanism.rounds} rounds of step {mechanism.step:g}, so that noise costs "
            f"at most {100 * LOSS_SHARE:g} % of the first loss, or {LEAST_NOISE_COST:g}, by the forecast and by trial on public records "
            "or probes"
        )
        if config.model.weights is None and config.model.pretrain is None and config.data.public is not None:
            lines.append(
                "chosen: no pretraining: the run begins with the weights that model.factory makes; where these are random, "
                "[model.pretrain] fits them to data.public first"
            )
    return lines


def expectation(plan: Plan) -> str:
    """Return what to expect of the noise, in plain words, from the plan's figures."""
    unit, shrinkage = plan.config.unit, step_shrinkage(plan.config, plan.calibration, plan.k)
    if shrinkage == 1.0:  # steps aren't shortened, so that nothing is known of the length of the sum
        cost = plan.forecast["expected"] / plan.config.privacy.units
        return f"expect: a round's noise costs at most about {cost:.2g} of loss a {unit}, by the forecast for its quadratic"
    ratio = noise_ratio(plan.config, plan.calibration, plan.k)
    verdict = (
        "noise is little" if ratio < _LITTLE else "noise takes a part of the progress" if ratio < 1 else "noise wins"
    )
    return f"expect: {verdict}: in a round it is about {ratio:.2g} times as long as the sum of all {unit}s can be, and most are shorter"


def warnings_of(plan: Plan) -> list[str]:
    """Return lines of warning about the budget, where it hardly protects or noise will win."""
    privacy, lines = plan.config.privacy, []
    if privacy.delta * privacy.units > 1:
        lines.append(
            f"privacy.delta: {privacy.delta:g} is above 1 / units = {1 / privacy.units:.3g}: giving away one unit whole would be within "
            "it; lower it"
        )
    if privacy.epsilon > _LARGE_EPSILON:
        lines.append(f"privacy.epsilon: {privacy.epsilon:g} promises next to nothing; 0.1 to 10 are usual")
    if step_shrinkage(plan.config, plan.calibration, plan.k) < 0.5:
        ratio = noise_ratio(plan.config, plan.calibration, plan.k)
        lines.append(
            f"noise will win: in {plan.k:,} coordinates a round's noise is {ratio:.2g} times as long as the sum "
            "of all units can be; expect little: train fewer parameters, have more units, or raise epsilon"
        )
    if plan.config.precision.source == "probes" and plan.schema.tokens and _layers(plan) > 1:
        lines.append(
            "precision.source: random tokens say little of what texts do in several layers, and such runs may end worse than they began: "
            "give data.public, or let model.trainable name the head alone"
        )
    return [f"distqexp: warning: {line}" for line in lines]


def _layers(plan: Plan) -> int:
    """Return the number of layers that have a matrix of curvature each; 0 where the precision doesn't work layer by layer."""
    return sum(name.startswith("column/") for name in plan.state.precision)


def lines_on_moves(releases: Sequence[Release]) -> list[str]:
    """Return lines on a run whose rounds moved less than they paid for, or not at all. Released figures say so."""
    lines, halvings = [], [release.halvings for release in releases]
    unmade = sum(halved >= HALVINGS for halved in halvings)
    cut = sum(halved > 0 for halved in halvings) - unmade
    if unmade or cut:
        lines.append(
            f"moves: of {len(releases)} rounds' moves, all paid for, {unmade} were not made and {cut} were cut; look at the number of "
            "units and the step before another run; where private records simply differ from public ones, a larger mechanism.guard_rise "
            "lets moves go further"
        )
    if releases[-1].kept == 0:
        lines.append(
            "whether the private records could be used is told by no run: distqexp check CONFIG says it to whoever may see them"
        )
    return lines


def last_lines(
    plan: Plan,
    releases: Sequence[Release],
    metrics: Mapping[str, Mapping[str, float]],
    certificate: Mapping[str, object],
    charging: Charging,
    out: Path,
) -> list[str]:
    """Return what a run ends with: before and after, the guarantee, what is left, where the model is, and whether it got worse.

    Metrics of private evaluation records are left out: only who may see them asks for them.
    """
    lines = []
    before, after = metrics["before"], metrics["after"]
    private = plan.config.data.eval_private
    if before and after and not private:
        figures = (f"{name} {before[name]:.4g} before, {after[name]:.4g} after" for name in after if name in before)
        lines.append(f"data.eval, not covered by the guarantee: {'; '.join(figures)}")
    seeded = " (NOT PRIVATE: noise from a seed)" if releases[-1].noise_seed is not None else ""
    unit = plan.config.unit
    whom = "each record" if unit == "record" else f"each {unit}"
    lines.append(
        f"guarantee: epsilon {certificate['epsilon']:.6g} at delta {plan.config.privacy.delta:g} for {whom}{seeded}"
    )
    population = charging.population_of(plan)
    cap, ledger = charging.ledger.cap(population), charging.ledger
    if cap is not None and not seeded:
        lines.append(f"budget of {population}: {Left.of(cap, ledger.spent(population), unit).line()}")
    lines += lines_on_moves(releases)
    lines += lines_on_own_code(plan)
    lines.append(f"model: {out / 'model.safetensors'}")
    return [*lines, *lines_on_worse(plan, metrics)]


def lines_on_own_code(plan: Plan) -> list[str]:
    """Return a line where the model is made, or its loss is measured, by code that the other commands don't run unasked."""
    own = (plan.config.model.factory, plan.config.model.loss)
    unlisted = [
        name for name in own if is_own(name) and not name.startswith((LENT, lent.FACTORY)) and not is_allowed(name)
    ]
    if not unlisted:
        return []
    return [
        f"distqexp predict and export run code of your own where you allow it: export DISTQEXP_ALLOW_FACTORIES='{','.join(unlisted)}'"
    ]


def lines_on_worse(plan: Plan, metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a line where evaluation records, unless they are private, say that the model got worse, or a new head no better."""
    before, after, config = metrics["before"], metrics["after"], plan.config
    named = [] if config.data.eval_private else [name for name in _LOSSES if name in before]
    hint = _NEW_HEAD if config.model.new_head else ""
    for name in named:
        end = after.get(name, math.nan)
        if not end <= before[name]:
            warned = ", or see the plan's warnings" if table_warnings(plan) or warnings_of(plan) else ""
            return [
                f"the run ended worse than it began: {name} {before[name]:.4g} before, {end:.4g} after; use the model that you had"
                f"{warned}{hint}"
            ]
        if hint and end == before[name]:
            return [f"the run ended no better than it began: {name} {before[name]:.4g} before, {end:.4g} after{hint}"]
    return []
