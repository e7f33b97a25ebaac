"""What a plan or a release file claims is computed again from its config, and the file is refused where one figure differs.

Integers are compared exactly. Figures that come out of a numerical library (mu, say) may differ in their last bits between versions:
those are compared to within TOLERANCE, and whatever rests on them is derived from the stored value, exactly. No tolerance touches a
certificate, which is computed from the grids themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distqexp.artefacts.derived import (
    coordinates_of,
    derived_calibration,
    derived_factor_grid,
    derived_forecast,
    derived_grid,
    most_curvature_rows,
)
from distqexp.config import config_to_tree, without_paths
from distqexp.errors import FileContentError
from distqexp.kinds import Size
from distqexp.privacy.calibration import Calibration
from distqexp.problem.schema import IMAGE_FORMATS, Schema, schema_from_config

if TYPE_CHECKING:
    from distqexp.artefacts.plan import Plan
    from distqexp.artefacts.release import Release
    from distqexp.artefacts.state import RoundState

Arrays = Mapping[str, npt.NDArray[Any]]

TOLERANCE = 1e-9
"""Relative: far above the last bits in which numerical libraries differ, far below what anybody would gain by it."""


def refuse_unlike(where: str, found: Any, expected: Any, tolerance: float = 0.0) -> None:
    """Raise FileContentError at the first place where two JSON trees differ, with both values. Types count: 1 is not 1.0 or true.

    ``tolerance``: relative, of floats.
    """
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in [*expected, *(name for name in found if name not in expected)]:
            if name not in found or name not in expected:
                raise _differs(f"{where}.{name}", found.get(name, "nothing"), expected.get(name, "nothing"))
            refuse_unlike(f"{where}.{name}", found[name], expected[name], tolerance)
        return
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            refuse_unlike(f"{where}[{number}]", one, other, tolerance)
        return
    if type(found) is not type(expected):
        raise _differs(where, found, expected)
    if isinstance(found, float) and tolerance and math.isclose(found, expected, rel_tol=tolerance):
        return
    if found != expected:
        raise _differs(where, found, expected)


def check_plan(plan: Plan, header: Mapping[str, Any], arrays: Arrays) -> None:
    """Refuse (FileContentError, UsageError) a plan whose figures are not those that its config gives.

    ``header``, ``arrays``: what was read, of which nothing may be left over. What takes the model to know is left to
    ``built.check_built``.
    """
    config, k = plan.config, plan.k
    refuse_unlike("plan", dict(header), plan.header())
    refuse_unlike("config", header["config"], config_to_tree(without_paths(config)))
    _refuse_other_arrays("plan", arrays, plan.arrays())
    if plan.d < 1:
        raise _differs("d", plan.d, "1 or more")
    size = config.subspace.traits.size
    flat = plan.d if size is Size.WHOLE else config.subspace.k
    if size is not Size.SIDES and k != flat:
        raise _differs("k", k, flat)
    if not 1 <= k <= plan.d:
        raise _differs("k", k, f"1 to d = {plan.d}")
    _check_schema(plan)
    _check_calibration(plan.calibration, derived_calibration(config, k))
    check_state(plan, plan.state, 0, "state")
    refuse_unlike("forecast", dict(plan.forecast), derived_forecast(config, plan.state.grid, k), TOLERANCE)


def check_release(plan: Plan, release: Release, header: Mapping[str, Any], arrays: Arrays) -> None:
    """Refuse (FileContentError, UsageError) a release whose figures are not those that the plan gives for its round.

    What takes the state before it to know is left to ``chain.check_follows``.
    """
    last = plan.config.mechanism.rounds - 1
    refuse_unlike("release", dict(header), release.header())
    _refuse_other_arrays("release", arrays, release.arrays())
    if not 0 <= release.round <= last:
        raise _differs("round", release.round, f"0 to {last}")
    seed = release.insecure_seed
    if seed is not None and type(seed) is not int:
        raise _differs("insecure_seed", seed, "a whole number, or null")
    used = release.used
    if release.round == 0:
        refuse_unlike("used", used, plan.state.header())
    check_rules(plan, used, release.round, "used")
    coordinates = coordinates_of(plan.config, plan.k)
    if release.noisy_sums.dtype != np.int64 or release.noisy_sums.shape != (coordinates,):
        raise _differs("noisy_sums", _form(release.noisy_sums), f"int64 ({coordinates},)")
    following = release.next_state
    if following is None:
        if release.round != last:
            raise _differs("next", None, f"the state of round {release.round + 1}: the plan has {last + 1} rounds")
        return
    if release.round == last:
        raise _differs("next", f"the state of round {following.round}", "null: it is the plan's last round")
    check_state(plan, following, release.round + 1, "next")
    if plan.config.precision.made_at(following.round) != following.round:
        kept = kept_clip(plan, used["clip"], release.round)
        refuse_unlike("next.clip", following.clip, kept, TOLERANCE)


def kept_clip(plan: Plan, clip: float, round: int) -> float:
    """The clip of the round after ``round``, where it is not made anew: scaled to that round's step, or the config's own."""
    mechanism = plan.config.mechanism
    given = mechanism.clip_of(round + 1, plan.config.privacy.units)
    return given if given is not None else clip * math.sqrt(mechanism.step_of(round + 1) / mechanism.step_of(round))


def check_rules(plan: Plan, header: Mapping[str, Any], round: int, where: str) -> None:
    """Refuse the scalars of a round's state unless the plan gives exactly them for the round and the clip."""
    config, clip = plan.config, header.get("clip")
    if type(clip) is not float or not (math.isfinite(clip) and clip > 0):
        raise _differs(f"{where}.clip", clip, "a finite number above 0")
    given = config.mechanism.clip_of(round, config.privacy.units)
    if given is not None:
        refuse_unlike(f"{where}.clip", clip, given, TOLERANCE)
    grid = derived_grid(config, plan.calibration, clip, plan.k)
    expected = {"round": round, "clip": clip, "grid": asdict(grid)}
    if config.private_curvature:
        step = (header.get("factors") or {}).get("step")
        rows = _curvature_rows(plan)
        if rows is None:
            rows = most_curvature_rows(config, grid, plan.k, step) if type(step) is float else 0
        factors = derived_factor_grid(config, grid, plan.k, rows) if rows else None
        expected["factors"] = asdict(factors) if factors else f"a grid for the clip {clip!r}"
    refuse_unlike(where, dict(header), expected)


def check_state(plan: Plan, state: RoundState, round: int, where: str) -> None:
    """Refuse a round's state, scalars and vectors, unless the plan may give it for the round.

    The arrays of precision and subspace are left to ``stages.built``, where the geometry is at hand.
    """
    check_rules(plan, state.header(), round, where)
    config = plan.config
    if state.theta.shape != (plan.d,):
        raise _differs(f"{where}.theta", _form(state.theta), f"float64 ({plan.d},)")
    moving = config.mechanism.momentum != 0 and round > 0
    if (state.velocity is not None) != moving:
        raise _differs(f"{where}.velocity", "absent" if moving else "present", "present" if moving else "absent")
    if state.velocity is not None and state.velocity.shape != (plan.d,):
        raise _differs(f"{where}.velocity", _form(state.velocity), f"float64 ({plan.d},)")
    if not config.subspace.traits.stored and state.subspace:
        raise _differs(f"{where}.subspace", f"{len(state.subspace)} arrays", f"none for {config.subspace.kind}")


def _check_calibration(found: Calibration, expected: Calibration) -> None:
    sigma = found.sigma_minimum
    # A whole number that a numerical library has a part in: one more or less, or TOLERANCE of it.
    near = type(sigma) is int and abs(sigma - expected.sigma_minimum) <= max(1, TOLERANCE * expected.sigma_minimum)
    if not (near and sigma >= 1):
        raise _differs("calibration.sigma_minimum", sigma, expected.sigma_minimum)
    for name in ("slack_delta", "epsilon_round"):
        refuse_unlike(f"calibration.{name}", getattr(found, name), getattr(expected, name))
    for name in ("mu_total", "mu_round"):
        refuse_unlike(f"calibration.{name}", getattr(found, name), getattr(expected, name), TOLERANCE)


def _check_schema(plan: Plan) -> None:
    """What the config says about the schema; what only the public file tells is free: it reads one record at a time."""
    data, schema, loss = plan.config.data, plan.schema, plan.config.model.loss
    refuse_unlike("schema.loss", schema.loss, loss)
    if loss != "cross-entropy":
        refuse_unlike("schema.classes", schema.classes, None)
    elif schema.classes is None and schema.shape is not None:
        raise _differs("schema.classes", None, "the number of the model's outputs")
    if schema.vocabulary is not None and not schema.tokens:
        raise _differs("schema.vocabulary", schema.vocabulary, None)
    source = data.private[0] if data.public is None else data.public
    if data.public is None:
        own = schema_from_config(source, loss=loss, record_shape=data.record_shape)
    else:
        own = _fitted(plan.schema, source.format, plan)
    found, expected = schema.to_tree(), own.to_tree()
    for name in expected:
        if name not in ("classes", "vocabulary"):
            refuse_unlike(f"schema.{name}", found[name], expected[name])
    given = data.record_shape
    if given is not None and schema.shape is not None:
        refuse_unlike("schema.shape", list(schema.record_shape), list(given))


def _fitted(found: Schema, format: str, plan: Plan) -> Schema:
    """``found`` with all that the config says about a schema that was fitted to public records."""
    data = plan.config.data.public
    if data is None:
        return found
    roles, image = data.columns, format in IMAGE_FORMATS
    table = not image and not roles.tokens
    return replace(
        found,
        image=image,
        names=("pixels",) if image else found.names if roles.features is None else roles.features,
        pixel_scale={"digits": 1.0 / 16.0, "idx": 1.0 / 255.0}.get(format, 1.0),
        medians=found.medians if table else (),
        means=found.means if table else (),
        scales=found.scales if table else (),
        flags=found.flags if table and roles.missing_flag_above is not None else (),
        bound=roles.winsorise_above if table else None,
        constant=roles.constant and table,
        tokens=roles.tokens,
    )


def _curvature_rows(plan: Plan) -> int | None:
    """How many factors the loss's curvature has for a record; None where only the model tells."""
    if plan.config.model.loss == "binary-cross-entropy":
        return 1
    return plan.schema.classes if plan.config.model.loss == "cross-entropy" else None


def _refuse_other_arrays(where: str, found: Arrays, expected: Arrays) -> None:
    """Nothing was left over, and nothing was turned into another type, while the arrays were read."""
    for name in [*expected, *(name for name in found if name not in expected)]:
        one, other = (_form(arrays[name]) if name in arrays else "nothing" for arrays in (found, expected))
        if one != other:
            raise _differs(f"{where}: array {name}", one, other)


def _form(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} {array.shape}"


def _differs(where: str, found: Any, expected: Any) -> FileContentError:
    return FileContentError(
        f"{where}: {_shown(found)}; the plan's own config gives {_shown(expected)}: the file was changed, or made by another program: "
        "get it again from whoever made it"
    )


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:80] + "..."
