"""What ICU mortality allows at a small epsilon: ideas that could move distqexp ahead, tried in plain NumPy.

    DISTQEXP_DATA=/data python scripts/icu_ideas.py --out runs/icu-ideas

The model is linear, so that a record's gradient is its residual times its features, and a round of the mechanism's law
(clip, sum, normal noise, damped Newton step) takes a millisecond. Settings are chosen as those of ``configs/icu`` were: on
set a alone, its medical ICU as public data, its other units as stand-ins for private records, in 8 folds. Gradient descent
is chosen in the same way; it is the same law with a damping so large that the curvature doesn't matter. Then all are run
on the five splits of set b that ``frontier.py`` has, with 60 noise seeds each. Nothing here is private: it says what to
expect, and stores nothing but figures.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from benchmarks.linear import LinearTask, linear_task, spectrum, vectors_of
from benchmarks.problems import Problem, Start
from rehearse_icu import CONFIG, FOLDS, write_stand_ins
from scipy.special import expit
from scipy.stats import rankdata

from distqexp.arrays import FloatArray
from distqexp.privacy import gdp

ISOTROPIC = 1000.0
"""A damping at which the precision is as good as the identity: gradient descent."""
CHOICE_SEEDS, SEEDS = 6, 60


@dataclass(frozen=True)
class Setting:
    """One way to run the mechanism.

    Attributes:
        damping: Added to the curvature, in mean eigenvalues.
        quantile: Of the norms of public whitened gradients: the clip.
        rounds: Number of rounds.
        step: The share of a damped Newton step that a round takes.
        public: The weight of the public records' own gradient in every round; 0: none.
        blocks: So many blocks of eigenvectors are shrunk by James and Stein's rule after the last round; 0: none.
    """

    damping: float
    quantile: float
    rounds: int
    step: float
    public: float = 0.0
    blocks: int = 0


@dataclass(frozen=True)
class Split:
    """Private features (n, d) and labels (n,), and those that the metric is computed on."""

    features: FloatArray
    labels: FloatArray
    evaluation: FloatArray
    answers: FloatArray


def auroc(
    split: Split, task: LinearTask, setting: Setting, mu: float, random: np.random.Generator, seeds: int
) -> float:
    """Return the mean AUROC over noise seeds of models fine-tuned on a split at ``mu`` in all."""
    public, start = task.public_features, task.start
    unit, values, vectors = spectrum(task)
    matrix = vectors / np.sqrt(values + setting.damping)
    white, white_public = split.features @ matrix, public @ matrix
    norms = np.abs(expit(public @ start) - task.public_labels) * np.linalg.norm(white_public, axis=1)
    clip = float(np.quantile(norms, setting.quantile))
    lengths, offset = np.linalg.norm(white, axis=1)[:, None], (split.features @ start)[:, None]
    deviation = clip * setting.rounds**0.5 / mu / len(white)
    move, variance = np.zeros((len(values), seeds)), np.zeros(len(values))
    for _ in range(setting.rounds):
        residuals = expit(offset + white @ move) - split.labels[:, None]
        residuals *= np.minimum(1.0, clip / np.maximum(np.abs(residuals) * lengths, 1e-12))
        gradient = white.T @ residuals / len(white) + deviation * random.standard_normal(move.shape)
        if setting.public:
            own = expit((public @ start)[:, None] + white_public @ move) - task.public_labels[:, None]
            gradient = (gradient + setting.public * white_public.T @ own / len(public)) / (1 + setting.public)
        move -= setting.step / unit * gradient
        kept = 1 - np.minimum(setting.step * values / (values + setting.damping), 1.0)
        variance = variance * kept**2 + (setting.step / unit * deviation) ** 2
    for block in np.array_split(np.arange(len(values)), setting.blocks) if setting.blocks else ():
        squares = (move[block] ** 2 / variance[block, None]).sum(axis=0)
        move[block] *= np.maximum(0.0, 1 - len(block) / squares)
    logits = (split.evaluation @ start)[:, None] + split.evaluation @ matrix @ move
    positives = int(split.answers.sum())
    ranks = rankdata(logits, axis=0)[split.answers == 1].sum(axis=0)
    pairs = positives * (len(split.answers) - positives)
    return float(((ranks - positives * (positives + 1) / 2) / pairs).mean())


def mean_auroc(splits: Sequence[Split], task: LinearTask, setting: Setting, mu: float, seeds: int) -> FloatArray:
    """Return the mean AUROC of each split; the noise is the same for every setting."""
    random = np.random.default_rng(1)
    return np.array([auroc(split, task, setting, mu, random, seeds) for split in splits])


def ideas() -> dict[str, list[Setting]]:
    """Return the settings of each idea."""
    quantiles, rounds, steps = (0.5, 0.7, 0.9), (2, 4, 16), (0.06, 0.12, 0.2, 0.3, 0.6)
    dampings = (0.3, 1.0, 3.0, 10.0)
    plain = [Setting(*values) for values in product(dampings, quantiles, rounds, steps)]
    isotropic = [
        Setting(ISOTROPIC, quantile, count, ISOTROPIC * step)
        for quantile, count, step in product(quantiles, rounds, (0.006, 0.01, 0.02, 0.03, 0.05, 0.08, 0.13))
    ]
    return {
        "gradient descent, chosen alike": isotropic,
        "distqexp's law, chosen anew": plain,
        "with the public gradient in every round": [
            Setting(d, q, r, s, public=p)
            for d, q, r, s, p in product((1.0, 3.0), quantiles, (2, 4), steps, (0.1, 0.3, 1.0))
        ],
        "with moves shrunk by blocks": [
            Setting(d, q, r, s, blocks=b)
            for d, q, r, s, b in product((0.5, 3.0), (0.7, 0.9), (2, 4), (*steps, 1.0), (1, 8))
        ],
    }


def splits_of(problem: Problem) -> tuple[Split, LinearTask]:
    """Return a problem's records as vectors."""
    task = linear_task(problem)
    if task is None:
        raise SystemExit("icu_ideas: the model isn't linear with one logit; expected that of configs/icu.toml")
    return Split(task.features, task.labels, *vectors_of(problem.evaluation, bias=False)), task


def stand_in_splits(folder: Path) -> tuple[list[Split], LinearTask]:
    """Return the folds of set a's other units."""
    table = Path(os.environ["DISTQEXP_DATA"]) / "icu2012" / "set-a.csv.gz"
    count = write_stand_ins(table, folder / "stand-ins.csv")
    sources = [f"data.{role}.path={folder / 'stand-ins.csv'}" for role in ("private", "eval")]
    start = Start(CONFIG, [*sources, f"data.private.rows=[[0,{count}]]", "data.eval.rows=[[0,1]]"], folder)
    whole, task = splits_of(start.problem())
    parts = np.array_split(np.arange(count), FOLDS)
    others = [np.setdiff1d(np.arange(count), part) for part in parts]
    x, y = whole.features, whole.labels
    return [Split(x[rest], y[rest], x[part], y[part]) for part, rest in zip(parts, others, strict=True)], task


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/icu-ideas"), help="folder of the start and the tables")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folds, task = stand_in_splits(options.out)
    start = Start(CONFIG, [], options.out)
    real = [splits_of(start.problem(split))[0] for split in range(5)]
    for epsilon in options.epsilons:
        mu = gdp.mu(epsilon, start.config().privacy.delta)
        for name, settings in ideas().items():
            scores = [mean_auroc(folds, task, setting, mu, CHOICE_SEEDS).mean() for setting in settings]
            best = settings[int(np.argmax(scores))]
            found = mean_auroc(real, task, best, mu, SEEDS)
            print(
                f"{epsilon:5g} {name:42s} folds {max(scores):.4f} set b {found.mean():.4f} {found.round(4)} {best}",
                flush=True,
            )


if __name__ == "__main__":
    main()
