"""``distqexp audit``: the audit of a plan's own mechanism by many draws, and the files that report it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distqexp.artefacts.plan import Plan
from distqexp.audit.bounds import FAILURE
from distqexp.audit.sampler import CAVEATS, Finding, audit_sampler
from distqexp.errors import UsageError
from distqexp.storage.atomic import write_atomic

COORDINATES = 2
"""The dimension of the ball that a truncated draw is audited on; noise without a trust region is audited on one coordinate."""


@dataclass(frozen=True)
class Audit:
    """The findings on a plan. Public, because no record enters.

    Attributes:
        plan_id: The plan's identity, in hexadecimal.
        mechanism: The mechanism, in words.
        delta: The claim's delta.
        findings: What the draws on each pair of datasets show.
    """

    plan_id: str
    mechanism: str
    delta: float
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether no pair of datasets showed more than is claimed."""
        return all(finding.holds for finding in self.findings)

    def lines(self) -> list[str]:
        """Return the findings as lines for people."""
        pairs = [
            f"{one.pair}: at least mu {one.mu:.4g} and epsilon {one.epsilon:.4g} were found; mu {one.claimed_mu:.4g} is claimed: "
            + ("no contradiction" if one.holds else "THE CLAIM IS WRONG")
            for one in self.findings
        ]
        return [f"audit of plan {self.plan_id[:16]}: {self.mechanism}", *pairs, *CAVEATS]

    def tree(self) -> dict[str, Any]:
        """Return the findings as a tree for JSON."""
        return {
            "plan_id": self.plan_id,
            "mechanism": self.mechanism,
            "delta": self.delta,
            "failure_probability": FAILURE,
            "holds": self.holds,
            "findings": [{**asdict(finding), "holds": finding.holds} for finding in self.findings],
            "caveats": list(CAVEATS),
        }


def audit_plan(plan: Plan, draws: int, noise_seed: int | None = None) -> Audit:
    """Audit a plan's mechanism over as many rounds as a unit takes part in.

    All rounds have the grid of the first: later rounds have another clip, and noise in proportion. Nothing is charged.

    Args:
        plan: The plan.
        draws: How many releases of each round to draw on either of two datasets, for each worst unit.
        noise_seed: The seed of the noise, for tests; it comes from the operating system's entropy when None.
    """
    mechanism = plan.config.mechanism
    rule = plan.rule(plan.state)
    rule = replace(rule, k=1 if rule.independent else min(COORDINATES, plan.k))
    claimed_mu = math.sqrt(mechanism.passes) * plan.state.grid.mu
    findings = audit_sampler([rule] * mechanism.passes, claimed_mu, plan.config.privacy.delta, draws, noise_seed)
    beta = "private curvature" if plan.config.private_curvature else "public curvature"
    ball = f"trust radius {mechanism.trust_radius:g}" if mechanism.trust_radius else "no trust region"
    words = f"{beta}, {ball}, {mechanism.noise} noise, {mechanism.passes} round(s) a unit"
    return Audit(plan.plan_id, words, plan.config.privacy.delta, tuple(findings))


def write_audit(audit: Audit, out: Path) -> None:
    """Write audit.json and audit.png into the folder ``out``, which is made where it doesn't exist."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out: {out} is a file; expected a folder: choose another")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "audit.json", (json.dumps(audit.tree(), indent=2, sort_keys=True) + "\n").encode())
    write_atomic(out / "audit.png", _plot(audit.findings))


def _plot(findings: Sequence[Finding]) -> bytes:
    """Plot the error rates that were found beside those that the claim allows, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot
    from scipy.special import ndtr, ndtri

    figure, axis = pyplot.subplots(figsize=(5, 5), layout="constrained")
    rates = np.linspace(1e-6, 1 - 1e-6, 500)
    claimed_mu = findings[0].claimed_mu
    axis.plot(rates, ndtr(ndtri(1 - rates) - claimed_mu), color="black", label=f"claimed: mu = {claimed_mu:.3g}")
    for finding in findings:
        label = f"{finding.pair}: mu at least {finding.mu:.3g}"
        axis.plot([finding.false_positive], [finding.false_negative], "o", label=label)
    axis.set(xlabel="false positives, at most", ylabel="false negatives, at most", xlim=(0, 1), ylim=(0, 1))
    axis.set_title("below the line: the claim is wrong", fontsize="small")
    axis.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()
