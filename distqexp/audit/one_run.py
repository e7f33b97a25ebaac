"""``distqexp audit --canaries``: one whole run whose members coins decide on, and what its releases and its model tell of them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distqexp.arrays import FloatArray
from distqexp.audit.bounds import FAILURE
from distqexp.audit.canaries import coin_estimates
from distqexp.audit.candidates import Candidates, make_candidates
from distqexp.audit.guessing import Guesses, judge
from distqexp.audit.membership import CONFIDENCE, Attack, attack_lines, loss_scores, measure_attack
from distqexp.audit.roc import plot_attacks, write_plot
from distqexp.config import Config
from distqexp.engines.launcher import launched_size
from distqexp.engines.serial import SerialEngine
from distqexp.errors import UsageError
from distqexp.report.progress import Progress
from distqexp.stages.export import guarantee_of
from distqexp.stages.rounds import FitResult, run
from distqexp.stages.shards import open_shards
from distqexp.storage.atomic import write_atomic

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
    """What one run gave away. Public: its records are public or made up, and coins decided on its members.

    Attributes:
        plan_id: The identity of the run's plan, in hexadecimal.
        epsilon: The claimed epsilon.
        delta: The claimed delta.
        mu: The claimed mu.
        adjacency: Which datasets are neighbours.
        canaries: Guesses about canaries, from the noisy sums of all rounds, by somebody who knows all records and the coins of public
            units.
        members: Guesses about public units, from the exported model's losses; one for each score.
        attacks: The rates of the same scores.
        differences: In which ways the run differs from the user's config, in words.
        noise_seed: The seed of noise and coins, in tests; None for an audit.
        sampling: The probability with which a unit joins a round; ``mu`` leaves it aside.
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
    noise_seed: int | None
    sampling: float = 1.0

    @property
    def holds(self) -> bool:
        """Whether no more guesses were right than the claim allows."""
        return all(guesses.holds for guesses in (self.canaries, *self.members))

    def lines(self) -> list[str]:
        """Return the findings as lines for people."""
        aside = "" if self.sampling == 1 else f" with the coins of samples (probability {self.sampling:g}) left aside"
        claim = f"epsilon {self.epsilon:.4g} at delta {self.delta:g}, mu {self.mu:.4g}{aside}, {self.adjacency}"
        seeded = (
            [f"noise and coins from seed {self.noise_seed}: a test of the audit, no audit"]
            if self.noise_seed is not None
            else []
        )
        differences = [f"other than in the config: {text}" for text in self.differences]
        guesses = [_line(guesses) for guesses in (self.canaries, *self.members)]
        attacks = attack_lines(self.attacks)
        return [f"audit of one run, claimed: {claim}", *seeded, *guesses, *attacks, *differences, *CAVEATS]

    def tree(self) -> dict[str, Any]:
        """Return the findings as a tree for JSON."""
        return {
            "plan_id": self.plan_id,
            "claim": {
                "epsilon": self.epsilon,
                "delta": self.delta,
                "mu": self.mu,
                "sampling": self.sampling,
                "adjacency": self.adjacency,
            },
            "failure_probability": FAILURE,
            "holds": self.holds,
            "canaries": asdict(self.canaries),
            "members": [asdict(guesses) for guesses in self.members],
            "attacks": [asdict(attack) for attack in self.attacks],
            "attack_confidence": CONFIDENCE,
            "noise_seed": self.noise_seed,
            "differences": list(self.differences),
            "caveats": list(CAVEATS),
        }


@dataclass(frozen=True)
class ScoredAudit:
    """An audit, and the scores that its plot is drawn from.

    Attributes:
        audit: The audit.
        scores: By the name of a score, the scores of members and those of others.
    """

    audit: RunAudit
    scores: Mapping[str, tuple[FloatArray, FloatArray]]


def run_audit(config: Config, canaries: int, noise_seed: int | None = None) -> ScoredAudit:
    """Run the whole of ``config`` once, on public records and canaries that coins let in, and guess the coins.

    Opens no file of data.private or data.eval, and charges nothing: the run has its own ledger, which is thrown away.

    Args:
        config: The config; its public records play the private ones.
        canaries: How many records to make up.
        noise_seed: The seed of noise and coins, for tests; both come from the operating system's entropy when None.

    Raises:
        UsageError: The adjacency is replace-one, there are several processes, or too few canaries or public records.
    """
    launch = launched_size(os.environ)
    if launch is not None and launch[0] > 1:
        raise UsageError(f"audit: {launch[0]} processes ({launch[1]}); expected one: run it without a launcher")
    with tempfile.TemporaryDirectory() as name, SerialEngine() as engine:
        scratch = Path(name)
        candidates = make_candidates(config, canaries, scratch, engine, noise_seed)
        with Progress(rounds=config.mechanism.rounds, counts_public=config.privacy.adjacency.counts_public) as progress:
            result = run(
                candidates.config, scratch / "run", engine, progress, noise_seed=noise_seed, ledger=scratch / "ledger.sqlite",
            )  # fmt: skip
        if result is None:
            raise UsageError("audit: not the first process; expected one process: run it without a launcher")
        (source,), _ = open_shards(result.plan, [candidates.full_source], engine)
        estimates = coin_estimates(result.plan, result.releases, source, candidates.included, canaries)
        losses = loss_scores(
            result.plan, scratch / "pretrained.safetensors", result.out / "model.safetensors", candidates.records,
            candidates.unit,
        )  # fmt: skip
        return _judge_run(result, candidates, estimates, losses, noise_seed)


def write_run_audit(scored: ScoredAudit, out: Path) -> None:
    """Write audit-run.json and, where matplotlib is installed, audit-run.png into the folder ``out``, which must exist."""
    tree = json.dumps(scored.audit.tree(), indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomic(out / "audit-run.json", tree.encode())
    write_plot(out / "audit-run.png", lambda: plot_attacks(scored.scores, scored.audit.epsilon, scored.audit.delta))


def _judge_run(
    result: FitResult,
    candidates: Candidates,
    estimates: FloatArray,
    losses: Mapping[str, FloatArray],
    noise_seed: int | None,
) -> ScoredAudit:
    """Test the claim of a run with the coins estimated for canaries and with the scores of public units."""
    epsilon, delta = float(result.certificate["epsilon"]), float(result.certificate["delta"])
    claim, first = guarantee_of(result.plan, result.releases), len(candidates.included) - candidates.canaries
    members, coins = candidates.included[:first], candidates.included[first:]
    scores = {"noisy sums": (estimates, coins)}
    for name, values in losses.items():
        present = np.isfinite(values[:first])
        scores[name] = values[:first][present], members[present]
    # Half of the failure probability is for the canaries, half for the losses.
    guesses = [judge("noisy sums", estimates, coins, claim, delta, FAILURE / 2)]
    guesses += [judge(name, *scores[name], claim, delta, FAILURE / 2 / len(losses)) for name in losses]
    audit = RunAudit(
        plan_id=result.plan.plan_id, epsilon=epsilon, delta=delta, mu=claim.mu,
        adjacency=result.plan.config.privacy.adjacency, canaries=guesses[0], members=tuple(guesses[1:]),
        attacks=tuple(measure_attack(name, *scores[name], epsilon, delta) for name in losses),
        differences=candidates.differences, noise_seed=noise_seed, sampling=result.plan.config.mechanism.sampling,
    )  # fmt: skip
    sides = {name: (values[inside], values[~inside]) for name, (values, inside) in scores.items()}
    return ScoredAudit(audit, sides)


def _line(guesses: Guesses) -> str:
    epsilon = "" if guesses.epsilon_of_mu is None else f" (epsilon {guesses.epsilon_of_mu:.4g})"
    return (
        f"guesses by {guesses.score}: {guesses.correct} of {guesses.guesses} right, {guesses.candidates} candidates; at least mu "
        f"{guesses.mu:.4g}{epsilon} was found, at most {guesses.reach:.4g} could have been: "
        + ("no contradiction" if guesses.holds else "THE CLAIM IS WRONG")
    )
