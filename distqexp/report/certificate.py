"""The certificate: what was released, under which guarantee, and what that guarantee does not cover."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distqexp.privacy.soundness import require_certifiable
from distqexp.storage.atomic import write_atomic

ADJACENCIES = {
    "zero-out": "one unit's contribution becomes exactly zero; the number of slots and the map from slots to units are public",
    "add-remove": "one unit comes or goes; every count is private",
    "replace-one": "one unit becomes another; the number of units is public",
}

NOT_COVERED = (
    "timing: how long the run and its steps took",
    "other releases about the same units that this ledger does not know, at other sites above all: "
    "a unit present at m sites is protected with m times mu",
    "a run that was refused before its first round, and before any charge, because a private file as a whole could not be used: "
    "damaged, not readable as its format, records with other numbers of fields, other columns, types, shapes or rows than the "
    "plan's, records in two roles, unit ids in several ways of writing, or unit ids that stand where the config says they don't",
    "choices that a person made after looking at the private records (hyperparameters, filters, columns)",
)

SINGLE_RECORDS = (
    "whoever has several records: each record is protected by itself, m records of one person together with m times mu"
)

ALL_UNITS = "every round used every unit"
ONE_PART = (
    "a unit is in one part, and pays for the rounds of that part and for those without one; epsilon, mu and rho are "
    "those of the worst part"
)

EACH_UNIT = (
    "every unit's clipped vector is on the integer grid and checked there: a unit moves the sum by at most the clip"
)
EACH_BATCH = (
    "the clipped units of a micro-batch are summed in float64 and the sum is rounded: a unit moves it by the clip and what "
    "rounding adds at most; mu is that of the sensitivity, not of the clip"
)

EXACT_DRAW = "drawn in whole grid steps, exactly"
ROUNDED_DRAW = "drawn as ideal normal numbers and rounded to whole grid steps, exactly as far as elementary functions keep a stated bound"
ROUNDED_POINT = (
    "the point is drawn in float64 and rounded to whole grid steps; epsilon, delta and mu are those of ideal arithmetic: sampler_slack, "
    "which they don't include, estimates to first order the total variation that float64 adds in all rounds"
)

COUNTS_NOT_COVERED = {
    "zero-out": "counts: the number of slots, and the records of each unit, are public under this adjacency",
    "add-remove": "counts: none is released; units_public is a figure from the config",
    "replace-one": "counts: the number of units is public under this adjacency",
}


COUNTS_RELEASED = (
    "counts other than those under diagnostics: their noise is part of every round's, and of the guarantee"
)


def build_certificate(
    *,
    epsilon: float,
    delta: float,
    mu: float,
    rho: float | None,
    pure_epsilon: float | None,
    adjacency: str,
    unit: str,
    records_public: int,
    rounds: Sequence[Mapping[str, Any]],
    parts: int,
    micro_batch: int | None,
    noise: str,
    arithmetic: str,
    mechanism: str,
    subspace: Mapping[str, Any],
    precision: Mapping[str, Any],
    plan_id: str,
    ledger: Mapping[str, Any],
    model_sha256: str,
    versions: Mapping[str, str],
    unit_column: str | None = None,
    diagnostics: Mapping[str, Any] | None = None,
    sampler_slack: float = 0.0,
    insecure_seed: int | None = None,
    evaluation_private: bool = False,
) -> dict[str, Any]:
    """The certificate as a JSON tree. Every argument is public.

    epsilon, delta: what the released rounds that a unit takes part in amount to together; mu: their Gaussian-DP
    parameter; rho: their zCDP parameter, None when the noise is continuous; pure_epsilon: the epsilon that they have with
    delta 0, None where they have none. rounds: one mapping a round, with at
    least round, part (None: every unit), mu, clip and temperature. parts: how many disjoint parts the units were
    split into. micro_batch: units whose sum is rounded as one; None where each unit's vector is. unit: what is
    protected, in words; unit_column: the column of its ids, None where
    each record is a unit. records_public: the public number of units. ledger: the entry of the last charge and its
    hash. diagnostics: what the rounds released about the units beside the parameters, within the same guarantee; None: nothing.
    sampler_slack: see ``ReleaseRule``, summed over the rounds; above 0 with a trust region.
    insecure_seed: set when the noise came from a seed: then there is no privacy, and the certificate says so
    first. evaluation_private: the metrics came from private records. Raises InternalError for an epsilon that is not above 0.
    """
    require_certifiable(epsilon)
    private = insecure_seed is None
    not_covered = [
        "evaluation metrics: computed on "
        + ("private records, and not covered by epsilon" if evaluation_private else "records outside the guarantee"),
        COUNTS_NOT_COVERED[adjacency] if diagnostics is None else COUNTS_RELEASED,
        *NOT_COVERED,
        *([SINGLE_RECORDS] if unit_column is None else []),
    ]
    if arithmetic != "exact integer":
        not_covered.append("the rounding errors of floating-point arithmetic, where arithmetic says idealised")
    return {
        "statement": statement_of(epsilon, delta, unit, adjacency, insecure_seed),
        "private": private,
        "insecure_noise_seed": insecure_seed,
        "epsilon": epsilon,
        "delta": delta,
        "mu": mu,
        "rho": rho,
        "pure_epsilon": pure_epsilon,
        "adjacency": {"kind": adjacency, "meaning": ADJACENCIES[adjacency]},
        "unit": unit,
        "unit_column": unit_column,
        "records_public": records_public,
        "rounds": [dict(entry) for entry in rounds],
        "parts": {"count": parts, "meaning": ALL_UNITS if parts == 1 else ONE_PART},
        "sums": {"rounded": "per unit", "meaning": EACH_UNIT}
        if micro_batch is None
        else {"rounded": "per micro-batch", "micro_batch": micro_batch, "meaning": EACH_BATCH},
        "noise": {
            "kind": noise,
            "arithmetic": arithmetic,
            "rounded_to_grid": True,
            "sampler_slack": sampler_slack,
            "meaning": ROUNDED_POINT if sampler_slack else EXACT_DRAW if noise == "discrete" else ROUNDED_DRAW,
        },
        "mechanism": mechanism,
        "subspace": dict(subspace),
        "precision": dict(precision),
        "diagnostics": dict(diagnostics) if diagnostics else None,
        "plan_id": plan_id,
        "ledger": dict(ledger),
        "model_sha256": model_sha256,
        "versions": dict(versions),
        "not_covered": not_covered,
    }


def statement_of(epsilon: float, delta: float, unit: str, adjacency: str, insecure_seed: int | None) -> str:
    """The guarantee in one sentence; with seeded noise, that there is none."""
    if insecure_seed is not None:
        return f"NOT PRIVATE: the noise came from the seed {insecure_seed}. The figures below hold for no one."
    return f"The released parameters are ({epsilon!r}, {delta!r})-differentially private for {unit} ({adjacency})."


def certificate_bytes(certificate: Mapping[str, Any]) -> bytes:
    """Sorted, indented JSON; raises ValueError for NaN and infinities."""
    return (json.dumps(certificate, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def write_certificate(path: Path, certificate: Mapping[str, Any]) -> None:
    """Write ``certificate.json`` atomically. Raises StorageError."""
    write_atomic(path, certificate_bytes(certificate))
