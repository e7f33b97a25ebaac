"""What the values of [tune] must be."""

from __future__ import annotations

import math
from typing import Any

from distqexp.config.sections import TuneConfig

LISTS: dict[str, tuple[str, str]] = {
    "rounds": ("mechanism", "1 or more"),
    "parts": ("mechanism", "1 or more"),
    "step": ("mechanism", "above 0"),
    "final_step": ("mechanism", "above 0"),
    "warmup": ("mechanism", "0 or more"),
    "momentum": ("mechanism", "0 or more"),
    "damping": ("precision", "0 or more"),
    "clip": ("mechanism", "above 0"),
    "clip_quantile": ("mechanism", "above 0"),
    "clip_natural": ("mechanism", "above 0"),
    "trust_radius": ("mechanism", "above 0"),
    "k": ("subspace", "1 or more"),
    "k_in": ("subspace", "1 or more"),
    "k_out": ("subspace", "1 or more"),
}
"""The lists of [tune]: the section of the config that each one's values belong to, and what they may be."""


def check_tune(tune: TuneConfig, need: Any, check_data: Any) -> None:
    """Raise UsageError by ``need(good, where, value, expected)``; ``check_data(where, data, need)`` looks at sources."""

    def share(where: str, value: float) -> None:
        need(0 < value < 1, where, value, "a share, above 0 and below 1")

    share("tune.holdout", tune.holdout)
    share("tune.test_share", tune.test_share)
    need(math.isfinite(tune.noise) and tune.noise >= 0, "tune.noise", tune.noise, "0 or more")
    angles = tune.rotate if isinstance(tune.rotate, tuple) else (tune.rotate or 0.0,) * 2
    need(
        all(map(math.isfinite, angles)) and angles[0] <= angles[1],
        "tune.rotate", tune.rotate, "degrees, or two angles, the smaller one first",
    )  # fmt: skip
    for where, value in (("tune.trials", tune.trials), ("tune.seeds", tune.seeds)):
        need(1 <= value <= 10**6, where, value, "1 to 1000000")
    need(0 <= tune.seed < 2**63, "tune.seed", tune.seed, "0 to 2^63 - 1")
    need(tune.max_passes is None or tune.max_passes >= 1, "tune.max_passes", tune.max_passes, "1 or more")
    need(tune.where is None or not tune.private, "tune.where", tune.where, "tune.where or tune.private, not both")
    for name, (_, rule) in LISTS.items():
        values = getattr(tune, name)
        need(values is None or len(values) > 0, f"tune.{name}", values, "at least one value, or no list")
        for value in values or ():
            lowest = 1 if rule == "1 or more" else 0
            good = value >= lowest and value < math.inf and (value > 0 or rule != "above 0")
            need(good, f"tune.{name}", value, rule)
    for i, data in enumerate(tune.private):
        check_data(f"tune.private.{i}", data, need)
    if tune.eval is not None:
        check_data("tune.eval", tune.eval, need)
