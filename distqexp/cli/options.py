"""Options that several commands share, and how a command prints."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from distqexp.config import Config

ConfigPath = Annotated[Path | None, typer.Argument(help="TOML config; the embedded digits task when absent")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="the plan's config: where public and evaluation data are")
]
PlanPath = Annotated[Path, typer.Argument(help="plan.h5")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="override a config key")
]
Seed = Annotated[
    int | None,
    typer.Option("--insecure-noise-seed", metavar="N", help="noise from a seed, for tests: the result is NOT PRIVATE"),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="this machine's copy of the pretrained weights, where the plan names them by digest; DISTQEXP_WEIGHTS when absent",
    ),
]
Labels = Annotated[Path | None, typer.Option(help="file of the labels, for idx, npy, images")]
Blank = Annotated[Path | None, typer.Option(help=".npy file of booleans: true blanks that row's slot")]
OwnRecords = Annotated[Path | None, typer.Option(help="the private records of this site")]
Yes = Annotated[
    bool,
    typer.Option("--yes", help="go on although something looks wrong in the records"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")]


def own_config(path: Path | None, overrides: list[str] | None) -> Config:
    """Return a config of one's own, see ``find_own_modules``."""
    from distqexp.config import load_config

    find_own_modules(path)
    return load_config(path, overrides or [])


def find_own_modules(config: Path | None) -> None:
    """Let a config of one's own name a factory in the folder where the command runs, as ``python -m distqexp.fit`` does."""
    folder = os.getcwd()
    if config is not None and folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)  # the last place: nothing there takes the place of an installed package


def say(*lines: str) -> None:
    """Print lines to standard output."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
