"""Options that several commands share, and how a command prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

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
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")]


def say(*lines: str) -> None:
    """Print lines to standard output."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
