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
from distqexp.stages.shares import refuse_one_group
from distqexp.storage.atomic import storage_error, write_atomic
from distqexp.tuning.rehearsal import Rehearsal
from distqexp.tuning.search import best_of, search
from distqexp.tuning.space import Setting, Space, make_space, values_of
from distqexp.tuning.trials import NAME, Summary, Trials
from distqexp.tuning.writing import lines_of, plot, to_toml, tuned_tree


@dataclass(frozen=True)
class Choice:
    """What was chosen at one epsilon.

    Attributes:
        epsilon: The target.
        path: The config with the chosen values.
        best: The setting that was chosen.
        summaries: All settings that were tried.
        before: The metric of the pretrained model on the same test records.
        lines: The table for people.
    """

    epsilon: float
    path: Path
    best: Summary
    summaries: tuple[Summary, ...]
    before: float
    lines: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return the choice as a tree for ``--json``."""
        return {
            "config": str(self.path),
            "values": {name: value for name, value in self.best.values.items() if value is not None},
            "metric": self.best.runs[0].metric,
            "score": self.best.score,
            "standard_error": self.best.error,
            "loss": self.best.loss,
            "before": self.before,
            "settings": len(self.summaries),
        }


def tune(
    path: Path | None,
    out: Path,
    epsilons: Sequence[float] = (),
    overrides: Sequence[str] = (),
    trials: int | None = None,
) -> list[Choice]:
    """Rehearse settings on public records and write the best at each epsilon to ``out``/tuned-epsE.toml.

    Also writes trials.csv, with every run, and tune.png (where matplotlib is installed). Runs that are in trials.csv already are not
    made again. Never opens a file of data.private.

    Args:
        path: A TOML config; the embedded digits task when None.
        out: The folder to write to, new or of an earlier call.
        epsilons: The targets; the config's own when empty.
        overrides: Keys of the config to override, as SECTION.KEY=VALUE.
        trials: The number of settings to try, instead of tune.trials.

    Returns:
        What was chosen at each epsilon. Public.

    Raises:
        DistqexpError: Anything that ends the search, with one line that says what to do.
    """
    tree, base = read_tree(path, overrides)
    config = config_from_tree(tree, base)
    refuse_one_group(config)
    targets = list(dict.fromkeys(epsilons)) or [config.privacy.epsilon]
    for epsilon in targets:
        config_from_tree(
            {**tree, "privacy": {**tree["privacy"], "epsilon": epsilon}}, base
        )  # refused now, not in an hour
    if trials is not None:
        config = config_from_tree({**tree, "tune": {**tree.get("tune", {}), "trials": trials}}, base)
    launch = launched_size(os.environ)
    if launch is not None and launch[0] > 1:
        raise UsageError(f"tune: {launch[0]} processes ({launch[1]}); expected one: run it without a launcher")
    _open_folder(out)
    pin_threads(config.engine.threads)
    space = make_space(config)
    with SerialEngine() as engine, tempfile.TemporaryDirectory() as scratch:
        try:
            rehearsal = Rehearsal(config, Path(scratch), engine)
            for epsilon in targets:
                rehearsal.raised_epsilon(config, epsilon)
            table = Trials(out / NAME, rehearsal.task)
            _say(_description(config, rehearsal, space))
            choices = []
            for epsilon in targets:
                choice = _choose(config, space, rehearsal, table, epsilon, out)
                choices.append(choice)
                write_atomic(choice.path, _document(tree, base, config, choice).encode())
        except StoppedError:
            raise StoppedError(
                f"stopped on request; run the same command again: it goes on from {out / NAME}"
            ) from None
    _plot(out, choices, space)
    return choices


def _choose(config: Config, space: Space, rehearsal: Rehearsal, table: Trials, epsilon: float, out: Path) -> Choice:
    """Search the space at one epsilon. Runs that ``table`` holds already are not made again."""
    tune_config = config.tune or TuneConfig()

    def run(setting: Setting, seeds: int) -> Summary:
        values = space.values(setting)
        earlier_seeds = {one.seed for one in table.of(epsilon, values, rehearsal.metric, seeds).runs}
        new_seeds = [seed for seed in range(seeds) if seed not in earlier_seeds]
        for one in rehearsal.runs(space.config_of(setting), epsilon, new_seeds) if new_seeds else ():
            table.add(epsilon, values, one)
            text = ", ".join(f"{name} {values[name]:g}" for name in keys if values[name] is not None)
            result = f"{one.metric} {one.score:.4f}" if one.score is not None else one.note
            _say(f"tune: epsilon {epsilon:g}, {text}, seed {one.seed}: {result} ({one.seconds:.1f} s)")
        return table.of(epsilon, values, rehearsal.metric, seeds)

    keys = [name for axis in space.axes for name in axis.keys]
    summaries = search(space, run, tune_config)
    best = best_of(summaries, tune_config.seeds)
    path, before = out / f"tuned-eps{epsilon:g}.toml", rehearsal.before[rehearsal.metric]
    lines = (
        f"epsilon {epsilon:g}: {rehearsal.metric} {best.score:.4f} on public records, before {before:.4f}",
        *lines_of(summaries, best, space),
        f"written: {path}",
    )
    return Choice(epsilon, path, best, tuple(summaries), before, lines)


def _open_folder(out: Path) -> None:
    """Make the folder. Raises UsageError where it holds files and no table of trials."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: not a folder; expected a new one, or that of an earlier tune")
    if out.is_dir() and any(out.iterdir()) and not (out / NAME).exists():
        raise UsageError(f"--out {out}: holds files, and no {NAME}; expected a new folder, or that of an earlier tune")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(out, error) from None


def _description(config: Config, rehearsal: Rehearsal, space: Space) -> str:
    """One line on who plays whom and how many settings there are."""
    roles, units = rehearsal.roles, config.privacy.units
    note = ""
    if any(data.unit for data in config.data.private) and not all(data.unit for data in roles.stand_ins):
        note = "; data.public has no unit: each of its records plays a unit"
    return (
        f"tune: {roles.units} public units play {units} private ones, {roles.test_units} are tested on; "
        f"{space.size} combinations of settings{note}"
    )


def _document(tree: dict[str, Any], base: Path, config: Config, choice: Choice) -> str:
    """The chosen config as TOML, below a comment on its score."""
    best, metric = choice.best, choice.best.runs[0].metric
    head = (
        f"# Chosen by distqexp tune at epsilon {choice.epsilon:g}: {metric} {best.score:.4f} on public "
        f"records\n# (mean over {best.seeds} noise seeds, standard error {best.error:.4f}; before: {choice.before:.4f}).\n\n"
    )
    return head + to_toml(tuned_tree(tree, base, choice.epsilon, best.values, values_of(config)))


def _plot(out: Path, choices: Sequence[Choice], space: Space) -> None:
    """Write tune.png where matplotlib is installed; say so where it is not."""
    results = {choice.epsilon: (choice.summaries, choice.best, choice.before) for choice in choices}
    try:
        plot(out / "tune.png", results, space)
    except ModuleNotFoundError as error:
        _say(f"tune: no plot: {error.name} is not installed; install distqexp[plots] and run the same command again")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
