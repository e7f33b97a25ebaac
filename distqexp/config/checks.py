"""The rules that relate several sections of a config. The rules of a single key are beside the key."""

from __future__ import annotations

from collections.abc import Iterator

from distqexp.config.rules import Need, field_needs, require
from distqexp.config.sections import Config
from distqexp.kinds import AUTO, Adjacency, Needs, Noise, Size


def check(config: Config) -> None:
    """Raise UsageError, naming the key, unless every value of the config is allowed."""
    require(_all_needs(config))


def _all_needs(config: Config) -> Iterator[Need]:
    yield from config.model.needs(config.data.public is not None)
    yield from config.data.needs()
    yield from field_needs("privacy", config.privacy)
    yield from _privacy(config)
    yield from config.subspace.needs()
    yield from field_needs("precision", config.precision)
    yield from _geometry(config)
    yield from field_needs("augment", config.augment)
    yield from _views(config)
    yield from config.mechanism.needs()
    yield from _mechanism(config)
    if config.mechanism.tolerated_sites:
        yield from _noise_in_shares(config)
    yield from field_needs("diagnostics", config.diagnostics)
    yield from _diagnostics(config)
    if config.tune is not None:
        yield from config.tune.needs()
    yield from field_needs("engine", config.engine)


def _has_curvature_source(config: Config) -> bool:
    """Whether there are public records or probes from which a public curvature can be taken."""
    return config.data.public is not None or config.precision.source == "probes"


def _privacy(config: Config) -> Iterator[Need]:
    privacy, mechanism = config.privacy, config.mechanism
    yield Need(
        privacy.delta > 0 or mechanism.trust_radius is not None,
        "privacy.delta", 0, "above 0, or mechanism.trust_radius: pure differential privacy needs a finite one",
    )  # fmt: skip
    yield Need(
        privacy.presence == 1 or mechanism.parts == 1,
        "mechanism.parts", mechanism.parts, "1 with privacy.presence above 1: a unit of two shards may be in two parts",
    )  # fmt: skip


def _geometry(config: Config) -> Iterator[Need]:
    subspace, precision, has_source = config.subspace, config.precision, _has_curvature_source(config)
    needs = subspace.traits.needs
    yield Need(
        subspace.traits.size is not Size.FLAT or not precision.traits.by_blocks,
        "precision.kind", precision.kind, f"identity, diagonal or dense for subspace.kind = {subspace.kind}: "
        "kronecker goes with identity, kronecker and kronecker-pca",
    )  # fmt: skip
    yield Need(
        needs is not Needs.MOMENTS or has_source,
        "subspace.kind", subspace.kind, "data.public for the second moments, or kind = kronecker, or precision.source = probes",
    )  # fmt: skip
    yield Need(
        needs is not Needs.GRADIENTS or has_source,
        "subspace.kind", subspace.kind, "data.public for the gradients, or kind = gaussian, or precision.source = probes",
    )  # fmt: skip
    yield Need(
        needs is not Needs.GRADIENTS or subspace.k is None or subspace.k <= precision.samples,
        "subspace.k", subspace.k, f"at most precision.samples = {precision.samples}: {subspace.kind} has a direction a gradient at most",
    )  # fmt: skip
    yield Need(
        precision.rotate is None or (precision.source == "public" and config.data.public is not None),
        "precision.rotate", precision.rotate, "data.public with images, and precision.source = public",
    )  # fmt: skip
    yield Need(
        precision.traits.needs is Needs.NOTHING or has_source,
        "precision.kind", precision.kind, "data.public for the curvature, source = probes, or kind = identity",
    )  # fmt: skip


def _views(config: Config) -> Iterator[Need]:
    augment = config.augment
    yield Need(
        augment.views == 1 or augment.active,
        "augment.views", augment.views, "1, or augment.rotate or augment.shift above 0: the views would be the same",
    )  # fmt: skip
    yield Need(
        not augment.active or config.privacy.adjacency.counts_public,
        "augment", "views", "none under add-remove: they are drawn by the row of the file, which moves when a unit comes or goes",
    )  # fmt: skip
    yield Need(
        not augment.active or all(data.images for data in config.data.private),
        "augment", "views", "none but of images: data.private.format = digits or idx, or arrays with columns.images = true",
    )  # fmt: skip


def _mechanism(config: Config) -> Iterator[Need]:
    mechanism, counts_public = config.mechanism, config.privacy.adjacency.counts_public
    yield Need(1 <= mechanism.parts <= config.privacy.units, "mechanism.parts", mechanism.parts, "1 to privacy.units")
    yield Need(
        mechanism.parts == 1 or counts_public or all(data.unit for data in config.data.private),
        "mechanism.parts", mechanism.parts, "1, or data.private.unit: under add-remove a unit's part is a hash of its id",
    )  # fmt: skip
    yield Need(
        not mechanism.sampled or config.privacy.adjacency != Adjacency.REPLACE_ONE,
        "mechanism.sampling", mechanism.sampling, "1 under replace-one, whose worst pair of samples is another: use zero-out or add-remove",
    )  # fmt: skip
    yield Need(
        not config.private_curvature or ":" not in config.model.loss,
        "model.loss", config.model.loss, 'a built-in one with mechanism.curvature = "private": the Hessian of your own is not known',
    )  # fmt: skip
    yield Need(
        mechanism.trust_radius is None or counts_public,
        "mechanism.trust_radius", mechanism.trust_radius, "none under add-remove, where sums wrap modulo 2^64 rather than tell a "
        "count: a truncated draw can't undo that; use zero-out or replace-one",
    )  # fmt: skip
    yield Need(
        mechanism.rounding != "batch" or config.batches_can_be_rounded,
        "mechanism.rounding", "batch", "unit, or: precision.kind or subspace.kind = kronecker, no data.private.unit, no "
        "mechanism.sampling, and an adjacency other than add-remove",
    )  # fmt: skip
    yield Need(
        not mechanism.head or config.precision.traits.by_blocks or config.precision.kind == AUTO,
        "mechanism.head", list(mechanism.head), "none, or precision.kind = kronecker: in others the parameters have no blocks of their own",
    )  # fmt: skip
    yield Need(
        mechanism.clip_quantile is None or _has_curvature_source(config),
        "mechanism.clip_quantile", mechanism.clip_quantile, "precision.source = probes, data.public, or mechanism.clip",
    )  # fmt: skip


def _noise_in_shares(config: Config) -> Iterator[Need]:
    mechanism, sites = config.mechanism, len(config.shards)
    yield Need(
        mechanism.tolerated_sites < sites,
        "mechanism.tolerated_sites", mechanism.tolerated_sites, f"fewer than the {sites} shard(s) of data.private, each a site: the "
        "others' shares are the whole noise",
    )  # fmt: skip
    yield Need(
        mechanism.trust_radius is None,
        "mechanism.trust_radius", mechanism.trust_radius, "none with mechanism.tolerated_sites: a truncated draw is no sum of shares",
    )  # fmt: skip
    yield Need(
        mechanism.noise == Noise.DISCRETE,
        "mechanism.noise", str(mechanism.noise), "discrete with mechanism.tolerated_sites: the shares are whole numbers",
    )  # fmt: skip
    yield Need(
        mechanism.parts == 1,
        "mechanism.parts", mechanism.parts, "1 with mechanism.tolerated_sites: a round is for every unit of every site",
    )  # fmt: skip


def _diagnostics(config: Config) -> Iterator[Need]:
    share = config.diagnostics.share
    yield Need(
        share == 0 or config.mechanism.trust_radius is None,
        "diagnostics.share", share, "0 with mechanism.trust_radius: a truncated draw has no noise that counts could share",
    )  # fmt: skip
