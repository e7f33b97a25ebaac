"""The commands before a run: doctor."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from distqexp.cli.options import AsJson, ConfigPath, Overrides, own_config, say

commands = typer.Typer()


@commands.command(epilog="example: distqexp doctor configs/icu.toml   (on all ranks: mpirun -n 2 distqexp doctor)")
def doctor(
    config: ConfigPath = None,
    out: Annotated[Path | None, typer.Option(help="the folder of the run; runs/NAME of the config when absent")] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="the ledger; that of DISTQEXP_LEDGER, or the user's own, when absent")
    ] = None,
    large: Annotated[
        bool, typer.Option("--large", help="under a launcher: broadcast 2^31 bytes too, 4 GiB of memory a rank")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, its MPI, folders and ledger. Charges nothing, alters nothing; exit code 5 where something is at fault."""
    from distqexp.doctor import Wishes, examine
    from distqexp.errors import EngineError
    from distqexp.privacy.ledger.files import default_path

    wishes = Wishes(
        config=own_config(config, overrides) if config or overrides else None,
        out=out or Path("runs") / (config.stem if config else "digits"),
        ledger=ledger or default_path(),
        large=large,
    )
    report, at_fault = examine(wishes, os.environ)
    if report is not None:
        say(*report.lines())
        if as_json:
            say(json.dumps(report.tree(), sort_keys=True))
    raise typer.Exit(EngineError.exit_code if at_fault else 0)
