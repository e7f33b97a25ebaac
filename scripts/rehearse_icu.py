"""Repeat the rehearsal behind configs/icu.toml: try its hyperparameters on public records alone.

    DISTQEXP_DATA=/data python scripts/rehearse_icu.py --step 0.7 --damping 3 --clip-quantile 0.9 --weight-decay 0.01

The medical ICU of set a plays the public role. The other units of set a play the private one, in 8 folds: seven are
fine-tuned on, one is tested on. The script prints the mean AUROC and log loss over the folds at epsilon 1. Set b is not
opened. The noise is seeded, and is charged to ledgers in a temporary folder.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import tempfile
from pathlib import Path

import numpy as np

from distqexp.api import fit, load_config

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "icu.toml"
OTHER_UNITS = ("CCU", "CSRU", "SICU")
FOLDS = 8


def write_stand_ins(table: Path, path: Path) -> int:
    """Write the rows of set a outside the medical ICU, shuffled; returns their number."""
    with gzip.open(table, "rt", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    flags = [header.index(name) for name in OTHER_UNITS]
    chosen = [row for row in rows if any(float(row[flag]) == 1 for flag in flags)]
    order = np.random.default_rng(0).permutation(len(chosen))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *(chosen[i] for i in order)])
    return len(chosen)


def rehearse(stand_ins: Path, count: int, fold: int, folder: Path, settings: list[str]) -> dict[str, float]:
    """Metrics on one fold after fine-tuning on the others."""
    first, last = fold * count // FOLDS, (fold + 1) * count // FOLDS
    others = [[begin, end] for begin, end in ((0, first), (last, count)) if begin < end]
    overrides = [
        "data.population=icu2012-set-a",
        f"data.private.path={stand_ins}",
        f"data.private.rows={others}",
        f"data.eval.path={stand_ins}",
        f"data.eval.rows=[[{first}, {last}]]",
        f"privacy.units={count * (FOLDS - 1) // FOLDS}",
        *settings,
    ]
    os.environ["DISTQEXP_LEDGER"] = str(folder / f"ledger-{fold}.sqlite")
    result = fit(load_config(CONFIG, overrides), folder / f"fold-{fold}", insecure_noise_seed=fold)
    if result is None:
        raise SystemExit("run it without a launcher")
    return result.metrics["after"]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    keys = {
        "--step": "mechanism.step",
        "--damping": "precision.damping",
        "--clip-quantile": "mechanism.clip_quantile",
        "--weight-decay": "model.pretrain.weight_decay",
    }
    for option, key in keys.items():
        parser.add_argument(option, type=float, help=f"{key}; that of the config when left out")
    options = vars(parser.parse_args())
    chosen = {key: options[option.strip("-").replace("-", "_")] for option, key in keys.items()}
    settings = [f"{key}={value}" for key, value in chosen.items() if value is not None]
    table = Path(os.environ["DISTQEXP_DATA"]) / "icu2012" / "set-a.csv.gz"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = write_stand_ins(table, folder / "stand-ins.csv")
        found = [rehearse(folder / "stand-ins.csv", count, fold, folder, settings) for fold in range(FOLDS)]
    means = {metric: float(np.mean([metrics[metric] for metrics in found])) for metric in ("auroc", "log_loss")}
    print(f"AUROC {means['auroc']:.4f}, log loss {means['log_loss']:.4f}")


if __name__ == "__main__":
    main()
