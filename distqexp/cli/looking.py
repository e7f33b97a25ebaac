"""The commands beside the stages, which charge nothing: init, inspect, verify, report, tune, audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from distqexp.cli.options import (
    AsJson,
    ConfigOption,
    ConfigPath,
    Overrides,
    Seed,
    Weights,
    find_own_modules,
    own_config,
    say,
)

commands = typer.Typer()


@commands.command(epilog="example: distqexp init public.csv --target died --unit patient --private patients.csv")
def init(
    table: Annotated[
        Path,
        typer.Argument(
            help="public records: a table (CSV, Parquet), arrays (.npy, .npz, .h5), a folder of images or of a saved dataset"
        ),
    ],
    target: Annotated[
        str | None, typer.Option(help="the column of the label; for arrays the usual name when absent")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="the column of the unit ids, such as patient; every row is a unit when absent")
    ] = None,
    private: Annotated[
        Path | None,
        typer.Option(
            help="the private records; they are not opened, and need not be here; private.csv or the like when absent"
        ),
    ] = None,
    test: Annotated[Path | None, typer.Option(help="evaluation records; they are not opened")] = None,
    units: Annotated[
        int | None,
        typer.Option(
            help="about how many people the private table has: a public figure; as many as the public one when absent"
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(help="how letters are stored, such as cp1252; UTF-8, or UTF-16 with its mark, when absent"),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="a folder with tokenizer.json, to learn from the table's column of texts")
    ] = None,
    epsilon: Annotated[float, typer.Option(help="the privacy budget of the run")] = 1.0,
    out: Annotated[Path, typer.Option(help="the config to write")] = Path("config.toml"),
) -> None:
    """Write a commented config for records, from the public ones alone."""
    from distqexp.stages.starting import Start, write_config

    start = Start(
        table, target, out, unit=unit, private=private, test=test, epsilon=epsilon, units=units, encoding=encoding,
        tokenizer=tokenizer,
    )  # fmt: skip
    say(*write_config(start))


@commands.command(epilog="example: distqexp inspect plan.h5")
def inspect(file: Annotated[Path, typer.Argument(help="any distqexp file")]) -> None:
    """Tell a person what a file is. Of private files the header only."""
    from distqexp.storage.inspect import describe

    say(describe(file))


@commands.command(epilog="example: distqexp verify runs/digits   (or: distqexp verify model plan.h5 release-000.h5)")
def verify(
    paths: Annotated[list[Path], typer.Argument(help="distqexp files, certificates, or folders of a run")],
    config: ConfigOption = None,
    weights: Weights = None,
) -> None:
    """Check checksums and identities, every figure of plan and releases, and a certificate against them, its model and the ledger."""
    from distqexp.stages.verify import verify_paths

    say(*verify_paths(paths, None if config is None else own_config(config, None), weights))


@commands.command(
    epilog="example: distqexp report runs/digits   (several: distqexp report runs/a runs/b --out both.html)"
)
def report(
    runs: Annotated[list[Path], typer.Argument(help="folders of finished runs")],
    out: Annotated[
        Path | None, typer.Option(help="the page to write; report.html in the run's folder, or here for several runs")
    ] = None,
) -> None:
    """Write a page of HTML on one run, or on several side by side: public, for one's browser, without a network."""
    from distqexp import api

    say(f"{api.report(*runs, out=out)}: open it in a browser")


@commands.command(epilog="example: distqexp tune configs/digits.toml --out runs/tuned --epsilon 1 --epsilon 4")
def tune(
    out: Annotated[
        Path, typer.Option(help="the folder of tuned-epsE.toml, trials.csv and tune.png; goes on with an old one")
    ],
    config: ConfigPath = None,
    epsilon: Annotated[list[float] | None, typer.Option(help="target; the config's own when absent")] = None,
    overrides: Overrides = None,
    trials: Annotated[int | None, typer.Option(help="settings to try, instead of tune.trials")] = None,
    as_json: AsJson = False,
) -> None:
    """Choose hyperparameters on public records that play the private ones. Opens no private file, charges nothing."""
    from distqexp.tuning import tune as tune_config

    find_own_modules(config)
    choices = tune_config(config, out, epsilon or [], overrides or [], trials)
    for choice in choices:
        say(*choice.lines)
    if as_json:
        summaries = {f"{choice.epsilon:g}": choice.summary() for choice in choices}
        say(json.dumps({"out": str(out), "epsilons": summaries}, sort_keys=True))


@commands.command(
    epilog="example: distqexp audit plan.h5 --out runs/audit   (a whole run: configs/digits.toml --canaries 400 --out runs/audit)"
)
def audit(
    out: Annotated[Path, typer.Option(help="the folder of the findings: a JSON file and a plot")],
    source: Annotated[
        Path | None,
        typer.Argument(help="plan.h5; with --canaries a TOML config, the embedded digits task when absent"),
    ] = None,
    draws: Annotated[
        int | None, typer.Option(help="releases of each round on either of two datasets; 100000 when absent")
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(help="runs of the plan that are audited as one: coins that come again show; 1 when absent"),
    ] = None,
    canaries: Annotated[
        int | None, typer.Option(help="audit one whole run with so many made-up records among public ones")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    insecure_noise_seed: Seed = None,
) -> None:
    """Draw many releases of a plan's mechanism, or make one run with canaries, and see whether they tell more than claimed.

    No private record is read and nothing is charged. Exit 1 where the claim is wrong.
    """
    from distqexp import api
    from distqexp.errors import UsageError

    if canaries is None and (source is None or overrides or insecure_noise_seed is not None):
        raise UsageError(
            "audit: a plan file alone, or --canaries N and a config, --set and --insecure-noise-seed with it"
        )
    for name, value in (("--draws", draws), ("--runs", runs)):
        if canaries is not None and value is not None:
            raise UsageError(f"{name}: found with --canaries, which makes one run; expected one of the two")
    findings: api.Audit | api.RunAudit
    if canaries is not None:
        config = own_config(source, overrides)
        findings = api.audit_run(config, canaries, out, insecure_noise_seed=insecure_noise_seed)
    elif source is not None:
        findings = api.audit(source, out, draws=100_000 if draws is None else draws, runs=1 if runs is None else runs)
    say(*findings.lines())
    if as_json:
        say(json.dumps(findings.tree(), sort_keys=True))
    if not findings.holds:
        raise typer.Exit(1)
