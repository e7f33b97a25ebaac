"""Checks a certificate: against itself, its model, the plan and releases that it rests on, and the ledger here."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.recomputed import refuse_unlike
from distqexp.artefacts.release import Release, charged_part
from distqexp.artefacts.restoring import with_file_errors
from distqexp.errors import DistqexpError, FileContentError
from distqexp.privacy import gdp
from distqexp.privacy.events import GaussianRelease, cost
from distqexp.privacy.ledger import Ledger
from distqexp.privacy.ledger.books import LedgerRow
from distqexp.privacy.ledger.files import default_path
from distqexp.problem.losses import is_own
from distqexp.problem.models import require_allowed_factory
from distqexp.problem.target_scaling import state_in_own_units
from distqexp.report.certificate import statement_of
from distqexp.stages.charging import Charging
from distqexp.stages.export import certificate_of, fine_tuned_network
from distqexp.stages.void import DIGEST

TOLERANCE = 1e-11
"""A relative tolerance for a certificate's figures: the last bits, in which numerical libraries differ."""


def unbroken_chain(releases: Mapping[int, Release]) -> list[Release]:
    """Return the releases of rounds 0, 1, ... up to the first that is not given."""
    chain: list[Release] = []
    while len(chain) in releases:
        chain.append(releases[len(chain)])
    return chain


def may_be_built(plan: Plan) -> bool:
    try:
        require_allowed_factory(plan.config.model.factory)
        if is_own(plan.config.model.loss):
            require_allowed_factory(plan.config.model.loss, "model.loss")
    except FileContentError:
        return False
    return True


def on_this_machine(plan: Plan) -> Plan:
    """Return the plan with its model on the CPU, which every machine has."""
    config = plan.config
    return replace(plan, config=replace(config, engine=replace(config.engine, device="cpu")))


def verify_certificate(path: Path, plans: Mapping[str, Plan], releases: Mapping[str, Mapping[int, Release]]) -> str:
    certificate = _read_certificate(path)
    model, plan_id = path.with_name("model.safetensors"), certificate["plan_id"]
    if not model.exists():
        raise FileContentError(f"{model}: missing; expected the model that {path.name} speaks of, beside it")
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    if digest != certificate["model_sha256"]:
        raise FileContentError(
            f"{model}: SHA-256 {digest}, the certificate says {str(certificate['model_sha256'])[:80]}; one of the two was changed"
        )
    if plans and plan_id not in plans:
        raise FileContentError(
            f"{path}: plan_id {str(plan_id)[:80]}, the plan beside it has {next(iter(plans))}; one of the two was changed"
        )
    line = f"{path}: its model has the SHA-256 that it states"
    with_file_errors(path, lambda: _check_itself(certificate))
    ledger = _check_ledger(path, certificate)
    if not plans:
        return f"{line}; not checked: its figures against plan and releases, which are not given{ledger}"
    plan = plans[plan_id]
    chain = unbroken_chain(releases.get(plan.plan_id, {}))
    rounds = plan.config.mechanism.rounds
    if len(chain) < rounds:
        return (
            f"{line}; not checked: its figures against the releases of all {rounds} rounds, which are not given{ledger}"
        )
    _check_figures(path, certificate, plan, chain)
    return f"{line}, and every figure of plan and releases; {_check_tensors(model, plan, chain[-1])}{ledger}"


def _read_certificate(path: Path) -> dict[str, Any]:
    try:
        certificate = json.loads(path.read_text("utf-8"))
        certificate["model_sha256"], certificate["plan_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FileContentError(
            f"{path}: not a certificate of distqexp; expected JSON with model_sha256 and plan_id"
        ) from None
    return dict(certificate)


def _check_itself(certificate: Mapping[str, Any]) -> None:
    """Refuse a certificate, whatever its plan, whose figures contradict each other."""
    ledger = certificate["ledger"]
    if not (
        set(ledger) == {"entry", "hash"}
        and type(ledger["entry"]) is int
        and ledger["entry"] > 0
        and DIGEST.fullmatch(ledger["hash"])
    ):
        raise FileContentError(f"ledger: found {str(ledger)[:100]}; expected the number and the hash of an entry")
    epsilon, delta, mu = certificate["epsilon"], certificate["delta"], certificate["mu"]
    costs: dict[int | None, float] = {}
    for entry in certificate["rounds"]:
        costs[entry["part"]] = costs.get(entry["part"], 0.0) + entry["mu"] ** 2
    most = math.sqrt(costs.pop(None, 0.0) + max(costs.values(), default=0.0))
    pure, rate = certificate["pure_epsilon"] is not None, certificate["sampling"]["rate"]
    if any(entry["sampling"] != rate for entry in certificate["rounds"]):
        raise FileContentError(f"sampling.rate: found {rate!r}; its rounds have another: one of them was changed")
    # With a trust region rounds may be cheaper than their mu says; without one their costs add up.
    if not (math.isclose(mu, most, rel_tol=1e-9) or (pure and mu < most)):
        raise FileContentError(f"mu: found {mu!r}; its rounds add up to {most!r}: one of them was changed")
    if rate < 1:
        least = _sampled_epsilon(certificate)
        if not epsilon >= least * (1 - 1e-6):
            raise FileContentError(
                f"epsilon: found {epsilon!r} at delta {delta!r}; its sampled rounds give {least!r} or more: one of them was changed"
            )
    elif not pure:
        least = gdp.epsilon(delta, mu)
        if not epsilon >= least * (1 - 1e-9):
            raise FileContentError(
                f"epsilon: found {epsilon!r} at delta {delta!r}; its mu gives {least!r} or more: one of them was changed"
            )
    if certificate["rho"] is not None:
        refuse_unlike("rho", certificate["rho"], mu**2 / 2, 1e-9)
    seed = certificate["noise_seed"]
    text = _statement(
        certificate["statement"], epsilon, delta, certificate["unit"], certificate["adjacency"]["kind"], seed
    )
    refuse_unlike("statement of epsilon, delta, unit and adjacency.kind", certificate["statement"], text)
    refuse_unlike("private", certificate["private"], seed is None)


def _statement(found: object, *figures: Any) -> str:
    """Return the statement that a certificate of these figures has; those of older versions have all their digits."""
    exact = statement_of(*figures, rounded=False)
    return exact if found == exact else statement_of(*figures)


def _sampled_epsilon(certificate: Mapping[str, Any]) -> float:
    """Return the epsilon of the certificate's rounds, with the coins of one shard and without the slack of discrete noise."""
    events = [GaussianRelease(entry["mu"], 1, sampling=entry["sampling"]) for entry in certificate["rounds"]]
    return cost(events).guarantee().epsilon(certificate["delta"])


def _check_figures(path: Path, certificate: dict[str, Any], plan: Plan, releases: Sequence[Release]) -> None:
    """Hold every field against the one that plan and releases give: versions by their form only, the ledger's entry elsewhere."""
    ledger, versions = certificate["ledger"], certificate.get("versions")
    parts = [charged_part(plan, release) for release in releases]
    expected = certificate_of(plan, releases, certificate["model_sha256"], ledger, parts)
    names = set(expected["versions"])
    if not (
        isinstance(versions, dict)
        and set(versions) == names
        and all(isinstance(text, str) and 0 < len(text) <= 100 and text.isprintable() for text in versions.values())
    ):
        raise FileContentError(
            f"{path}: versions: found {str(versions)[:100]}; expected those of {', '.join(sorted(names))}: it was changed"
        )
    expected["versions"] = versions
    epsilon = certificate.get("epsilon")
    if type(epsilon) is float and math.isclose(epsilon, expected["epsilon"], rel_tol=TOLERANCE):
        kind, seed = expected["adjacency"]["kind"], expected["noise_seed"]
        found = certificate.get("statement")
        expected["statement"] = _statement(found, epsilon, expected["delta"], expected["unit"], kind, seed)
    # A file holds lists and texts, but no tuples.
    expected = json.loads(json.dumps(expected))
    first = {name: expected[name] for name in ("epsilon", "delta", "statement") if name in expected}
    for tree in (first, expected):
        with_file_errors(path, lambda tree=tree: _refuse_other_figures(certificate, tree, whole=tree is expected))  # type: ignore[misc]


def _refuse_other_figures(certificate: Mapping[str, Any], expected: Mapping[str, Any], *, whole: bool) -> None:
    actual = dict(certificate) if whole else {name: certificate[name] for name in expected if name in certificate}
    refuse_unlike("certificate", actual, dict(expected), TOLERANCE)


def _check_ledger(path: Path, certificate: Mapping[str, Any]) -> str:
    """Hold the certificate's entry, and whose units it charges, against this machine's ledger; return a remark for the line.

    It can be checked only where the ledger knows the plan. No ledger is created.
    """
    where = default_path()
    subject = f"ledger entry {certificate['ledger']['entry']}"
    if any(entry["part"] is not None for entry in certificate["rounds"]):
        subject += " and whose units each round was charged to"
    if not where.exists():
        return f"; not checked: {subject}, as there is no ledger here"
    try:
        with Ledger.open(where, create=False) as ledger:
            rows = ledger.rows()
            universe = Charging(ledger, certificate["noise_seed"]).universe
    except DistqexpError as error:
        return f"; not checked: {subject}, as the ledger here can't be read ({error})"

    def charges(round: int) -> list[LedgerRow]:
        key = f"release/{certificate['plan_id']}/{round}"
        return [row for row in rows if (row.universe, row.key.rpartition("/")[0]) == (universe, key)]

    last_charges = charges(len(certificate["rounds"]) - 1)
    if not last_charges:
        return f"; not checked: {subject}, as the ledger here does not know the plan"
    expected = [{"entry": row.id, "hash": row.hash} for row in last_charges]
    if certificate["ledger"] not in expected:
        raise FileContentError(
            f"{path}: ledger: {certificate['ledger']}; {where} has {expected[-1]} for it: the certificate was changed"
        )
    for round, entry in enumerate(certificate["rounds"]):
        payers = sorted({"everybody" if row.part is None else f"part {row.part.number}" for row in charges(round)})
        if payers and entry["part"] is not None and payers != [f"part {entry['part']}"]:
            raise FileContentError(
                f"{path}: round {round}: charged to part {entry['part']}; {where} has it charged to {' and '.join(payers)}: the "
                "certificate or its release was changed"
            )
    return f"; {subject} {'are' if ' and ' in subject else 'is'} this machine's own"


def _check_tensors(model: Path, plan: Plan, last: Release) -> str:
    """Hold the weights beside a certificate against those that the last release gives; return a remark for the line."""
    if not may_be_built(plan):
        return "not checked: the model's tensors, as its factory is not allowed here"
    if plan.lacking or last.lacking:
        return "not checked: the model's tensors, as the weights that the plan names, or states on the way, are not at hand"
    import safetensors
    from safetensors.numpy import load

    try:
        tensors = load(model.read_bytes())
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError):
        raise FileContentError(f"{model}: not readable as safetensors; export it again") from None
    expected = state_in_own_units(fine_tuned_network(on_this_machine(plan), last.theta), plan.schema)
    if set(tensors) != set(expected):
        raise FileContentError(
            f"{model}: tensors {sorted(tensors)[:5]}; expected {sorted(expected)[:5]}: it is not the model of plan and releases"
        )
    for name, array in expected.items():
        if tensors[name].shape != array.shape or not np.array_equal(
            tensors[name], array, equal_nan=array.dtype.kind == "f"
        ):
            raise FileContentError(
                f"{model}: tensor {name} is not what plan and releases give; one of them was changed: export it again"
            )
    return "its tensors are those of the last release"
