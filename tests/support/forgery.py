"""Plans of every kind of mechanism on tiny data, every change of a field, and what a release truly costs.

The truth is computed from the config alone: adjacency, presence, clip, rounds and parts, and the bound of docs/proofs/batches.md,
with none of the code that plans.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm
from small_runs import make_config, plan_of, random_table

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.config import Config
from distqexp.engines.serial import SerialEngine
from distqexp.stages.export import guarantee_of
from distqexp.stages.release import Draw, make_release

BALL = {"trust_radius": 2.0, "noise": "gaussian"}
RECORDS = {"format": "hdf5", "columns": {"features": ["x"], "target": "y", "standardise": False}}

KINDS: dict[str, dict[str, Mapping[str, Any]]] = {
    "discrete": {"mechanism": {"rounds": 2}},
    "gaussian": {"mechanism": {"rounds": 2, "noise": "gaussian"}, "subspace": {"kind": "srht", "k": 4}},
    "replace-one": {"privacy": {"adjacency": "replace-one"}, "precision": {"kind": "diagonal"}},
    "presence": {"privacy": {"presence": 3}},
    "batch": {"precision": {"kind": "kronecker"}, "mechanism": {"rounds": 2}},
    "ball": {"mechanism": {"rounds": 2, "curvature": "private", **BALL}, "precision": {"kind": "dense"}},
    "pure": {"mechanism": {"rounds": 2, **BALL}, "privacy": {"delta": 0.0}},
    "diagnostics": {"mechanism": {"rounds": 2}, "diagnostics": {"share": 0.1}},
    "parts": {"mechanism": {"rounds": 4, "parts": 2}},
    "momentum": {
        "mechanism": {"rounds": 3, "momentum": 0.5, "clip": None, "clip_quantile": 0.8, "final_step": 0.5},
        "precision": {"kind": "dense", "refresh": 2},
    },
    "add-remove": {"privacy": {"adjacency": "add-remove"}, "mechanism": {"clip": None, "clip_natural": 1.0}},
}
"""Name: sections of a config over those of ``small_runs.make_config``."""


def make_plan(folder: Path, kind: str) -> tuple[Config, Plan]:
    """The config and the plan of one of KINDS, with its files in ``folder``."""
    for name, seed in (("private", 1), ("public", 2)):
        random_table("logistic", [1, 2, 3] * 5, seed).write(folder / f"{name}.h5")
    sections = dict(KINDS[kind])
    if kind == "batch":
        sections["data"] = {
            name: {**RECORDS, "path": str(folder / f"{name}.h5")} for name in ("private", "public")
        }  # fmt: skip
    config = make_config(folder, "logistic", **sections)
    return config, plan_of(config)


def releases_of(config: Config, plan: Plan) -> list[Release]:
    """All rounds' releases, of made-up noisy sums, by the real stage."""
    random, found, state = np.random.default_rng(3), [], plan.state
    for _ in range(config.mechanism.rounds):
        sums = np.rint(random.normal(size=plan.coordinates) * state.grid.sigma).astype(np.int64)
        release = make_release(plan, state, Draw(sums, None), config.data.public, SerialEngine())
        found.append(release)
        state = release.next_state or state
    return found


# --- the truth -----------------------------------------------------------------------------------------------------


def rounds_in_batches(config: Mapping[str, Any]) -> bool:
    """Whether sums of micro-batches are rounded, by the words of docs/config.md."""
    layers = config["precision"]["kind"] == "kronecker" or config["subspace"]["kind"] in ("kronecker", "kronecker-pca")
    can = (
        layers
        and config["precision"]["kind"] in ("identity", "kronecker")
        and config["mechanism"]["curvature"] == "public"
        and all(source["unit"] is None for source in config["data"]["private"])
        and config["privacy"]["adjacency"] != "add-remove"
    )
    return can and config["mechanism"]["rounding"] != "unit"


def true_sensitivity(config: Mapping[str, Any], k: int, state: Mapping[str, Any]) -> float:
    """How far a unit moves the integers at most, in grid steps; ``state``: the scalars of the round's state, as a sketcher uses them."""
    grid, privacy = state["grid"], config["privacy"]
    moves = {"zero-out": 1, "add-remove": 1, "replace-one": 2}[privacy["adjacency"]]
    length = math.sqrt(grid["clip_integer"] ** 2 + 3 * grid["counter"] ** 2)
    if not rounds_in_batches(config):
        return float(privacy["presence"] * moves * length)
    clip, n, kappa, u, terms = state["clip"] / grid["step"], config["engine"]["micro_batch"], 1024, 2.0**-53, 2**22
    gamma = terms * u / (1 - terms * u)
    linear = moves * clip * (1 + 2.0**-30) + math.sqrt(k) + 2 * n * kappa * clip * gamma
    counts = moves * (length - grid["clip_integer"])
    return float(privacy["presence"] * (linear + counts))


def true_epsilon(config: Mapping[str, Any], k: int, states: list[Mapping[str, Any]]) -> float:
    """The smallest epsilon that the rounds of the worst part can be certified with, at the config's delta.

    With Gaussian noise: that of the continuous Gaussian mechanism; discrete noise has a little more. Pure: 2 C R / T a round.
    """
    mechanism, delta = config["mechanism"], config["privacy"]["delta"]
    costs = [[] for _ in range(mechanism["parts"])]
    for state in states:
        noise = state["grid"]["sigma"]
        moved = true_sensitivity(config, k, state)
        pure = 2 * moved * (mechanism["trust_radius"] or math.inf) / (noise**2 * state["grid"]["step"])
        costs[state["round"] % mechanism["parts"]].append(pure if delta == 0 else (moved / noise) ** 2)
    worst = max(sum(part) for part in costs)
    if delta == 0:
        return worst
    mu = math.sqrt(worst)

    def over(epsilon: float) -> float:
        second = math.exp(epsilon + norm.logcdf(-epsilon / mu - mu / 2))
        return float(norm.cdf(-epsilon / mu + mu / 2) - second - delta)

    return 0.0 if over(0.0) <= 0 else float(brentq(over, 0.0, mu * (mu / 2 + 40) + 1e-9, xtol=1e-14, rtol=1e-13))


def certified_epsilon(plan: Plan, states: list[Mapping[str, Any]]) -> float:
    """What the certificate of releases that used these states says."""
    nothing = np.zeros(0)
    releases = [Release(plan.plan_id, state["round"], nothing, nothing, state, None, None) for state in states]
    return guarantee_of(plan, releases).epsilon(plan.config.privacy.delta)


def check_guarantee(plan: Plan, header: Mapping[str, Any], states: list[Mapping[str, Any]]) -> None:
    """Assert that nothing smaller than the truth is certified or charged for rounds at ``states``; one stands for all rounds if alone."""
    config = header["config"]
    if len(states) == 1:
        states = [{**states[0], "round": round} for round in range(config["mechanism"]["rounds"])]
    truth, said = true_epsilon(config, header["k"], states), certified_epsilon(plan, states)
    assert said >= truth * (1 - 1e-9), (said, truth)
    clip, given = states[0]["clip"], config["mechanism"]["clip"]
    assert given is None or math.isclose(clip, given, rel_tol=1e-8)
    for state in states:
        grid = state["grid"]
        assert grid["clip_integer"] * grid["step"] <= state["clip"], "the integers are checked against the clip"
        if config["mechanism"]["curvature"] == "private":
            factors, radius = state["factors"], config["mechanism"]["trust_radius"]
            assert factors["price"] * grid["step"] >= radius * factors["step"] ** 2 * (1 - 1e-15)
            assert factors["largest_trace"] * radius * factors["step"] ** 2 <= state["clip"] * (1 + 1e-12)


# --- the changes ---------------------------------------------------------------------------------------------------

WORDS = (
    "zero-out", "add-remove", "replace-one", "discrete", "gaussian", "public", "private", "unit", "batch", "identity", "dense",
    "diagonal", "kronecker", "srht", "cross-entropy", "binary-cross-entropy", "mean-squared-error", "digits", "csv", "hdf5",
    "probes", "adam", "cuda", "garbage", "",
)  # fmt: skip
"""Every vocabulary's words, and two of none."""


def other_values(value: Any) -> list[Any]:
    """What stands in the place of a leaf of a header."""
    if isinstance(value, bool):
        return [not value, None, int(value), "true"]
    if isinstance(value, int):
        large = [2**53, 2**62, 10 * value, 1000 * value]
        return [
            value + 1,
            value - 1,
            value // 2,
            0,
            -1,
            -value,
            1,
            *large,
            float(value),
            value == 1,
            None,
            "7",
            [value],
        ]
    if isinstance(value, float):
        near = [math.nextafter(value, math.inf), math.nextafter(value, 0.0)]
        sizes = [value * factor for factor in (1 + 1e-6, 1 - 1e-6, 2.0, 0.5, 1e6, 1e-6)]
        return [*near, *sizes, 0.0, -value, 1.0, 1e300, 5e-324, 1, int(value), None, "0.5", [value]]
    if isinstance(value, str):
        return [*(word for word in WORDS if word != value), value + "x", None, 1, [value]]
    if value is None:
        return [1, 0, 1.0, 0.5, True, "x", "unit", [], {}]
    return []


def changed_trees(tree: Mapping[str, Any], under: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every single change of a JSON tree below the root's ``under`` (all of it, when empty), with its name."""

    def walk(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
        items = (
            list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        )
        for name, value in items:
            here = (*path, name)
            if not path and under and name not in under:
                continue
            for other in other_values(value):
                if not (type(other) is type(value) and other == value):
                    yield here, other
            if isinstance(value, list):
                yield here, value[:-1]
                yield here, [*value, *(value[-1:] or [0])]
                yield here, {}
            if isinstance(value, dict):
                for gone in value:
                    yield here, {key: item for key, item in value.items() if key != gone}
                yield here, {**value, "more": 1}
                yield here, None
            yield from walk(value, here)

    for path, other in walk(tree, ()):
        found = copy.deepcopy(dict(tree))
        at: Any = found
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = other
        yield f"{'.'.join(map(str, path))} = {other!r}"[:200], found


def changed_arrays(arrays: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    """Arrays with an entry, a shape or a type changed, left out, or one too many."""
    for name, array in arrays.items():
        entries: list[Any] = [1, -1, 0] if array.dtype.kind == "i" else [1.0, -1.0, 0.0, math.nan, math.inf, 1e300]
        if array.dtype.kind == "i":
            entries += [2**62, -(2**62)]
        for entry in entries:
            for at in {0, array.size - 1} if array.size else ():
                other = array.copy()
                with np.errstate(over="ignore"):
                    other.reshape(-1)[at] = entry
                if not np.array_equal(other, array):
                    yield f"{name}[{at}] = {entry}", {**arrays, name: other}
        yield f"{name} longer", {**arrays, name: np.concatenate([array.reshape(-1), array.reshape(-1)[:1]])}
        yield f"{name} shorter", {**arrays, name: array.reshape(-1)[:-1]}
        yield f"{name} of another shape", {**arrays, name: array[None]}
        for kind in (np.float32, np.int64, np.float64, np.int32, np.bool_):
            if array.dtype != kind:
                with np.errstate(invalid="ignore"):
                    yield f"{name} as {np.dtype(kind)}", {**arrays, name: array.astype(kind)}
        yield f"{name} left out", {key: item for key, item in arrays.items() if key != name}
    for name in ("more", "state/more", "state/precision/more", "state/subspace/more", "next/more", "state/velocity"):
        if name not in arrays:
            yield f"{name} as well", {**arrays, name: np.zeros(3)}
