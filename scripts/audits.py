"""Audit every mechanism's draw at mu 0.25, 1 and 3, with real entropy, and set what was found beside what is claimed.

    python scripts/audits.py --out runs/audits

Each audit takes a million releases on either of two neighbouring datasets where mu is 0.25, and a hundred thousand elsewhere. The bounds
hold at a confidence of 1 - 1e-6 (docs/audit.md). All of it takes half an hour. The exit code is 1 where a claim is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

from distqexp.audit.sampler import audit_sampler
from distqexp.mechanism.factor_grid import choose_factor_grid
from distqexp.mechanism.grid import choose_grid
from distqexp.mechanism.rule import ReleaseRule
from distqexp.privacy.pure import pure_epsilon

MECHANISMS = ("discrete noise", "continuous noise", "replace-one", "trust region", "private curvature")
MUS = (0.25, 1.0, 3.0)
CLIP, DELTA, DRAWS, MANY = 0.7, 1e-5, 100_000, 1_000_000


def rule_of(mechanism: str, mu: float) -> ReleaseRule:
    """One coordinate of noise, or a ball of two coordinates whose radius is twice the spread of the noise."""
    grid = choose_grid(CLIP, mu, 4096, "replace-one" if mechanism == "replace-one" else "zero-out")
    if mechanism in MECHANISMS[:3]:
        return ReleaseRule(1, grid, "gaussian" if mechanism == "continuous noise" else "discrete")
    radius = 2.0 * math.sqrt(grid.temperature)
    factors = choose_factor_grid(grid, radius, 2, 1, 100, 8) if mechanism == "private curvature" else None
    return ReleaseRule(2, grid, "gaussian", radius, factors)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/audits"))
    parser.add_argument("--mechanisms", nargs="+", choices=MECHANISMS, default=list(MECHANISMS))
    parser.add_argument("--mus", nargs="+", type=float, default=list(MUS))
    parser.add_argument("--draws", type=int, help="100,000, and a million where mu is 0.25, when left out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for mechanism in options.mechanisms:
        for mu in options.mus:
            rule, started = rule_of(mechanism, mu), time.monotonic()
            draws = options.draws or (MANY if mu == 0.25 else DRAWS)
            for delta in [DELTA] if rule.independent else [DELTA, 0.0]:
                if delta == 0.0 and mu == 0.25 and options.draws is None:
                    continue  # the same law again: pure privacy is looked at where there is more to find
                for found in audit_sampler([rule], rule.grid.mu, delta, draws):
                    row = {"mechanism": mechanism, "delta": delta, **asdict(found), "holds": found.holds}
                    if delta == 0.0 and rule.trust_radius is not None:
                        claimed = pure_epsilon(
                            rule.grid.sensitivity * rule.grid.step, rule.trust_radius, rule.grid.temperature
                        )
                        row |= {"claimed_epsilon": claimed, "holds": found.holds and found.epsilon <= claimed}
                    rows.append(row | {"seconds": round(time.monotonic() - started, 1)})
                    print(json.dumps(rows[-1]), flush=True)
                    (options.out / "audits.json").write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    if not all(row["holds"] for row in rows):
        sys.exit("audits: a claim is wrong: see holds in audits.json")


if __name__ == "__main__":
    main()
