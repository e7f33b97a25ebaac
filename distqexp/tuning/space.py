"""The settings that are tried: a grid of values for some keys, and the config that each setting makes."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from distqexp.config import Config, TuneConfig
from distqexp.config.checks import check
from distqexp.config.running import LISTS
from distqexp.errors import UsageError

CLIPS = ("clip", "clip_quantile", "clip_natural")
DRAWS = 100_000
"""The largest number of settings of a grid that are looked through for allowed ones."""

Values = Mapping[str, Any]
Setting = tuple[int, ...]


@dataclass(frozen=True)
class Axis:
    """One thing that varies.

    Attributes:
        keys: The names of its keys in [tune].
        values: For each step of the axis, the value of each key, or None.
    """

    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Space:
    """The grid over the axes, around a config. A setting is a place on each axis.

    Attributes:
        config: The config whose keys the axes vary.
        axes: What varies.
    """

    config: Config
    axes: tuple[Axis, ...]

    @property
    def size(self) -> int:
        """The number of settings in the grid, allowed or not."""
        size = 1
        for axis in self.axes:
            size *= len(axis.values)
        return size

    def values(self, setting: Setting) -> dict[str, Any]:
        """Return the value of every tunable key in a setting: the config's own where no axis varies the key."""
        values = values_of(self.config)
        for axis, place in zip(self.axes, setting, strict=True):
            values |= dict(zip(axis.keys, axis.values[place], strict=True))
        return values

    def config_of(self, setting: Setting) -> Config:
        """Return the config with a setting's values, checked. Raises UsageError where they don't go together."""
        config = with_values(self.config, self.values(setting))
        most = (config.tune or TuneConfig()).max_passes
        work = config.mechanism.work
        if most is not None and work > most * (1 + 1e-9):  # 70 rounds at 0.1 are 7 passes, whatever floats make of it
            raise UsageError(f"tune.max_passes: {work:g} passes over the records; expected at most {most}")
        return config

    def allowed(self, setting: Setting) -> bool:
        """Tell whether the setting makes a config that may be run."""
        try:
            self.config_of(setting)
        except UsageError:
            return False
        return True

    def order(self, seed: int) -> Iterator[Setting]:
        """Yield the allowed settings in a random order that ``seed`` fixes, the config's own first where the grid has it."""
        own = self.own_setting()
        if own is not None and self.allowed(own):
            yield own
        draws = random.Random(f"tune/{seed}").sample(range(self.size), min(self.size, DRAWS))
        for number in draws:
            setting = self.numbered(number)
            if setting != own and self.allowed(setting):
                yield setting

    def first(self, count: int, seed: int) -> list[Setting]:
        """Return the first ``count`` settings of the order. Raises UsageError when there are none."""
        settings = list(islice(self.order(seed), count))
        if not settings:
            self.config_of(self.numbered(0))  # says why
            raise UsageError("tune: no combination of its lists is allowed; correct them")
        return settings

    def neighbours(self, setting: Setting) -> list[Setting]:
        """Return the allowed settings that are one step away on one axis."""
        settings = []
        for at, axis in enumerate(self.axes):
            for place in (setting[at] - 1, setting[at] + 1):
                neighbour = (*setting[:at], place, *setting[at + 1 :])
                if 0 <= place < len(axis.values) and self.allowed(neighbour):
                    settings.append(neighbour)
        return settings

    def own_setting(self) -> Setting | None:
        """Return the setting that is the config's own; None where a list leaves its value out."""
        values, places = values_of(self.config), []
        for axis in self.axes:
            mine = tuple(values[name] for name in axis.keys)
            if mine not in axis.values:
                return None
            places.append(axis.values.index(mine))
        return tuple(places)

    def numbered(self, number: int) -> Setting:
        """Return the setting with a number below ``size``."""
        places = []
        for axis in reversed(self.axes):
            number, place = divmod(number, len(axis.values))
            places.append(place)
        return tuple(reversed(places))


def make_space(config: Config) -> Space:
    """Make the grid of the lists in [tune]; where there are no lists, a small grid around the config's own values."""
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
    """Return the config's own value of every tunable key."""
    return {name: getattr(getattr(config, section), name) for name, section in LISTS.items()}


def with_values(config: Config, values: Values) -> Config:
    """Return the config with these values of tunable keys, checked. Raises UsageError where they don't go together."""
    for section in dict.fromkeys(LISTS.values()):
        own = {name: value for name, value in values.items() if LISTS[name] == section}
        new_section: Any = dataclasses.replace(getattr(config, section), **own)
        config = dataclasses.replace(config, **{section: new_section})
    check(config)
    return config


def _around(config: Config) -> dict[str, list[Any]]:
    """Lists of values around the config's own."""
    mechanism, subspace = config.mechanism, config.subspace
    lists: dict[str, list[Any]] = {
        "rounds": [max(1, mechanism.passes // 2) * mechanism.parts, mechanism.rounds, 2 * mechanism.rounds],
        "step": [mechanism.step / 2, mechanism.step, mechanism.step * 2],
    }
    if mechanism.sampled:
        lists["sampling"] = [max(1e-4, mechanism.sampling / 2), mechanism.sampling, min(1.0, mechanism.sampling * 2)]
    if config.precision.kind != "identity" and config.precision.damping > 0:
        damping = config.precision.damping
        lists["damping"] = [damping / 3, damping, damping * 3]
    if mechanism.clip_quantile is not None:
        lists["clip_quantile"] = [0.5, 0.7, 0.9, mechanism.clip_quantile]
    for name in ("clip", "clip_natural"):
        value = getattr(mechanism, name)
        if value is not None:
            lists[name] = [value / 2, value, value * 2]
    for name in ("k", "k_in", "k_out"):
        size = getattr(subspace, name)
        if size is not None:
            lists[name] = [max(1, size // 2), size]
    return lists


def _ordered(values: list[Any]) -> list[Any]:
    """Each value once, ascending, so that neighbours are near."""
    return sorted(set(values))
