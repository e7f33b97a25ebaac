"""What the values of a config must be, alone and together."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

from distqexp.config.sections import Config, DataConfig
from distqexp.config.tuning import check_tune
from distqexp.errors import UsageError
from distqexp.kinds import PRECISIONS, SUBSPACES, Needs, Size


def check(config: Config) -> None:
    """Raise UsageError, naming the key, unless every value is allowed and none is of a later version."""

    def need(good: bool, where: str, value: object, expected: str) -> None:
        if not good:
            raise UsageError(f"config key {where}: found {value!r}; expected {expected}")

    def positive(where: str, value: float | None) -> None:
        need(value is None or (math.isfinite(value) and value > 0), where, value, "a finite number above 0")

    def seed(where: str, value: int) -> None:
        need(0 <= value < 2**63, where, value, "0 to 2^63 - 1")

    model, privacy, mechanism = config.model, config.privacy, config.mechanism
    need(model.factory.count(":") == 1, "model.factory", model.factory, '"package.module:function"')
    need(not (model.weights and model.pretrain), "model.weights", model.weights, "either weights or pretrain, not both")
    if model.pretrain is not None:
        pretrain = model.pretrain
        need(config.data.public is not None, "model.pretrain", "no data.public", "public data to pretrain on")
        need(pretrain.epochs >= 0, "model.pretrain.epochs", pretrain.epochs, "0 or more")
        need(pretrain.batch >= 1, "model.pretrain.batch", pretrain.batch, "1 or more")
        need(
            math.isfinite(pretrain.weight_decay) and pretrain.weight_decay >= 0,
            "model.pretrain.weight_decay",
            pretrain.weight_decay,
            "0 or more",
        )
        seed("model.pretrain.seed", pretrain.seed)
        need(
            pretrain.optimiser in ("adam", "sgd", "lbfgs"),
            "model.pretrain.optimiser",
            pretrain.optimiser,
            "adam, sgd or lbfgs",
        )
        positive("model.pretrain.learning_rate", pretrain.learning_rate)
        need(pretrain.learning_rate <= 1e30, "model.pretrain.learning_rate", pretrain.learning_rate, "at most 1e30")
    need(len(config.data.private) > 0, "data.private", "no shard", "at least one table")
    names = config.shards
    need(len(set(names)) == len(names), "data.private.shard", list(names), "a different name for every shard")
    for name in names:
        need(
            name.replace("-", "").replace("_", "").isalnum(),
            "data.private.shard",
            name,
            "letters, digits, - and _ only",
        )
    for where, data in (("data.public", config.data.public), ("data.eval", config.data.eval)):
        if data is not None:
            _check_data(where, data, need)
    for data in config.data.private:
        _check_data("data.private", data, need)
        need(
            data.unit is None or (data.unit != "record" and bool(data.unit.strip())),
            "data.private.unit", data.unit, "another name of a column: record is the ledger's word for records that are units of their "
            "own; rename the column, or leave the key out",
        )  # fmt: skip
    need(
        len({data.unit is None for data in config.data.private}) == 1,
        "data.private.unit", [data.unit for data in config.data.private], "a column in every shard or in none: a run protects one kind "
        "of unit",
    )  # fmt: skip
    population = config.data.population
    need(bool(population.strip()), "data.population", population, "a name")
    normal = unicodedata.normalize("NFC", population).strip()
    need(population == normal, "data.population", population, f"{normal!r}: no blanks around it, Unicode form NFC")
    shape = config.data.record_shape
    need(shape is None or (bool(shape) and min(shape) >= 1), "data.record_shape", shape, "sizes of 1 or more")

    positive("privacy.epsilon", privacy.epsilon)
    need(privacy.epsilon <= 1e4, "privacy.epsilon", privacy.epsilon, "at most 10000")
    need(0 <= privacy.delta < 1, "privacy.delta", privacy.delta, "a number from 0 to below 1")
    need(privacy.delta == 0 or privacy.delta >= 1e-300, "privacy.delta", privacy.delta, "1e-300 or more, or 0")
    need(
        privacy.delta > 0 or config.mechanism.trust_radius is not None,
        "privacy.delta", 0, "above 0, or mechanism.trust_radius: pure differential privacy needs a finite one",
    )  # fmt: skip
    need(1 <= privacy.units <= 2**53, "privacy.units", privacy.units, "a public number of units, 1 to 2^53")

    need(1 <= privacy.presence <= 1024, "privacy.presence", privacy.presence, "1 to 1024 shards")
    need(
        privacy.presence == 1 or config.mechanism.parts == 1,
        "mechanism.parts", config.mechanism.parts, "1 with privacy.presence above 1: a unit of two shards may be in two parts",
    )  # fmt: skip

    subspace = config.subspace
    need(subspace.kind in SUBSPACES, "subspace.kind", subspace.kind, f"one of {', '.join(SUBSPACES)}")
    need(
        config.precision.kind in PRECISIONS, "precision.kind", config.precision.kind, f"one of {', '.join(PRECISIONS)}"
    )
    need(subspace.k is None or subspace.k >= 1, "subspace.k", subspace.k, "1 or more")
    sides = (("subspace.k_in", subspace.k_in), ("subspace.k_out", subspace.k_out))
    if subspace.traits.size is Size.SIDES:
        need(subspace.k is None, "subspace.k", subspace.k, f"no k for {subspace.kind}: set k_in and k_out")
        for where, value in sides:
            need(value is not None and value >= 1, where, value, f"1 or more, for {subspace.kind}")
    else:
        for where, value in sides:
            need(value is None, where, value, f"none for {subspace.kind}: set subspace.k, or a kronecker kind")
        flat = subspace.traits.size is Size.FLAT
        need(not flat or subspace.k is not None, "subspace.k", None, f"a dimension for {subspace.kind}")
        need(
            not flat or not config.precision.traits.by_blocks,
            "precision.kind", config.precision.kind, f"identity, diagonal or dense for subspace.kind = {subspace.kind}: "
            "kronecker goes with identity, kronecker and kronecker-pca",
        )  # fmt: skip
    precision = config.precision
    sourced = config.data.public is not None or precision.source == "probes"
    needs = subspace.traits.needs
    need(
        needs is not Needs.MOMENTS or sourced,
        "subspace.kind", subspace.kind, "data.public for the second moments, or kind = kronecker, or precision.source = probes",
    )  # fmt: skip
    need(
        needs is not Needs.GRADIENTS or sourced,
        "subspace.kind", subspace.kind, "data.public for the gradients, or kind = gaussian, or precision.source = probes",
    )  # fmt: skip
    need(
        needs is not Needs.GRADIENTS or subspace.k is None or subspace.k <= precision.samples,
        "subspace.k", subspace.k, f"at most precision.samples = {precision.samples}: {subspace.kind} has a direction a gradient at most",
    )  # fmt: skip
    seed("subspace.seed", subspace.seed)
    need(subspace.nonzeros >= 1, "subspace.nonzeros", subspace.nonzeros, "1 or more")

    need(
        math.isfinite(precision.damping) and precision.damping >= 0, "precision.damping", precision.damping, "0 or more"
    )
    need(precision.samples >= 1, "precision.samples", precision.samples, "1 or more")
    turn = precision.rotate
    need(
        turn is None or (all(map(math.isfinite, turn)) and turn[0] <= turn[1]),
        "precision.rotate", turn, "two angles in degrees, the smaller one first",
    )  # fmt: skip
    need(
        turn is None or (precision.source == "public" and config.data.public is not None),
        "precision.rotate", turn, "data.public with images, and precision.source = public",
    )  # fmt: skip
    need(precision.refresh >= 1, "precision.refresh", precision.refresh, "1 or more")
    need(
        precision.traits.needs is Needs.NOTHING or sourced,
        "precision.kind", precision.kind, "data.public for the curvature, source = probes, or kind = identity",
    )  # fmt: skip

    augment = config.augment
    need(1 <= augment.views <= 1024, "augment.views", augment.views, "1 to 1024")
    need(0 <= augment.rotate <= 180, "augment.rotate", augment.rotate, "0 to 180 degrees")
    need(math.isfinite(augment.shift) and augment.shift >= 0, "augment.shift", augment.shift, "0 or more pixels")
    need(
        augment.views == 1 or augment.active,
        "augment.views", augment.views, "1, or augment.rotate or augment.shift above 0: the views would be the same",
    )  # fmt: skip
    need(
        not augment.active or privacy.adjacency != "add-remove",
        "augment", "views", "none under add-remove: they are drawn by the row of the file, which moves when a unit comes or goes",
    )  # fmt: skip
    need(
        not augment.active or all(data.format in ("digits", "idx") for data in config.data.private),
        "augment", "views", "none but of images: data.private.format = digits or idx",
    )  # fmt: skip

    need(mechanism.rounds >= 1, "mechanism.rounds", mechanism.rounds, "1 or more")
    need(1 <= mechanism.parts <= privacy.units, "mechanism.parts", mechanism.parts, "1 to privacy.units")
    need(
        mechanism.rounds % mechanism.parts == 0,
        "mechanism.rounds", mechanism.rounds, f"a multiple of mechanism.parts = {mechanism.parts}, so that every "
        "unit takes part in equally many rounds",
    )  # fmt: skip
    need(
        mechanism.parts == 1 or privacy.adjacency != "add-remove" or all(data.unit for data in config.data.private),
        "mechanism.parts", mechanism.parts, "1, or data.private.unit: under add-remove a unit's part is a hash of its id",
    )  # fmt: skip
    positive("mechanism.trust_radius", mechanism.trust_radius)
    need(
        mechanism.trust_radius is None or mechanism.noise == "gaussian",
        "mechanism.noise", mechanism.noise, "gaussian with mechanism.trust_radius: a truncated draw is float64",
    )  # fmt: skip
    need(
        mechanism.trust_radius is None or privacy.adjacency != "add-remove",
        "mechanism.trust_radius", mechanism.trust_radius, "none under add-remove, where sums wrap modulo 2^64 rather than tell a "
        "count: a truncated draw can't undo that; use zero-out or replace-one",
    )  # fmt: skip
    need(
        not config.private_curvature or mechanism.trust_radius is not None,
        "mechanism.trust_radius", None, 'a radius with mechanism.curvature = "private": without one a utility has no Lipschitz bound',
    )  # fmt: skip
    positive("mechanism.step", mechanism.step)
    positive("mechanism.final_step", mechanism.final_step)
    need(
        mechanism.final_step is None or mechanism.rounds > 1,
        "mechanism.final_step", mechanism.final_step, "mechanism.rounds of 2 or more, or mechanism.step alone",
    )  # fmt: skip
    need(
        0 <= mechanism.warmup < mechanism.rounds,
        "mechanism.warmup",
        mechanism.warmup,
        "0 or more, below mechanism.rounds",
    )
    positive("mechanism.clip", mechanism.clip)
    positive("mechanism.clip_natural", mechanism.clip_natural)
    given = [mechanism.clip, mechanism.clip_quantile, mechanism.clip_natural]
    need(
        sum(clip is not None for clip in given) == 1,
        "mechanism.clip", mechanism.clip, "exactly one of mechanism.clip, clip_quantile and clip_natural",
    )  # fmt: skip
    need(0 <= mechanism.momentum < 1, "mechanism.momentum", mechanism.momentum, "0 or more, below 1")
    need(
        mechanism.rounding != "batch" or config.batches_can_be_rounded,
        "mechanism.rounding", "batch", "unit, or: precision.kind or subspace.kind = kronecker, no data.private.unit, and an "
        "adjacency other than add-remove",
    )  # fmt: skip
    need(mechanism.grid is None or -500 <= mechanism.grid <= 450, "mechanism.grid", mechanism.grid, "-500 to 450")
    if mechanism.clip_quantile is not None:
        need(0 < mechanism.clip_quantile <= 1, "mechanism.clip_quantile", mechanism.clip_quantile, "above 0, at most 1")
        need(
            sourced,
            "mechanism.clip_quantile",
            mechanism.clip_quantile,
            "precision.source = probes, data.public, or mechanism.clip",
        )

    share = config.diagnostics.share
    need(share == 0 or 0.001 <= share <= 0.5, "diagnostics.share", share, "0, or 0.001 to 0.5")
    need(
        share == 0 or mechanism.trust_radius is None,
        "diagnostics.share", share, "0 with mechanism.trust_radius: a truncated draw has no noise that counts could share",
    )  # fmt: skip
    positive("diagnostics.largest_loss", config.diagnostics.largest_loss)

    if config.tune is not None:
        check_tune(config.tune, need, _check_data)

    engine = config.engine
    need(1 <= engine.micro_batch < 2**31, "engine.micro_batch", engine.micro_batch, "1 or more, below 2^31")
    need(1 <= engine.threads <= 1024, "engine.threads", engine.threads, "1 to 1024")
    need(engine.device in ("cpu", "cuda"), "engine.device", engine.device, "cpu or cuda")
    need(engine.workers is None or engine.workers >= 1, "engine.workers", engine.workers, "1 or more")


def _check_data(where: str, data: DataConfig, need: Any) -> None:
    for first, last in data.rows or ():
        need(0 <= first < last, f"{where}.rows", [first, last], "0 <= first < last")
    need(math.isfinite(data.rotate), f"{where}.rotate", data.rotate, "degrees")
    if data.format in ("csv", "parquet", "hdf5"):
        need(data.columns.target is not None, f"{where}.columns.target", None, "the column of the label")
    columns = data.columns
    need(not columns.tokens or data.format == "hdf5", f"{where}.columns.tokens", True, "format = hdf5")
    need(columns.mask is None or columns.tokens, f"{where}.columns.mask", columns.mask, "columns.tokens = true with it")
    need(
        not columns.tokens or not (columns.constant or columns.missing_flag_above is not None),
        f"{where}.columns.tokens", True, "neither constant nor missing_flag_above with it",
    )  # fmt: skip
    share = columns.missing_flag_above
    need(
        share is None or 0 <= share < 1, f"{where}.columns.missing_flag_above", share, "a share, 0 or more and below 1"
    )
    bound = columns.winsorise_above
    need(
        bound is None or (bound > 0 and math.isfinite(bound) and columns.standardise),
        f"{where}.columns.winsorise_above", bound, "a finite number above 0, and standardise = true",
    )  # fmt: skip
    need(bound is None or not columns.tokens, f"{where}.columns.tokens", True, "no winsorise_above with it")
