"""The settings that are tried: values of some keys, in a grid, and the config that each one makes."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from distqexp.config import Config, TuneConfig
from distqexp.config.checks import check
from distqexp.config.tuning import LISTS
from distqexp.errors import UsageError

CLIPS = ("clip", "clip_quantile", "clip_natural")
DRAWS = 100_000
"""At most so many settings of a grid are looked at for allowed ones."""

Values = Mapping[str, Any]
Setting = tuple[int, ...]


@dataclass(frozen=True)
class Axis:
    """One thing that varies. keys: the names in [tune]. values: for each step of the axis, a value (or None) of each key."""

    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Space:
    """The grid over the axes, around a config. A setting is a place on each axis."""

    config: Config
    axes: tuple[Axis, ...]

    @property
    def size(self) -> int:
        """Number of places in the grid, allowed or not."""
        size = 1
        for axis in self.axes:
            size *= len(axis.values)
        return size

    def values(self, setting: Setting) -> dict[str, Any]:
        """Every tunable key's value in a setting, those of the config where no axis says otherwise."""
        found = values_of(self.config)
        for axis, place in zip(self.axes, setting, strict=True):
            found |= dict(zip(axis.keys, axis.values[place], strict=True))
        return found

    def config_of(self, setting: Setting) -> Config:
        """The config with a setting's values, checked. Raises UsageError where they don't go together."""
        config = with_values(self.config, self.values(setting))
        most = (config.tune or TuneConfig()).max_passes
        if most is not None and config.mechanism.passes > most:
            raise UsageError(f"tune.max_passes: {config.mechanism.passes} rounds a unit; expected at most {most}")
        return config

    def allowed(self, setting: Setting) -> bool:
        """Whether the setting makes a config that may be run."""
        try:
            self.config_of(setting)
        except UsageError:
            return False
        return True

    def order(self, seed: int) -> Iterator[Setting]:
        """The allowed settings in a random order that ``seed`` fixes, the config's own first where the grid has it."""
        own = self.own()
        if own is not None and self.allowed(own):
            yield own
        draws = random.Random(f"tune/{seed}").sample(range(self.size), min(self.size, DRAWS))
        for number in draws:
            setting = self.numbered(number)
            if setting != own and self.allowed(setting):
                yield setting

    def first(self, count: int, seed: int) -> list[Setting]:
        """The first ``count`` of the order. Raises UsageError when there are none."""
        found = list(islice(self.order(seed), count))
        if not found:
            self.config_of(self.numbered(0))  # says why
            raise UsageError("tune: no combination of its lists is allowed; correct them")
        return found

    def neighbours(self, setting: Setting) -> list[Setting]:
        """The allowed settings one step away on one axis."""
        found = []
        for at, axis in enumerate(self.axes):
            for place in (setting[at] - 1, setting[at] + 1):
                moved = (*setting[:at], place, *setting[at + 1 :])
                if 0 <= place < len(axis.values) and self.allowed(moved):
                    found.append(moved)
        return found

    def own(self) -> Setting | None:
        """The setting that is the config's own; None where a list leaves it out."""
        values, places = values_of(self.config), []
        for axis in self.axes:
            mine = tuple(values[name] for name in axis.keys)
            if mine not in axis.values:
                return None
            places.append(axis.values.index(mine))
        return tuple(places)

    def numbered(self, number: int) -> Setting:
        """The setting of a number below ``size``."""
        places = []
        for axis in reversed(self.axes):
            number, place = divmod(number, len(axis.values))
            places.append(place)
        return tuple(reversed(places))


def make_space(config: Config) -> Space:
    """The grid of the lists in [tune]; where it has none, a small one around the config's own values."""
    tune = config.tune or TuneConfig()
    lists = {name: list(getattr(tune, name)) for name in LISTS if getattr(tune, name) is not None}
    if not lists:
        lists = _around(config)
    axes = [Axis((name,), tuple((value,) for value in _ordered(lists[name]))) for name in lists if name not in CLIPS]
    clips = [
        tuple(value if name == kind else None for name in CLIPS)
        for kind in CLIPS
        for value in _ordered(lists.get(kind, []))
    ]
    if clips:
        axes.append(Axis(CLIPS, tuple(clips)))
    return Space(config, tuple(axes))


def values_of(config: Config) -> dict[str, Any]:
    """The config's own value of every tunable key."""
    return {name: getattr(getattr(config, section), name) for name, (section, _) in LISTS.items()}


def with_values(config: Config, values: Values) -> Config:
    """The config with these values of tunable keys, checked. Raises UsageError."""
    for section in dict.fromkeys(section for section, _ in LISTS.values()):
        own = {name: value for name, value in values.items() if LISTS[name][0] == section}
        changed: Any = dataclasses.replace(getattr(config, section), **own)
        config = dataclasses.replace(config, **{section: changed})
    check(config)
    return config


def _around(config: Config) -> dict[str, list[Any]]:
    mechanism, subspace = config.mechanism, config.subspace
    found: dict[str, list[Any]] = {
        "rounds": [max(1, mechanism.passes // 2) * mechanism.parts, mechanism.rounds, 2 * mechanism.rounds],
        "step": [mechanism.step / 2, mechanism.step, mechanism.step * 2],
    }
    if config.precision.kind != "identity" and config.precision.damping > 0:
        damping = config.precision.damping
        found["damping"] = [damping / 3, damping, damping * 3]
    if mechanism.clip_quantile is not None:
        found["clip_quantile"] = [0.5, 0.7, 0.9, mechanism.clip_quantile]
    for name in ("clip", "clip_natural"):
        value = getattr(mechanism, name)
        if value is not None:
            found[name] = [value / 2, value, value * 2]
    for name in ("k", "k_in", "k_out"):
        size = getattr(subspace, name)
        if size is not None:
            found[name] = [max(1, size // 2), size]
    return found


def _ordered(values: list[Any]) -> list[Any]:
    """Each value once, ascending, so that neighbours are near."""
    return sorted(set(values))
