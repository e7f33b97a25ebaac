"""The pretrained weights that a plan names by digest: found when it is made, and given back from a machine's own copy. Public."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distqexp.arrays import Arrays
from distqexp.artefacts import named as naming
from distqexp.artefacts.named import START, Named, described, unlike
from distqexp.artefacts.plan import Plan
from distqexp.errors import FileContentError, UsageError
from distqexp.gradients.setup import build_network
from distqexp.problem.network import Network
from distqexp.problem.weights import begins_anew, load_weights

VARIABLE = "DISTQEXP_WEIGHTS"
"""The environment variable that says where this machine's copy of the pretrained weights is."""


def namable(network: Network, new_head: Sequence[str]) -> Named:
    """Return what names the weights of a model that every machine has: those that were loaded, or that the factory gave.

    Args:
        network: The model with its weights loaded, before public records changed any.
        new_head: Patterns of names that began anew. Their numbers are drawn, which another version may do otherwise.

    Returns:
        Type, shape and SHA-256 by name; empty for a model that is small enough for a plan to hold it (EMBEDDED).
    """
    state = network.state()
    if sum(array.nbytes for array in state.values()) + 8 * network.d <= naming.EMBEDDED:
        return {}
    return {name: described(array) for name, array in state.items() if not begins_anew(name, new_head)}


def with_names(plan: Plan, candidates: Named) -> Plan:
    """Return the plan that names those ``candidates`` whose weights public records left alone, and its state with a lineage."""
    named = {name: one for name, one in candidates.items() if unlike({name: one}, plan.weights) is None}
    if not named:
        return plan
    return replace(plan, named=named, state=replace(plan.state, lineage=START))


def completed_plan(plan: Plan, path: str | Path | None = None) -> Plan:
    """Return the plan with the weights that its file names, from this machine's own copy; any other plan as it is.

    Args:
        plan: The plan. Its factory is run, so it has to be one that may be.
        path: The copy, a file or a folder as ``model.weights`` takes it. When None, what DISTQEXP_WEIGHTS says; without it, the weights
            that the factory gives.

    Raises:
        UsageError: There is no copy at ``path``, or none was given and the factory gives other weights.
        FileContentError: The copy is of other weights than the plan was made from.
    """
    if not plan.lacking:
        return plan
    path = path or os.environ.get(VARIABLE) or None
    network = build_network(plan.config)
    if path is not None:
        load_weights(network, path, [glob.escape(name) for name in plan.weights])  # which the plan holds itself
    own = network.state()
    wrong = unlike(plan.named, own)
    if wrong is not None and path is None:
        raise UsageError(
            f"--weights: not given; plan {plan.plan_id[:16]} names its pretrained weights by SHA-256, and {wrong} is not as the factory "
            f"{plan.config.model.factory} makes it here: name this machine's copy of them (or set {VARIABLE})"
        )
    if wrong is not None:
        raise FileContentError(
            f"{path}: {wrong} is another than plan {plan.plan_id[:16]} names by SHA-256 {plan.named[wrong]['sha256'][:16]}; expected the "
            "copy of the pretrained weights that the plan was made from: get that version"
        )
    weights: Arrays = {name: own[name] for name in plan.named} | dict(plan.weights)
    network.load_state(weights)
    return plan.with_weights(weights, network.theta())
