"""A hundred random settings for the audit by difference, drawn from tables of what goes together: a number gives one case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import difference_tables as tables
import numpy as np
from difference_tables import Form, Shard, make_shards, write_blank, write_shard

from distqexp.config import Config, DataConfig, config_from_tree

SEED, COUNT = 20_260, 100
Random = np.random.Generator

FORMS: dict[str, tuple[Form, tuple[str, ...], Mapping[str, Any]]] = {
    "logistic": (Form("numbers", "binary"), ("hdf5", "csv"), {"factory": "tabular", "outputs": 1}),
    "softmax": (Form("numbers", "classes"), ("hdf5", "csv"), {"factory": "tabular", "outputs": tables.CLASSES}),
    "perceptron": (Form("numbers", "classes"), ("hdf5", "csv"), {"factory": "tabular", "outputs": 3, "hidden": 3}),
    "line": (Form("numbers", "one"), ("hdf5", "csv"), {"factory": "tabular", "outputs": 1, "bias": False}),
    "regression": (Form("numbers", "one"), ("hdf5", "csv"), {"factory": "tabular", "outputs": 1, "hidden": 2}),
    "two lines": (Form("numbers", "two"), ("hdf5",), {"factory": "tabular", "outputs": 2}),
    "pixels": (Form("images", "classes"), ("idx",), {"factory": "images", "outputs": tables.CLASSES}),
    "convolution": (Form("images", "classes"), ("idx",), {"factory": "images", "outputs": 3, "convolution": True}),
    "tokens": (Form("tokens", "classes"), ("hdf5",), {"factory": "tokens", "width": 3, "outputs": tables.CLASSES}),
}
"""Name: how records look, the formats that hold them, the model."""

SIZES: dict[str, dict[str, int]] = {
    "numbers": {"inputs": tables.FEATURES},
    "images": {"side": tables.SIDE},
    "tokens": {"vocabulary": tables.VOCABULARY},
}
LOSSES = {"binary": "binary-cross-entropy", "classes": "cross-entropy"}

FLAT = ("identity", "gaussian", "rademacher", "sjlt", "srht", "public-pca")
GEOMETRIES = (
    *((subspace, precision) for subspace in FLAT for precision in ("identity", "diagonal", "dense")),
    *3 * (("identity", "kronecker"), ("kronecker", "identity"), ("kronecker", "kronecker")),
    *3 * (("kronecker-pca", "identity"), ("kronecker-pca", "kronecker")),
    *((subspace, precision) for subspace in ("kronecker", "kronecker-pca") for precision in ("diagonal", "dense")),
    *(("kronecker-pca", "kronecker-joint"), ("identity", "kronecker-joint"), ("kronecker", "kronecker-joint")),
)
SCHEDULES = ((1, 1), (1, 1), (2, 1), (2, 1), (3, 1), (2, 2), (4, 2), (3, 3))
"""Rounds and parts."""

MECHANISMS: dict[str, Mapping[str, Any]] = {
    "discrete": {"noise": "discrete"},
    "gaussian": {"noise": "gaussian"},
    "ball": {"noise": "gaussian", "trust_radius": True},
    "pure": {"noise": "gaussian", "trust_radius": True},
    "curvature": {"noise": "gaussian", "trust_radius": True, "curvature": "private"},
    "pure curvature": {"noise": "gaussian", "trust_radius": True, "curvature": "private"},
}
CLIPS = ("clip", "clip_quantile", "clip_natural")
COMMON = ("discrete", "discrete", "gaussian")


@dataclass(frozen=True)
class Case:
    """One setting: a config without paths, and the tables of its shards. name: its axes, for messages and for counting."""

    number: int
    axes: Mapping[str, str]
    tree: Mapping[str, Any]
    form: Form
    file_format: str
    shards: tuple[Shard, ...]
    public: Shard

    @property
    def units(self) -> list[int]:
        """The numbers of the units in any shard."""
        return sorted({int(unit) for shard in self.shards for unit in shard.unit} - {tables.NOBODY})

    @property
    def with_units(self) -> bool:
        """Whether a column names the units: else every record is one."""
        return self.axes["units"] == "column"

    def written(self, folder: Path) -> Config:
        """The config on its files, written into ``folder``."""
        folder.mkdir(parents=True)
        tree = {name: dict(section) for name, section in self.tree.items()}
        exclude = {"exclude": ["patient"]} if self.file_format == "csv" and not self.with_units else {}
        shared = {"columns": {**tree["data"].pop("columns"), **exclude}}
        tree["data"]["private"] = [
            {**self._files(shard, folder / f"shard-{i}"), **shared, "shard": f"site-{i}"}
            for i, shard in enumerate(self.shards)
        ]
        tree["data"]["public"] = {**self._files(self.public, folder / "public"), **shared}
        return config_from_tree(tree)

    def on(self, shards: Sequence[Shard], config: Config, folder: Path) -> tuple[DataConfig, ...]:
        """The private data of ``config`` with these shards in the place of the case's own, written into ``folder``.

        Where only other records are blank, the files stay as they are.
        """
        folder.mkdir(parents=True)
        found = []
        for i, (own, shard, data) in enumerate(zip(self.shards, shards, config.data.private, strict=True)):
            stem = folder / f"shard-{i}"
            same = shard.x is own.x and shard.y is own.y
            written = write_blank(shard, stem) if same else self._files(shard, stem)
            found.append(replace(data, **{"blank": None, **written}))
        return tuple(found)

    def _files(self, shard: Shard, stem: Path) -> dict[str, Any]:
        return write_shard(shard, stem, self.file_format, self.with_units)


@cache
def case(number: int) -> Case:
    """Case ``number``, 0 to COUNT - 1: a function of SEED and the number alone."""
    return _Draw(np.random.default_rng(np.random.SeedSequence(SEED, spawn_key=(number,)))).case(number)


class _Draw:
    """Draws one case: what depends on something comes after it, and is chosen among what goes with it."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def pick(self, options: Sequence[Any], allowed: Callable[[Any], bool] = lambda option: True) -> Any:
        """One of the options that are allowed."""
        left = [option for option in options if allowed(option)]
        return left[int(self.random.integers(len(left)))]

    def uniform(self, low: float, high: float) -> float:
        """A number between, three digits of it."""
        return float(f"{self.random.uniform(low, high):.3g}")

    def power(self, low: float, high: float) -> float:
        """10 to a number between, three digits of it."""
        return float(f"{10.0 ** self.random.uniform(low, high):.3g}")

    def case(self, number: int) -> Case:
        model = self.pick(tuple(FORMS))
        form, formats, architecture = FORMS[model]
        adjacency = self.pick(("zero-out", "add-remove", "replace-one"))
        # A blank is a file of its own; other neighbours are whole files, and a process of its own looks through each HDF5 file.
        file_format = self.pick(formats if adjacency == "zero-out" else formats[-1:])
        images = file_format == "idx"
        units = "row" if images else self.pick(("column", "column", "row"))
        rounds, parts = self.pick(SCHEDULES, lambda s: s[1] == 1 or units == "column" or adjacency != "add-remove")
        mechanism = self.pick(
            (*COMMON, *MECHANISMS), lambda m: adjacency != "add-remove" or "trust_radius" not in MECHANISMS[m]
        )
        subspace, precision = self.pick(GEOMETRIES)
        shards = self.pick((1, 1, 2, 3))
        presence = 1 if parts > 1 else self.pick(range(1, shards + 1))
        micro_batch = self.pick((1, 3, 4, 5, 5, 16))
        rounding = self._rounding(subspace, precision, units, adjacency, mechanism)
        views = images and adjacency != "add-remove" and bool(self.random.integers(2))
        told = mechanism in COMMON and self.random.integers(3) == 0
        # Under add-remove rows move to other slots, where the last bits of a float32 gradient may differ: idealised.
        double = adjacency == "add-remove" or bool(self.random.integers(3) == 0)
        sizes = self._sizes(units, shards, micro_batch)
        tree = {
            "model": self._model(form, architecture, double),
            "data": {"population": f"case {number}", "columns": self._columns(form, file_format)},
            "privacy": {
                "epsilon": self.power(-1, 1),
                "delta": 0.0 if mechanism.startswith("pure") else self.power(-9, -3),
                "units": self.pick((6, 20, 100)),
                "adjacency": adjacency,
                "presence": presence,
            },
            "subspace": self._subspace(subspace),
            "precision": {
                "kind": precision,
                "source": self.pick(("public", "public", "probes")),
                "damping": self.power(-1, 0.5),
                "samples": self.pick((12, 30)),
                "refresh": self.pick((1, 1, 2)),
            },
            "mechanism": self._mechanism(mechanism, rounds, parts, rounding),
            "engine": {"micro_batch": micro_batch, "kind": "serial"},
        }
        if views:
            tree["augment"] = {"views": self.pick((2, 3)), "rotate": self.uniform(5, 40), "shift": self.uniform(0, 1)}
        if told:
            tree["diagnostics"] = {"share": self.power(-2.5, -0.4), "largest_loss": self.power(-1, 1)}
        axes = {
            "model": model, "format": file_format, "adjacency": adjacency, "units": units, "parts": str(parts),
            "rounds": str(rounds), "mechanism": mechanism, "subspace": subspace, "precision": precision,
            "presence": str(presence), "shards": str(shards), "micro_batch": str(micro_batch), "rounding": rounding,
            "views": str(views), "diagnostics": str(told), "double": str(double),
            "momentum": str(tree["mechanism"]["momentum"] > 0),
            "clip": next(name for name in CLIPS if name in tree["mechanism"]),
        }  # fmt: skip
        return Case(
            number=number, axes=axes, tree=tree, form=form, file_format=file_format,
            shards=tuple(make_shards(form, self.random, self._places(len(sizes), shards, presence, units), sizes)),
            public=self._public(form),
        )  # fmt: skip

    def _rounding(self, subspace: str, precision: str, units: str, adjacency: str, mechanism: str) -> str:
        layers = precision in ("kronecker", "identity") and "kronecker" in f"{subspace} {precision}"
        together = layers and units == "row" and adjacency != "add-remove" and "curvature" not in mechanism
        return str(self.pick(("batch", "batch", "unit") if together else ("unit",)))

    def _sizes(self, units: str, shards: int, micro_batch: int) -> list[int]:
        """Records of each unit, 6 to 9 units: one, a few, or more than a micro-batch holds."""
        if units == "row":
            return [1] * int(self.random.integers(6, 10))
        return [self.pick((1, 1, 1, 2, 3, min(micro_batch + 2, 6))) for _ in range(self.random.integers(6, 8))]

    def _places(self, units: int, shards: int, presence: int, by: str) -> list[list[int]]:
        """The units of each shard, every one in ``presence`` of them; where a row is a unit, row i of a shard is its i-th."""
        found: list[list[int]] = [[] for _ in range(shards)]
        for unit in range(units):
            order = self.random.permutation(shards)
            if unit < shards:  # no shard is empty
                order = np.r_[unit, order[order != unit]]
            for place in order[:presence]:
                found[place].append(unit)
        return found

    def _model(self, form: Form, architecture: Mapping[str, Any], double: bool) -> dict[str, Any]:
        args = {**SIZES[form.family], **architecture, "double": double}
        factory = f"difference_models:{args.pop('factory')}"
        pretrain = {"epochs": self.pick((0, 3)), "seed": int(self.random.integers(1000)), "learning_rate": 0.01}
        return {
            "factory": factory,
            "args": args,
            "loss": LOSSES.get(form.targets, "mean-squared-error"),
            "pretrain": pretrain,
        }

    def _columns(self, form: Form, file_format: str) -> dict[str, Any]:
        if file_format == "idx":
            return {}
        if form.family == "tokens":
            return {"features": ["x"], "target": "y", "tokens": True, "mask": "mask"}
        standardise = bool(self.random.integers(2))
        bound = {"winsorise_above": 3.0} if standardise and self.random.integers(4) == 0 else {}
        features = {"features": ["x"]} if file_format == "hdf5" else {}
        return {"target": "y", "standardise": standardise, **features, **bound}

    def _subspace(self, kind: str) -> dict[str, Any]:
        seed = int(self.random.integers(1000))
        if kind in ("kronecker", "kronecker-pca"):
            return {"kind": kind, "k_in": self.pick((1, 2, 3)), "k_out": self.pick((1, 2)), "seed": seed}
        if kind == "identity":
            return {"kind": kind}
        k = self.pick((1, 2, 4))
        return {"kind": kind, "k": k, "seed": seed, "nonzeros": min(k, 2)}

    def _mechanism(self, name: str, rounds: int, parts: int, rounding: str) -> dict[str, Any]:
        found: dict[str, Any] = {"rounds": rounds, "parts": parts, "rounding": rounding, **MECHANISMS[name]}
        if "trust_radius" in found:
            found["trust_radius"] = self.power(-1, 0.7)
        clip = self.pick(("clip", *CLIPS))
        found[clip] = {
            "clip": self.power(-4, -1),
            "clip_quantile": self.uniform(0.1, 0.6),
            "clip_natural": self.power(-2, 0),
        }[clip]
        if clip == "clip" and self.random.integers(3) == 0:
            found["grid"] = int(np.floor(np.log2(found["clip"]))) - 23
        found["momentum"] = self.pick((0.0, 0.0, 0.5))
        found["step"] = self.power(-1, 0.3)
        if rounds > 1 and self.random.integers(3) == 0:
            found["final_step"] = self.power(-1, 0.3)
        found["warmup"] = self.pick((0, 0, rounds - 1))
        return found

    def _public(self, form: Form) -> Shard:
        x, y = form.plain(self.random, 24)
        return Shard(x, y, 1000 + np.arange(24) // 2, np.zeros(24, dtype=np.bool_))
