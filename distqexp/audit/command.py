"""``distqexp audit``: the audit of a plan's own mechanism by many draws, and the files that report it."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from distqexp.arrays import FloatArray
from distqexp.artefacts.plan import Plan
from distqexp.audit.bounds import FAILURE, curve_of, fewest_misses
from distqexp.audit.roc import write_plot
from distqexp.audit.sampled import SampledClaim, SampledFinding, audit_sampled
from distqexp.audit.sampler import CAVEATS, Finding, audit_sampler
from distqexp.errors import UsageError
from distqexp.privacy.events import cost
from distqexp.privacy.guarantee import Guarantee
from distqexp.storage.atomic import write_atomic

COORDINATES = 2
"""The dimension of the ball that a truncated draw is audited on; noise without a trust region is audited on one coordinate."""

SAMPLED_CAVEATS = (
    "Coins are audited from round to round. Whether the coins of different units hang together, and whether they stay secret, is not "
    "in it.",
)


@dataclass(frozen=True)
class Audit:
    """The findings on a plan. Public, because no record enters.

    Attributes:
        plan_id: The plan's identity, in hexadecimal.
        mechanism: The mechanism, in words.
        delta: The claim's delta.
        findings: What the draws on each pair of datasets show.
        curve: The guarantee that is claimed of sampled rounds; None where the claim is a mu.
    """

    plan_id: str
    mechanism: str
    delta: float
    findings: tuple[Finding | SampledFinding, ...]
    curve: Guarantee | None = None

    @property
    def caveats(self) -> tuple[str, ...]:
        """What the audit cannot show, for people."""
        return CAVEATS if self.curve is None else CAVEATS + SAMPLED_CAVEATS

    @property
    def holds(self) -> bool:
        """Whether no pair of datasets showed more than is claimed."""
        return all(finding.holds for finding in self.findings)

    def lines(self) -> list[str]:
        """Return the findings as lines for people."""
        pairs = [
            f"{one.pair}: {one.words}: " + ("no contradiction" if one.holds else "THE CLAIM IS WRONG")
            for one in self.findings
        ]
        return [f"audit of plan {self.plan_id[:16]}: {self.mechanism}", *pairs, *self.caveats]

    def tree(self) -> dict[str, Any]:
        """Return the findings as a tree for JSON."""
        return {
            "plan_id": self.plan_id,
            "mechanism": self.mechanism,
            "delta": self.delta,
            "failure_probability": FAILURE,
            "holds": self.holds,
            "findings": [{**asdict(finding), "holds": finding.holds} for finding in self.findings],
            "caveats": list(self.caveats),
        }


def audit_plan(plan: Plan, draws: int, noise_seed: int | None = None, runs: int = 1) -> Audit:
    """Audit a plan's mechanism over as many rounds as a unit takes part in.

    All rounds have the grid of the first: later rounds have another clip, and noise in proportion. Nothing is charged.

    Args:
        plan: The plan.
        draws: How many releases of each round to draw on either of two datasets, for each worst unit.
        noise_seed: The seed of noise and coins, for tests; they come from the operating system's entropy when None.
        runs: How many runs of the plan are audited as one, against the claim for all of them together.

    Raises:
        UsageError: There are too few draws, or no runs.
    """
    if runs < 1:
        raise UsageError(f"audit: found {runs} runs; expected one or more")
    mechanism, delta = plan.config.mechanism, plan.config.privacy.delta
    rule = plan.rule(plan.state)
    rule = replace(rule, k=1 if rule.independent else min(COORDINATES, plan.k))
    beta = "private curvature" if plan.config.private_curvature else "public curvature"
    ball = f"trust radius {mechanism.trust_radius:g}" if mechanism.trust_radius else "no trust region"
    words = f"{beta}, {ball}, {mechanism.noise} noise, {mechanism.passes} round(s) a unit"
    words += f", {runs} runs" if runs > 1 else ""
    if mechanism.sampled:
        guarantee = cost([plan.event(plan.state.grid)] * (mechanism.passes * runs)).guarantee()
        claim = SampledClaim(mechanism.sampling, guarantee, delta, runs)
        finding = audit_sampled([rule] * mechanism.passes, claim, draws, noise_seed)
        words += f", which it joins with probability {mechanism.sampling:g}"
        return Audit(plan.plan_id, words, delta, (finding,), guarantee)
    rounds = mechanism.passes * runs
    claimed_mu = math.sqrt(rounds) * plan.state.grid.mu
    findings = audit_sampler([rule] * rounds, claimed_mu, delta, draws, noise_seed)
    return Audit(plan.plan_id, words, delta, tuple(findings))


def write_audit(audit: Audit, out: Path) -> None:
    """Write audit.json and, where matplotlib is installed, audit.png into the folder ``out``, which is made where it doesn't exist."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out: {out} is a file; expected a folder: choose another")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "audit.json", (json.dumps(audit.tree(), indent=2, sort_keys=True) + "\n").encode())
    write_plot(out / "audit.png", lambda: _plot(audit))


def _claimed(audit: Audit, rates: FloatArray) -> tuple[FloatArray, str]:
    """Return the smallest false negative rates that the claim allows at these false positive rates, and the claim in words."""
    first = audit.findings[0]
    if isinstance(first, Finding):
        return ndtr(ndtri(1 - rates) - first.claimed_mu), f"claimed: mu = {first.claimed_mu:.3g}"
    if audit.curve is None:
        raise ValueError("findings on sampled rounds without the claimed curve; expected both")
    return fewest_misses(
        rates, *curve_of(audit.curve)
    ), f"claimed: epsilon = {first.claimed_epsilon:.3g}, and its curve"


def _plot(audit: Audit) -> bytes:
    """Plot the error rates that were found beside those that the claim allows, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 5), layout="constrained")
    rates = np.linspace(1e-6, 1 - 1e-6, 500)
    allowed, words = _claimed(audit, rates)
    axis.plot(rates, allowed, color="black", label=words)
    for finding in audit.findings:
        axis.plot([finding.false_positive], [finding.false_negative], "o", label=finding.label)
    axis.set(xlabel="false positives, at most", ylabel="false negatives, at most", xlim=(0, 1), ylim=(0, 1))
    axis.set_title("below the line: the claim is wrong", fontsize="small")
    axis.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()
