"""The commands before a run: doctor, cost, stays."""

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


@commands.command(
    epilog="example: distqexp cost configs/icu.toml --ranks 1,8,64   (with its network: mpirun -n 2 distqexp cost)"
)
def cost(
    config: ConfigPath = None,
    ranks: Annotated[
        str | None, typer.Option(metavar="N[,N...]", help="numbers of ranks; powers of two to 4096 when absent")
    ] = None,
    gpus: Annotated[bool, typer.Option("--gpus", help="with a GPU for each rank: engine.device = cuda")] = False,
    units: Annotated[int | None, typer.Option(help="the private records, when not privacy.units")] = None,
    eval_records: Annotated[int | None, typer.Option(help="the evaluation records, where no rows are given")] = None,
    latency: Annotated[float | None, typer.Option(help="seconds between two ranks")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="bytes a second between two ranks")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="what cost --json printed for this model, instead of a probe")
    ] = None,
    stated: Annotated[
        bool, typer.Option("--stated", help="the memory of a GPU by the model's shapes alone: nothing is measured")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Forecast time, memory and bytes on 1 to 4,096 ranks, from a short probe on public and synthetic records; charges nothing."""
    from distqexp.costs import Question, ask

    question = Question(
        config=own_config(config, [*(overrides or []), *(["engine.device=cuda"] if gpus else [])]),
        ranks=_numbers(ranks),
        units=units,
        evaluations=eval_records,
        latency=latency,
        bandwidth=bandwidth,
        calibration=calibration,
        stated=stated,
    )
    costs = ask(question, os.environ)
    if costs is not None:
        say(*costs.lines())
        if as_json:
            say(json.dumps(costs.tree(), sort_keys=True))


@commands.command(epilog="example: distqexp stays mimic-iv-3.1 --out stays.parquet")
def stays(
    folder: Annotated[Path, typer.Argument(help="the folder of MIMIC-IV, with hosp and icu in it, or of MEDS")],
    out: Annotated[Path, typer.Option(help="the Parquet file to write, of one row a stay; as private as the folder")],
    format: Annotated[str, typer.Option(help="mimic-iv or meds")] = "mimic-iv",
) -> None:
    """For whoever may see the records: make a table of ICU stays, once for all runs. What it prints and writes is PRIVATE.

    A config's data.private.path may name the folder or this file: the rows are the same. Charges nothing.
    """
    from distqexp import api

    say(*api.stays(folder, out, format=format))


def _numbers(words: str | None) -> tuple[int, ...] | None:
    """Return the numbers of ``--ranks``. Raises UsageError where they are none."""
    from distqexp.errors import UsageError

    if words is None:
        return None
    parts = [part.strip() for part in words.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--ranks: found {words!r}; expected whole numbers above 0, such as 1,8,64")
    return tuple(map(int, parts))
