"""Computes again from the config what a plan or a release file claims, and refuses the file where a figure differs.

Integers are compared exactly. Figures that come out of a numerical library (mu, for one) may differ in their last bits between
versions: they are compared to within TOLERANCE, and whatever follows from them is derived exactly from the stored value. No
tolerance touches a certificate, which is computed from the grids themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distqexp.arrays import Arrays
from distqexp.artefacts.derived import (
    coordinates_of,
    derived_calibration,
    derived_clip,
    derived_factor_grid,
    derived_forecast,
    derived_grid,
    most_curvature_rows,
)
from distqexp.artefacts.moves import HALVINGS, WHOLE
from distqexp.artefacts.named import START, next_lineage
from distqexp.config import DataConfig, config_to_tree, without_paths
from distqexp.errors import FileContentError
from distqexp.kinds import Size
from distqexp.privacy.calibration import Calibration
from distqexp.problem.fitted_codings import codings_of
from distqexp.problem.readers.base import PIXELS
from distqexp.problem.schema import Schema, schema_from_config

if TYPE_CHECKING:
    from distqexp.artefacts.plan import Plan
    from distqexp.artefacts.release import Release
    from distqexp.artefacts.state import RoundState


TOLERANCE = 1e-9
"""A relative tolerance: far above the last bits in which numerical libraries differ, far below what a forger would gain by it."""


SAMPLED_TOLERANCE = 2.0**-14
"""The same for the mu of sampled rounds, which is a number of 16 bits."""


def refuse_unlike(where: str, actual: Any, expected: Any, tolerance: float = 0.0) -> None:
    """Raise FileContentError, with both values, at the first place where two JSON trees differ.

    Types count: 1 is not 1.0 or true. Floats may differ by the relative ``tolerance``. ``where`` names the tree in the message.
    """
    if isinstance(actual, dict) and isinstance(expected, dict):
        for name in [*expected, *(name for name in actual if name not in expected)]:
            if name not in actual or name not in expected:
                raise _difference(f"{where}.{name}", actual.get(name, "nothing"), expected.get(name, "nothing"))
            refuse_unlike(f"{where}.{name}", actual[name], expected[name], tolerance)
        return
    if isinstance(actual, list) and isinstance(expected, list) and len(actual) == len(expected):
        for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
            refuse_unlike(f"{where}[{number}]", one, other, tolerance)
        return
    if type(actual) is not type(expected):
        raise _difference(where, actual, expected)
    if isinstance(actual, float) and tolerance and math.isclose(actual, expected, rel_tol=tolerance):
        return
    if actual != expected:
        raise _difference(where, actual, expected)


def check_plan(plan: Plan, header: Mapping[str, Any], arrays: Arrays) -> None:
    """Refuse a plan whose figures are not those that its config gives.

    What only the model can tell is left to ``stages.built.check_built``.

    Args:
        plan: The plan, as restored from ``header`` and ``arrays``.
        header: The header that was read; nothing of it may be left over.
        arrays: The arrays that were read; nothing of them may be left over.

    Raises:
        FileContentError: A figure differs.
        UsageError: The config's own figures are impossible.
    """
    config, k = plan.config, plan.k
    refuse_unlike("plan", dict(header), plan.header())
    refuse_unlike("config", header["config"], config_to_tree(without_paths(config)))
    _refuse_other_arrays("plan", arrays, plan.arrays())
    if config.automatic or config.mechanism.clips_by_itself:
        raise _difference("config", "something left to choose", "the subspace, precision and clip that the plan chose")
    if plan.d < 1:
        raise _difference("d", plan.d, "1 or more")
    size = config.subspace.traits.size
    flat = plan.d if size is Size.WHOLE else config.subspace.k
    if size is not Size.SIDES and k != flat:
        raise _difference("k", k, flat)
    if not 1 <= k <= plan.d:
        raise _difference("k", k, f"1 to d = {plan.d}")
    _check_schema(plan)
    _check_calibration(plan, derived_calibration(config, k, _guess(plan)))
    _check_state(plan, plan.state, 0, "state")
    refuse_unlike("state.lineage", plan.state.lineage, START if plan.named else None)
    refuse_unlike("forecast", dict(plan.forecast), derived_forecast(config, plan.state.grid, k), TOLERANCE)


def _check_shortening(plan: Plan, release: Release) -> None:
    most = HALVINGS if plan.config.mechanism.guard else 0
    if not 0 <= release.halvings <= most:
        raise _difference("halvings", release.halvings, f"0 to {most}")
    may_be_less = release.round == plan.config.mechanism.rounds - 1 and plan.config.mechanism.discount
    least = 0 if may_be_less else WHOLE
    if not least <= release.kept <= WHOLE:
        raise _difference("kept", release.kept, f"{least} to {WHOLE} eighths")


def check_release(plan: Plan, release: Release, header: Mapping[str, Any], arrays: Arrays) -> None:
    """Refuse (FileContentError, UsageError) a release whose figures are not those that the plan gives for its round.

    What only the state before it can tell is left to ``stages.chain.check_follows``. ``header`` and ``arrays`` are as in
    ``check_plan``.
    """
    last = plan.config.mechanism.rounds - 1
    refuse_unlike("release", dict(header), release.header())
    _refuse_other_arrays("release", arrays, release.arrays())
    if not 0 <= release.round <= last:
        raise _difference("round", release.round, f"0 to {last}")
    _check_shortening(plan, release)
    seed = release.noise_seed
    if seed is not None and type(seed) is not int:
        raise _difference("noise_seed", seed, "a whole number, or null")
    if release.round == 0:
        refuse_unlike("used", release.state_header, plan.state.header())
    _check_rules(plan, release.state_header, release.round, "used")
    coordinates = coordinates_of(plan.config, plan.k)
    if release.noisy_sums.dtype != np.int64 or release.noisy_sums.shape != (coordinates,):
        raise _difference("noisy_sums", _form(release.noisy_sums), f"int64 ({coordinates},)")
    following, successor = release.next_header, release.next_state
    _check_lineage(plan, release)
    if following is None:
        if release.round != last:
            raise _difference("next", None, f"the state of round {release.round + 1}: the plan has {last + 1} rounds")
        return
    if release.round == last:
        raise _difference("next", f"the state of round {following.get('round')}", "null: it is the plan's last round")
    if successor is None:
        _check_rules(plan, following, release.round + 1, "next")
    else:
        _check_state(plan, successor, release.round + 1, "next")
    if plan.config.refresh_round(release.round + 1) != release.round + 1:
        clip = _carried_clip(plan, release.state_header["clip"], release.round)
        refuse_unlike("next.clip", following["clip"], clip, TOLERANCE)


def _check_lineage(plan: Plan, release: Release) -> None:
    """Refuse the lineage of the next round unless it is that of this release."""
    if plan.named and release.next_header is not None:
        lineage = next_lineage(release.state_header["lineage"], release.noisy_sums, release.halvings, release.kept)
        refuse_unlike("next.lineage", release.next_header.get("lineage"), lineage)


def _carried_clip(plan: Plan, clip: float, round: int) -> float:
    """The clip of the round after ``round`` where it is not computed anew: scaled to that round's step, or the config's own."""
    mechanism = plan.config.mechanism
    config_clip = derived_clip(plan.config, plan.calibration, plan.k, round + 1)
    if config_clip is not None:
        return config_clip
    return clip * math.sqrt(mechanism.step_of(round + 1) / mechanism.step_of(round))


def _check_rules(plan: Plan, header: Mapping[str, Any], round: int, where: str) -> None:
    """Refuse the header of a round's state unless it is exactly what the plan gives for the round and the clip."""
    config, clip = plan.config, header.get("clip")
    if type(clip) is not float or not (math.isfinite(clip) and clip > 0):
        raise _difference(f"{where}.clip", clip, "a finite number above 0")
    config_clip = derived_clip(config, plan.calibration, plan.k, round)
    if config_clip is not None:
        refuse_unlike(f"{where}.clip", clip, config_clip, TOLERANCE)
    grid = derived_grid(config, plan.calibration, clip, plan.k)
    expected: dict[str, Any] = {"round": round, "clip": clip, "grid": asdict(grid)}
    if plan.named:  # what it has to be is left to check_plan and check_release
        expected["lineage"] = header.get("lineage") or "the digest of what was released before"
    if config.private_curvature:
        step = (header.get("factors") or {}).get("step")
        rows = _curvature_rows(plan)
        if rows is None:
            rows = most_curvature_rows(config, grid, plan.k, step) if type(step) is float else 0
        factors = derived_factor_grid(config, grid, plan.k, rows) if rows else None
        expected["factors"] = asdict(factors) if factors else f"a grid for the clip {clip!r}"
    refuse_unlike(where, dict(header), expected)


def _check_state(plan: Plan, state: RoundState, round: int, where: str) -> None:
    """Refuse a round's state unless it may be the plan's state of that round.

    The arrays of precision and subspace are left to ``stages.built``, where the geometry is at hand.
    """
    _check_rules(plan, state.header(), round, where)
    config = plan.config
    if not config.subspace.traits.stored and state.subspace:
        raise _difference(f"{where}.subspace", f"{len(state.subspace)} arrays", f"none for {config.subspace.kind}")
    if plan.named:  # its parameters are computed, and in no file
        return
    if state.theta.shape != (plan.d,):
        raise _difference(f"{where}.theta", _form(state.theta), f"float64 ({plan.d},)")
    moving = config.mechanism.momentum != 0 and round > 0
    if (state.velocity is not None) != moving:
        raise _difference(f"{where}.velocity", "absent" if moving else "present", "present" if moving else "absent")
    if state.velocity is not None and state.velocity.shape != (plan.d,):
        raise _difference(f"{where}.velocity", _form(state.velocity), f"float64 ({plan.d},)")


def _guess(plan: Plan) -> float | None:
    mu = plan.calibration.mu_round
    return mu if type(mu) is float and 0 < mu < math.inf else None


def _check_calibration(plan: Plan, expected: Calibration) -> None:
    calibration = plan.calibration
    sigma = calibration.sigma_minimum
    # The mu of a sampled round is found among numbers of 16 bits: another library may find the next one.
    tolerance = SAMPLED_TOLERANCE if plan.config.mechanism.sampled else TOLERANCE
    # A numerical library has a part in this whole number: it may be off by one, or by the tolerance.
    near = type(sigma) is int and abs(sigma - expected.sigma_minimum) <= max(1, tolerance * expected.sigma_minimum)
    if not (near and sigma >= 1):
        raise _difference("calibration.sigma_minimum", sigma, expected.sigma_minimum)
    for name in ("slack_delta", "epsilon_round"):
        refuse_unlike(f"calibration.{name}", getattr(calibration, name), getattr(expected, name))
    for name in ("mu_total", "mu_round"):
        refuse_unlike(f"calibration.{name}", getattr(calibration, name), getattr(expected, name), tolerance)


def _check_schema(plan: Plan) -> None:
    """Hold the schema against the config. What only the public file tells is free: it reads one record at a time."""
    data, schema, loss = plan.config.data, plan.schema, plan.config.model.loss
    refuse_unlike("schema.loss", schema.loss, loss)
    if loss != "cross-entropy":
        refuse_unlike("schema.classes", schema.classes, None)
    elif schema.classes is None and schema.shape is not None:
        raise _difference("schema.classes", None, "the number of the model's outputs")
    if schema.vocabulary is not None and not schema.tokens:
        raise _difference("schema.vocabulary", schema.vocabulary, None)
    source = data.private[0] if data.public is None else data.public
    if data.public is None:
        recomputed = schema_from_config(source, loss=loss, record_shape=data.record_shape)
    else:
        scaled = loss == "mean-squared-error" and plan.config.model.scale_targets
        recomputed = _with_rules(plan.schema, data.public, scaled)
    actual, expected = schema.to_tree(), recomputed.to_tree()
    for name in expected:
        if name not in ("classes", "vocabulary", *(("tokenizer",) if source.format == "text" else ())):
            refuse_unlike(f"schema.{name}", actual[name], expected[name])
    if data.record_shape is not None and schema.shape is not None:
        refuse_unlike("schema.shape", list(schema.record_shape), list(data.record_shape))


def _with_rules(schema: Schema, data: DataConfig, scaled: bool) -> Schema:
    """Return ``schema`` with everything that the config says about a schema that was fitted to public records.

    ``scaled`` says whether targets may be scaled.
    """
    roles, image = data.columns, schema.image if data.images is None else data.images
    table = not image and not data.tokens
    fixed_length = data.tokens and roles.length is not None
    return replace(
        schema,
        image=image,
        names=(PIXELS,) if image else schema.names if roles.features is None else roles.features,
        pixel_scale=(1.0 / 16.0 if data.format == "digits" else 1.0 / 255.0) if image else 1.0,
        medians=schema.medians if table else (),
        means=schema.means if table else (),
        scales=schema.scales if table else (),
        absent=schema.absent if table else (),
        flags=schema.flags if table and roles.missing_flag_above is not None else (),
        bound=roles.winsorise_above if table else None,
        constant=roles.constant and table,
        shape=(2, roles.length or 0) if fixed_length else schema.shape,
        tokens=data.tokens,
        tokenizer=schema.tokenizer if data.format == "text" else None,
        class_names=roles.classes or schema.class_names
        if data.format == "images" and schema.loss != "mean-squared-error"
        else (),
        target_means=schema.target_means if scaled else (),
        target_scales=schema.target_scales if scaled else (),
        target_head=schema.target_head if scaled else None,
        codings=codings_of(data, {c.column: c.values for c in schema.codings if c.kind == "levels"}),
    )


def _curvature_rows(plan: Plan) -> int | None:
    """How many factors the loss's curvature has for a record, or None where only the model can tell."""
    if plan.config.model.loss == "binary-cross-entropy":
        return 1
    return plan.schema.classes if plan.config.model.loss == "cross-entropy" else None


def _refuse_other_arrays(where: str, actual: Arrays, expected: Arrays) -> None:
    """Refuse arrays of which something was left over, or turned into another type, while they were read."""
    for name in [*expected, *(name for name in actual if name not in expected)]:
        one, other = (_form(arrays[name]) if name in arrays else "nothing" for arrays in (actual, expected))
        if one != other:
            raise _difference(f"{where}: array {name}", one, other)


def _form(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} {array.shape}"


def _difference(where: str, actual: Any, expected: Any) -> FileContentError:
    return FileContentError(
        f"{where}: {_excerpt(actual)}; the plan's own config gives {_excerpt(expected)}: the file was changed, or made by another program: "
        "get it again from whoever made it"
    )


def _excerpt(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:80] + "..."
