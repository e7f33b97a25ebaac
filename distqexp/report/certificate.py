"""The certificate: what was released, under which guarantee, and what that guarantee does not cover."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from pathlib import Path
from typing import Any

from distqexp.kinds import Adjacency, Noise
from distqexp.privacy.soundness import require_certifiable
from distqexp.storage.atomic import write_atomic

ADJACENCIES = {
    Adjacency.ZERO_OUT: "one unit's contribution becomes exactly zero; the number of slots and the map from slots to units are public",
    Adjacency.ADD_REMOVE: "one unit comes or goes; every count is private",
    Adjacency.REPLACE_ONE: "one unit becomes another; the number of units is public",
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
    "whoever has several records: each record is protected by itself, m records of one person together with m times mu, "
    "and a record that stands there twice is two"
)

_DIGITS = 6

NO_SAMPLES = "every unit that a round was for took part in it"
SAMPLED = (
    "each unit joined each round by a secret coin of its own; epsilon counts that, mu and rho do not: they are those of a unit that "
    "joined every round. How many units joined stays secret but for the stated failure, which delta includes"
)
NO_PARTS = "the units were not split"
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

HALF_PRECISION = (
    "forward passes took matrix products in this type, one record's apart from the others'; clip, norms, sums and noise did not: the "
    "clipped vectors are those of the gradients so rounded, and no bound rests on how good these are"
)

EXACT_DRAW = "drawn in whole grid steps, exactly"
ROUNDED_DRAW = "drawn as ideal normal numbers and rounded to whole grid steps, exactly as far as elementary functions keep a stated bound"
SHARED_DRAW = (
    "each site draws a share before it hands on its sums, and the shares of sites - tolerated sites are the whole noise: nobody draws it "
    "or holds the sums without it. Who sees the pooled sums, and sites that subtract their own shares, learn no more than epsilon and "
    "delta say as long as missing and colluding sites are at most tolerated, together. Who sees one site's sums before they are pooled or "
    "masked sees them with its own share alone: against them a round's mu is share_mu_factor times as large, and epsilon does not "
    "hold. delta includes the total variation between the shares and one draw; rho is that of one draw. With no site missing the noise's "
    "variance is variance_factor times that of sigma"
)
ROUNDED_POINT = (
    "the point is drawn in float64 and rounded to whole grid steps; epsilon, delta and mu are those of ideal arithmetic: sampler_slack, "
    "which they don't include, estimates to first order the total variation that float64 adds in all rounds"
)

COUNTS_NOT_COVERED = {
    Adjacency.ZERO_OUT: "counts: the number of slots, and the records of each unit, are public under this adjacency",
    Adjacency.ADD_REMOVE: "counts: none is released; units is a figure of the config (privacy.units)",
    Adjacency.REPLACE_ONE: "counts: the number of units is public under this adjacency",
}

COUNTS_RELEASED = (
    "counts other than those under diagnostics: their noise is part of every round's, and of the guarantee"
)


def kept_words(share: float) -> str:
    """Return what was kept of the way of a whole run, in words. Public."""
    if share == 1:
        return "all of the way that the rounds went is kept"
    kept = f"{share:.1%} of the way that the rounds went is kept" if share else "the model stays as it was"
    return f"{kept}: noise alone would have led about as far; expect little of this budget"


@dataclass(frozen=True)
class Certificate:
    """All that a certificate says, before it is put in words. Every field is public.

    Attributes:
        epsilon: The epsilon at ``delta`` of all released rounds that a unit takes part in, together.
        delta: The delta of the config.
        mu: The Gaussian-DP parameter of the same rounds together.
        rho: Their zCDP parameter; None when the noise is continuous.
        pure_epsilon: The epsilon that they have at delta 0; None where they have none.
        adjacency: Which datasets are neighbours.
        unit: What is protected, in words.
        units: privacy.units of the config; not counted from the data.
        rounds: A mapping for each round, with at least round, part (None: every unit), mu, clip, temperature and halvings
            (how often the guard halved the move).
        parts: The number of disjoint parts that the units were split into.
        micro_batch: The number of units whose sum is rounded as one; None where each unit's vector is rounded.
        noise: The kind of noise.
        arithmetic: In words, what of the arithmetic is exact and what idealised; "exact integer" where nothing is idealised.
        mechanism: The mechanism, in words.
        subspace: Kind and sizes of the subspace.
        precision: Kind, source and damping of the precision, and what the damping is relative to.
        plan_id: The plan's identity, in hexadecimal.
        ledger: The entry of the last charge, and its hash.
        model_sha256: The digest of the model's file, in hexadecimal.
        versions: The versions of the programs, by name.
        sampling: The probability with which a unit took part in a round; 1 where every unit did.
        sampling_failure: The chance that the work of any round told how many units took part.
        unit_column: The column of the unit ids; None where each record is a unit.
        diagnostics: What the rounds released about the units beside the parameters, within the same guarantee; None for nothing.
        mixed_precision: The type of matrix products in forward passes; None where it is the model's own.
        sampler_slack: See ``ReleaseRule``; summed over the rounds, and above 0 with a trust region.
        kept: The share of the way from the plan's parameters that the last round kept; 1: all of it.
        noise_seed: Set when the noise came from a seed: then there is no privacy, and the certificate says so first.
        shares: With noise in shares: how many sites there are, and how many may be missing or collude; else None.
        shares_variation: The total variation between noise in shares and single draws, in all rounds that a unit takes part in.
        evaluation_private: Whether the metrics come from private records.
        classes_private: Whether the classes were taken from private labels.
    """

    epsilon: float
    delta: float
    mu: float
    rho: float | None
    pure_epsilon: float | None
    adjacency: Adjacency
    unit: str
    units: int
    rounds: Sequence[Mapping[str, Any]]
    parts: int
    micro_batch: int | None
    noise: Noise
    arithmetic: str
    mechanism: str
    subspace: Mapping[str, Any]
    precision: Mapping[str, Any]
    plan_id: str
    ledger: Mapping[str, Any]
    model_sha256: str
    versions: Mapping[str, str]
    sampling: float = 1.0
    sampling_failure: float = 0.0
    unit_column: str | None = None
    diagnostics: Mapping[str, Any] | None = None
    mixed_precision: str | None = None
    sampler_slack: float = 0.0
    kept: float = 1.0
    noise_seed: int | None = None
    shares: tuple[int, int] | None = None
    shares_variation: float = 0.0
    evaluation_private: bool = False
    classes_private: bool = False

    def tree(self) -> dict[str, Any]:
        """Return the certificate as a tree for JSON.

        Raises:
            InternalError: Its figures can't be right.
        """
        require_certifiable(self.epsilon)
        return {
            "statement": statement_of(self.epsilon, self.delta, self.unit, self.adjacency, self.noise_seed),
            "private": self.noise_seed is None,
            "noise_seed": self.noise_seed,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "mu": self.mu,
            "rho": self.rho,
            "pure_epsilon": self.pure_epsilon,
            "adjacency": {"kind": str(self.adjacency), "meaning": ADJACENCIES[self.adjacency]},
            "unit": self.unit,
            "unit_column": self.unit_column,
            "units": self.units,
            "rounds": [dict(entry) for entry in self.rounds],
            "kept": {"share": self.kept, "meaning": kept_words(self.kept)},
            "parts": {"count": self.parts, "meaning": ONE_PART if self.parts > 1 else NO_PARTS},
            "sampling": {
                "rate": self.sampling,
                "failure": self.sampling_failure,
                "meaning": NO_SAMPLES if self.sampling == 1 else SAMPLED,
            },
            "sums": {"rounded": "per unit", "meaning": EACH_UNIT}
            if self.micro_batch is None
            else {"rounded": "per micro-batch", "micro_batch": self.micro_batch, "meaning": EACH_BATCH},
            "noise": {
                "kind": str(self.noise),
                "arithmetic": self.arithmetic,
                "rounded_to_grid": True,
                "sampler_slack": self.sampler_slack,
                "meaning": ROUNDED_POINT
                if self.sampler_slack
                else EXACT_DRAW
                if self.noise == Noise.DISCRETE
                else ROUNDED_DRAW,
            },
            "mechanism": self.mechanism,
            "subspace": dict(self.subspace),
            "precision": dict(self.precision),
            "diagnostics": dict(self.diagnostics) if self.diagnostics else None,
            "plan_id": self.plan_id,
            "ledger": dict(self.ledger),
            "model_sha256": self.model_sha256,
            "versions": dict(self.versions),
            "not_covered": self._not_covered(),
        } | self._where_it_applies()

    def _where_it_applies(self) -> dict[str, Any]:
        """What is said of some runs alone, so that certificates of others are as in earlier versions."""
        return self._gradients() | self._noise_in_shares()

    def _gradients(self) -> dict[str, Any]:
        """What is said of gradients: nothing where forward passes are in the model's own type, as in earlier versions."""
        if self.mixed_precision is None:
            return {}
        return {"gradients": {"mixed_precision": self.mixed_precision, "meaning": HALF_PRECISION}}

    def _noise_in_shares(self) -> dict[str, Any]:
        """What is said of noise in shares: nothing where one party draws the noise, as in earlier versions."""
        if self.shares is None:
            return {}
        sites, tolerated = self.shares
        return {
            "noise_in_shares": {
                "sites": sites,
                "tolerated": tolerated,
                "total_variation": self.shares_variation,
                "share_mu_factor": math.sqrt(sites - tolerated),
                "variance_factor": sites / (sites - tolerated),
                "meaning": SHARED_DRAW,
            }
        }

    def _not_covered(self) -> list[str]:
        """What the guarantee does not cover, in words."""
        records = (
            "private records, and not covered by epsilon"
            if self.evaluation_private
            else "records outside the guarantee"
        )
        texts = [
            f"evaluation metrics: computed on {records}",
            COUNTS_NOT_COVERED[self.adjacency] if self.diagnostics is None else COUNTS_RELEASED,
            *NOT_COVERED,
            *([SINGLE_RECORDS] if self.unit_column is None else []),
        ]
        if self.classes_private:
            texts.append(
                "which labels there are: the classes were taken from the private labels, and anybody sees them"
            )
        if self.arithmetic != "exact integer":
            texts.append("the rounding errors of floating-point arithmetic, where arithmetic says idealised")
        return texts


def statement_of(
    epsilon: float, delta: float, unit: str, adjacency: Adjacency, noise_seed: int | None, *, rounded: bool = True
) -> str:
    """State the guarantee in one sentence; with seeded noise, state that there is none.

    ``rounded``: figures of at most six digits, rounded upwards, for people; the certificate has the exact ones beside it.
    """
    if noise_seed is not None:
        return f"NOT PRIVATE: the noise came from the seed {noise_seed}. The figures below hold for no one."
    figures = ", ".join(rounded_up(figure) if rounded else repr(figure) for figure in (epsilon, delta))
    return f"The released parameters are ({figures})-differentially private for {unit} ({adjacency})."


def rounded_up(figure: float) -> str:
    """Write a figure above 0 in at most six digits, none of them promising less than it is."""
    context = Context(prec=_DIGITS, rounding=ROUND_CEILING)
    return f"{float(context.create_decimal(repr(figure))):.{_DIGITS}g}"


def certificate_bytes(certificate: Mapping[str, Any]) -> bytes:
    """Encode a certificate as sorted, indented JSON. Raises ValueError for NaN and infinities."""
    return (json.dumps(certificate, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def write_certificate(path: Path, certificate: Mapping[str, Any]) -> None:
    """Write ``certificate.json`` atomically. Raises StorageError."""
    write_atomic(path, certificate_bytes(certificate))
