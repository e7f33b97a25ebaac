"""``distqexp tune``: choose hyperparameters on public records, for each target epsilon."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distqexp.config import Config, TuneConfig
from distqexp.config.reading import config_from_tree, read_tree
from distqexp.engines.launcher import launched_size
from distqexp.engines.serial import SerialEngine
from distqexp.engines.threads import pin_threads
from distqexp.errors import StoppedError, UsageError
from distqexp.storage.atomic import storage_error, write_atomic
from distqexp.tuning.rehearsal import Rehearsal
from distqexp.tuning.search import chosen, search
from distqexp.tuning.space import Setting, Space, make_space, values_of
from distqexp.tuning.trials import NAME, Summary, Trials
from distqexp.tuning.writing import lines_of, plot, to_toml, tuned_tree


@dataclass(frozen=True)
class Tuned:
    """What was chosen at one epsilon. before: the metric of the pretrained model on the same test records.

    lines: the table for people.
    """

    epsilon: float
    path: Path
    best: Summary
    tried: tuple[Summary, ...]
    before: float
    lines: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "config": str(self.path),
            "values": {name: value for name, value in self.best.values.items() if value is not None},
            "metric": self.best.runs[0].metric,
            "score": self.best.score,
            "standard_error": self.best.error,
            "loss": self.best.loss,
            "before": self.before,
            "settings": len(self.tried),
        }


def tune(
    path: Path | None,
    out: Path,
    epsilons: Sequence[float] = (),
    overrides: Sequence[str] = (),
    trials: int | None = None,
) -> list[Tuned]:
    """Rehearse settings on public records and write the best at each epsilon to ``out``/tuned-epsE.toml.

    path: a config; the embedded digits task when None. epsilons: targets; the config's own when empty. trials: in the place of
    tune.trials. Also writes trials.csv, with every run, and tune.png (where matplotlib is installed); runs that stand in
    trials.csv already are not made again. Never opens a file of data.private. Raises DistqexpError.
    """
    tree, base = read_tree(path, overrides)
    config = config_from_tree(tree, base)
    targets = list(dict.fromkeys(epsilons)) or [config.privacy.epsilon]
    for epsilon in targets:
        config_from_tree(
            {**tree, "privacy": {**tree["privacy"], "epsilon": epsilon}}, base
        )  # refused now, not in an hour
    if trials is not None:
        config = config_from_tree({**tree, "tune": {**tree.get("tune", {}), "trials": trials}}, base)
    launched = launched_size(os.environ)
    if launched is not None and launched[0] > 1:
        raise UsageError(f"tune: {launched[0]} processes ({launched[1]}); expected one: run it without a launcher")
    _open_folder(out)
    pin_threads(config.engine.threads)
    space = make_space(config)
    with SerialEngine() as engine, tempfile.TemporaryDirectory() as scratch:
        try:
            rehearsal = Rehearsal(config, Path(scratch), engine)
            for epsilon in targets:
                rehearsal.raised(config, epsilon)
            table = Trials(out / NAME, rehearsal.task)
            _say(_description(config, rehearsal, space))
            found = []
            for epsilon in targets:
                found.append(_at_epsilon(config, space, rehearsal, table, epsilon, out))
                write_atomic(found[-1].path, _document(tree, base, config, found[-1]).encode())
        except StoppedError:
            raise StoppedError(
                f"stopped on request; run the same command again: it goes on from {out / NAME}"
            ) from None
    _plot(out, found, space)
    return found


def _at_epsilon(config: Config, space: Space, rehearsal: Rehearsal, table: Trials, epsilon: float, out: Path) -> Tuned:
    settings = config.tune or TuneConfig()

    def run(setting: Setting, seeds: int) -> Summary:
        values = space.values(setting)
        done = {one.seed for one in table.of(epsilon, values, rehearsal.metric, seeds).runs}
        missing = [seed for seed in range(seeds) if seed not in done]
        for one in rehearsal.runs(space.config_of(setting), epsilon, missing) if missing else ():
            table.add(epsilon, values, one)
            shown = ", ".join(f"{name} {values[name]:g}" for name in varying if values[name] is not None)
            result = f"{one.metric} {one.score:.4f}" if one.score is not None else one.note
            _say(f"tune: epsilon {epsilon:g}, {shown}, seed {one.seed}: {result} ({one.seconds:.1f} s)")
        return table.of(epsilon, values, rehearsal.metric, seeds)

    varying = [name for axis in space.axes for name in axis.keys]
    tried = search(space, run, settings)
    best = chosen(tried, settings.seeds)
    path, before = out / f"tuned-eps{epsilon:g}.toml", rehearsal.before[rehearsal.metric]
    lines = (
        f"epsilon {epsilon:g}: {rehearsal.metric} {best.score:.4f} on public records, before {before:.4f}",
        *lines_of(tried, best, space),
        f"written: {path}",
    )
    return Tuned(epsilon, path, best, tuple(tried), before, lines)


def _open_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: not a folder; expected a new one, or that of an earlier tune")
    if out.is_dir() and any(out.iterdir()) and not (out / NAME).exists():
        raise UsageError(f"--out {out}: holds files, and no {NAME}; expected a new folder, or that of an earlier tune")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(out, error) from None


def _description(config: Config, rehearsal: Rehearsal, space: Space) -> str:
    roles, units = rehearsal.roles, config.privacy.units
    note = ""
    if any(data.unit for data in config.data.private) and not all(data.unit for data in roles.stand_ins):
        note = "; data.public has no unit: each of its records plays a unit"
    return (
        f"tune: {roles.units} public units play {units} private ones, {roles.tested} are tested on; "
        f"{space.size} combinations of settings{note}"
    )


def _document(tree: dict[str, Any], base: Path, config: Config, tuned: Tuned) -> str:
    best, metric = tuned.best, tuned.best.runs[0].metric
    head = (
        f"# Chosen by distqexp tune at epsilon {tuned.epsilon:g}: {metric} {best.score:.4f} on public "
        f"records\n# (mean over {best.seeds} noise seeds, standard error {best.error:.4f}; before: {tuned.before:.4f}).\n\n"
    )
    return head + to_toml(tuned_tree(tree, base, tuned.epsilon, best.values, values_of(config)))


def _plot(out: Path, found: Sequence[Tuned], space: Space) -> None:
    results = {tuned.epsilon: (tuned.tried, tuned.best, tuned.before) for tuned in found}
    try:
        plot(out / "tune.png", results, space)
    except ModuleNotFoundError as error:
        _say(f"tune: no plot: {error.name} is not installed; install distqexp[plots] and run the same command again")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
