"""What the plan chooses where a config leaves subspace or precision open. From the config and the model's shapes alone: public."""

from __future__ import annotations

import dataclasses

from distqexp.artefacts.derived import derived_calibration, noise_budget, noise_ratio
from distqexp.config import Config
from distqexp.engines.collectives import require
from distqexp.errors import UsageError
from distqexp.geometry.packing import moments_size
from distqexp.geometry.precisions import UNITS_A_DIRECTION
from distqexp.geometry.precisions.damping import Reference
from distqexp.gradients.layers import block_layout
from distqexp.gradients.setup import blocks_of, dimension_of
from distqexp.kinds import AUTO, Size
from distqexp.problem.network import Network
from distqexp.problem.schema import Schema

LARGEST_DENSE = 2000
"""A dense precision of so many coordinates is factorised in well under a second."""

LARGEST_FLAT = 4000
"""The same where the config chose a flat subspace of this size itself."""

WIDE_DIRECTIONS = 32
"""Of a model with a layer too wide for its second moments so many directions are taken, the leading ones of public gradients."""

SEVERAL_BLOCKS = 3
"""Of so many blocks, which move the same outputs, the directions that they share are whitened as well."""

LARGEST_JOINT = 1 << 26
"""The gradients from which those directions are found may take so many numbers, 512 MiB, twice while they are joined."""

QUIET = 0.4
"""Where noise is at most so long, relative to the longest sum, outliers of a curvature don't count in what is added to it."""

SIDES = (64, 48, 32, 24, 16, 12, 8)
"""The dimensions of a layer's inputs and outputs that are tried, the largest first."""


def chosen(config: Config, network: Network, schema: Schema) -> Config:
    """Return the config with whatever it leaves open filled in: subspace, precision, damping, and the clip that the forecast allows.

    A dense precision on all parameters knows most, where it can be had. Larger models work layer by layer, in as many leading
    directions of each layer as the noise leaves useful: with k coordinates the forecast cost of the noise is proportional to k.

    Args:
        config: The config.
        network: The model, built from it.
        schema: The schema of its records.

    Raises:
        UsageError: The budget allows no noise at all.
    """
    config = _with_kinds(config, network, schema)
    if not config.mechanism.clips_by_itself:
        return _with_reference(config, "mean")
    k = dimension_of(config, network)
    calibration = derived_calibration(config, k)
    config = _with_reference(config, "winsorized" if noise_ratio(config, calibration, k) <= QUIET else "mean")
    config = with_clip(config, min(1.0, noise_budget(config, calibration, k)))
    if config.mechanism.discount is None:
        config = dataclasses.replace(config, mechanism=dataclasses.replace(config.mechanism, discount=True))
    return config


def _with_kinds(config: Config, network: Network, schema: Schema) -> Config:
    if not config.automatic:
        return config
    if config.precision.kind != AUTO:
        return _with_subspace(config, kind="identity")
    if config.data.public is None and schema.input_shape is None:  # then there are no probes either
        subspace = "identity" if config.subspace.kind == AUTO else config.subspace.kind
        named = dataclasses.replace(config, subspace=dataclasses.replace(config.subspace, kind=subspace))
        return _with_precision(named, "identity")
    if config.data.public is None:
        config = dataclasses.replace(config, precision=dataclasses.replace(config.precision, source="probes"))
    if config.subspace.kind != AUTO:
        return _with_precision(config, _precision_on(config, network))
    if network.d <= LARGEST_DENSE and not config.mechanism.head:
        return _with_precision(_with_subspace(config, kind="identity"), "dense")
    if _is_wide(config, network):
        config = _with_precision(_with_subspace(config, kind="public-pca"), "dense")
        return with_directions(config, min(WIDE_DIRECTIONS, network.d))
    layered = _with_precision(config, "kronecker")
    tries = [_with_subspace(layered, kind="kronecker-pca", k_in=side, k_out=side) for side in SIDES]
    config = next((each for each in tries if _affordable(each, network)), tries[-1])
    return _with_precision(config, _by_blocks(config, network))


def _is_wide(config: Config, network: Network) -> bool:
    """Return whether a layer is too wide for a second moment of its inputs or outputs."""
    layered = _with_precision(
        _with_subspace(config, kind="kronecker-pca", k_in=SIDES[-1], k_out=SIDES[-1]), "kronecker"
    )
    try:
        moments_size(require(blocks_of(layered, network)))
    except UsageError:
        return True
    return False


def adopted(config: Config, plan: Config) -> Config:
    """Return the config with whatever it leaves open taken from a ``plan``'s config, which leaves nothing open."""
    if config.precision.kind == AUTO:
        precision = dataclasses.replace(config.precision, kind=plan.precision.kind, source=plan.precision.source)
        config = dataclasses.replace(config, precision=precision)
    if config.subspace.kind == AUTO:
        config = dataclasses.replace(config, subspace=plan.subspace)
    config = _with_reference(config, plan.precision.reference)
    if config.mechanism.clips_by_itself:
        discount = plan.mechanism.discount if config.mechanism.discount is None else config.mechanism.discount
        config = with_clip(config, plan.mechanism.clip_natural)
        config = dataclasses.replace(config, mechanism=dataclasses.replace(config.mechanism, discount=discount))
    return config


def with_clip(config: Config, clip_natural: float | None) -> Config:
    """Return the config with this ``mechanism.clip_natural``."""
    return dataclasses.replace(config, mechanism=dataclasses.replace(config.mechanism, clip_natural=clip_natural))


def with_directions(config: Config, k: int) -> Config:
    """Return the config with this ``subspace.k``."""
    return dataclasses.replace(config, subspace=dataclasses.replace(config.subspace, k=k))


def _precision_on(config: Config, network: Network) -> str:
    """Return the kind of precision for a subspace that the config chose itself."""
    if config.subspace.traits.size is Size.SIDES or config.mechanism.head:
        return "kronecker"
    if config.subspace.traits.size is Size.FLAT:
        return "dense" if dimension_of(config, network) <= LARGEST_FLAT else "diagonal"
    return "dense" if network.d <= LARGEST_DENSE else "kronecker"


def _by_blocks(config: Config, network: Network) -> str:
    """Return the kind of precision that works layer by layer: of several layers it knows what they share, where memory allows.

    It learns that from public records alone: what layers share on probes says little of real records (docs/whitening.md).
    """
    precision = config.precision
    if precision.source != "public" or len(block_layout(network)) < SEVERAL_BLOCKS:
        return "kronecker"
    units = min(precision.samples, UNITS_A_DIRECTION * precision.directions)
    return "kronecker-joint" if units * dimension_of(config, network) <= LARGEST_JOINT else "kronecker"


def _affordable(config: Config, network: Network) -> bool:
    """Return whether the noise leaves a whole clip in so many coordinates."""
    k = dimension_of(config, network)
    return noise_budget(config, derived_calibration(config, k), k) >= 1.0


def _with_precision(config: Config, kind: str) -> Config:
    return dataclasses.replace(config, precision=dataclasses.replace(config.precision, kind=kind))


def _with_reference(config: Config, reference: Reference | None) -> Config:
    """Return the config with this ``precision.reference`` where it names none."""
    if config.precision.reference is not None:
        return config
    return dataclasses.replace(config, precision=dataclasses.replace(config.precision, reference=reference))


def _with_subspace(config: Config, kind: str, k_in: int | None = None, k_out: int | None = None) -> Config:
    return dataclasses.replace(config, subspace=dataclasses.replace(config.subspace, kind=kind, k_in=k_in, k_out=k_out))
