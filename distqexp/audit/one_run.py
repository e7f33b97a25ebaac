"""``distqexp audit --canaries``: one whole run on made-up members, and what its releases and its model tell of them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.audit.bounds import FAILURE
from distqexp.audit.canaries import coin_estimates
from distqexp.audit.candidates import Candidates, make_candidates
from distqexp.audit.guessing import Guesses, judged
from distqexp.audit.membership import CONFIDENCE, Attack, attack_lines, attacked, loss_scores
from distqexp.audit.roc import plot_attacks
from distqexp.config import Config
from distqexp.engines.launcher import launched_size
from distqexp.engines.serial import SerialEngine
from distqexp.errors import UsageError
from distqexp.report.progress import Progress
from distqexp.stages.export import guarantee_of
from distqexp.stages.rounds import FitResult, run
from distqexp.stages.sketch import open_shards
from distqexp.storage.atomic import write_atomic

FloatArray = NDArray[np.float64]

CAVEATS = (
    "An audit gives a lower bound: a run that passes may still give away more than was found, up to its claim or beyond.",
    "Public records played the private ones. What goes wrong with the private records alone (their reader, their ids) is not in it.",
    "Rates of the loss attacks are of one model, and intervals speak of other units, not of other runs: the verdict rests on the counts "
    "of right guesses alone. Stronger attacks may exist.",
    "With few non-members a rate at 0.1% false positives says next to nothing: see its interval.",
    "Timing, memory, intermediate files and the metrics on evaluation records are not in it.",
)


@dataclass(frozen=True)
class RunAudit:
    """What one run told. Public: its records are public, its members made up.

    canaries: guesses from the noisy sums of every round, by somebody who knows all records but for the coins. members: guesses from the
    exported model's losses, about public units. attacks: rates of the same scores.
    """

    plan_id: str
    epsilon: float
    delta: float
    mu: float
    adjacency: str
    canaries: Guesses
    members: tuple[Guesses, ...]
    attacks: tuple[Attack, ...]
    differences: tuple[str, ...]
    seed: int | None

    @property
    def holds(self) -> bool:
        """Whether no guesses were righter than the claim allows."""
        return all(guesses.holds for guesses in (self.canaries, *self.members))

    def lines(self) -> list[str]:
        """For people."""
        claim = f"epsilon {self.epsilon:.4g} at delta {self.delta:g}, mu {self.mu:.4g}, {self.adjacency}"
        seeded = (
            [f"noise and coins from seed {self.seed}: a test of the audit, no audit"] if self.seed is not None else []
        )
        differences = [f"other than in the config: {text}" for text in self.differences]
        guesses = [_line(found) for found in (self.canaries, *self.members)]
        attacks = attack_lines(self.attacks)
        return [f"audit of one run, claimed: {claim}", *seeded, *guesses, *attacks, *differences, *CAVEATS]

    def tree(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "plan_id": self.plan_id,
            "claim": {"epsilon": self.epsilon, "delta": self.delta, "mu": self.mu, "adjacency": self.adjacency},
            "failure_probability": FAILURE,
            "holds": self.holds,
            "canaries": asdict(self.canaries),
            "members": [asdict(found) for found in self.members],
            "attacks": [asdict(found) for found in self.attacks],
            "attack_confidence": CONFIDENCE,
            "insecure_seed": self.seed,
            "differences": list(self.differences),
            "caveats": list(CAVEATS),
        }


@dataclass(frozen=True)
class Audited:
    """An audit, and the scores that its plot is drawn from: members' and others', by name."""

    audit: RunAudit
    scores: Mapping[str, tuple[FloatArray, FloatArray]]


def run_audit(config: Config, canaries: int, seed: int | None = None) -> Audited:
    """Run the whole of ``config`` once, on public records and ``canaries`` made-up ones that coins let in, and guess the coins.

    Opens no file of data.private or data.eval, and charges nothing: the run has its own ledger, which is thrown away. seed: of noise and
    coins, for tests. Raises UsageError: replace-one, several processes, too few canaries or public records.
    """
    launched = launched_size(os.environ)
    if launched is not None and launched[0] > 1:
        raise UsageError(f"audit: {launched[0]} processes ({launched[1]}); expected one: run it without a launcher")
    with tempfile.TemporaryDirectory() as name, SerialEngine() as engine:
        scratch = Path(name)
        candidates = make_candidates(config, canaries, scratch, engine, seed)
        with Progress(rounds=config.mechanism.rounds, counts_public=config.privacy.counts_public) as progress:
            result = run(
                candidates.config, scratch / "run", engine, progress, insecure_seed=seed, ledger=scratch / "ledger.sqlite"
            )  # fmt: skip
        if result is None:
            raise UsageError("audit: not the first process; expected one process: run it without a launcher")
        (source,), _ = open_shards(result.plan, [candidates.everybody], engine)
        estimates = coin_estimates(result.plan, result.releases, source, candidates.included, canaries)
        losses = loss_scores(
            result.plan, scratch / "pretrained.safetensors", result.out / "model.safetensors", candidates.records,
            candidates.unit,
        )  # fmt: skip
        return _judged_run(result, candidates, estimates, losses, seed)


def write_run_audit(found: Audited, out: Path) -> None:
    """audit-run.json and audit-run.png into the folder ``out``, which is there."""
    tree = json.dumps(found.audit.tree(), indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomic(out / "audit-run.json", tree.encode())
    write_atomic(out / "audit-run.png", plot_attacks(found.scores, found.audit.epsilon, found.audit.delta))


def _judged_run(
    result: FitResult,
    candidates: Candidates,
    estimates: FloatArray,
    losses: Mapping[str, FloatArray],
    seed: int | None,
) -> Audited:
    epsilon, delta = float(result.certificate["epsilon"]), float(result.certificate["delta"])
    claim, first = guarantee_of(result.plan, result.releases), len(candidates.included) - candidates.canaries
    members, coins = candidates.included[:first], candidates.included[first:]
    scores = {"noisy sums": (estimates, coins)}
    for name, values in losses.items():
        there = np.isfinite(values[:first])
        scores[name] = values[:first][there], members[there]
    # Half of the failure for the canaries, half for the losses.
    guesses = [judged("noisy sums", estimates, coins, claim, delta, FAILURE / 2)]
    guesses += [judged(name, *scores[name], claim, delta, FAILURE / 2 / len(losses)) for name in losses]
    audit = RunAudit(
        plan_id=result.plan.plan_id, epsilon=epsilon, delta=delta, mu=claim.mu,
        adjacency=result.plan.config.privacy.adjacency, canaries=guesses[0], members=tuple(guesses[1:]),
        attacks=tuple(attacked(name, *scores[name], epsilon, delta) for name in losses),
        differences=candidates.differences, seed=seed,
    )  # fmt: skip
    sides = {name: (values[inside], values[~inside]) for name, (values, inside) in scores.items()}
    return Audited(audit, sides)


def _line(found: Guesses) -> str:
    implied = "" if found.epsilon_of_mu is None else f" (epsilon {found.epsilon_of_mu:.4g})"
    return (
        f"guesses by {found.score}: {found.correct} of {found.guesses} right, {found.candidates} candidates; at least mu "
        f"{found.mu:.4g}{implied} was found, at most {found.reach:.4g} could have been: "
        + ("no contradiction" if found.holds else "THE CLAIM IS WRONG")
    )
