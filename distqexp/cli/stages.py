"""The stages as commands: what a coordinator or a site runs, one file after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from distqexp.cli.options import (
    AsJson,
    Blank,
    ConfigOption,
    ConfigPath,
    Labels,
    Overrides,
    OwnRecords,
    PlanPath,
    Seed,
    Weights,
    Yes,
    find_own_modules,
    own_config,
    say,
)
from distqexp.cli.remarks import teller

commands = typer.Typer()


@commands.command(epilog="example: distqexp plan configs/icu.toml --out plan.h5")
def plan(
    out: Annotated[Path, typer.Option(help="the plan file to write")],
    config: ConfigPath = None,
    overrides: Overrides = None,
) -> None:
    """Fix every rule from public data, say what to expect of the noise, and what a rank will need."""
    from distqexp import api
    from distqexp.stages.plan import describe_plan

    say(*describe_plan(api.plan(own_config(config, overrides), out)))


@commands.command(
    epilog="the same as python -m distqexp.fit, which a launcher starts on many ranks",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def fit(context: typer.Context) -> None:
    """Walk the whole way from a config to a certified model and its report, in one process: distqexp fit --help."""
    from distqexp.fit import main

    find_own_modules(Path(context.args[0]) if context.args else None)  # without any argument there is no config
    try:
        code = main(context.args, program="distqexp fit")
    except SystemExit as ended:  # after --help
        code = int(ended.code or 0)
    raise typer.Exit(code)


@commands.command(
    epilog="example: distqexp check configs/icu.toml   (at a site: distqexp check plan.h5 --data north.csv --shard north)"
)
def check(
    source: Annotated[
        Path | None, typer.Argument(help="TOML config, or plan.h5; the embedded digits task when absent")
    ] = None,
    shard: Annotated[str | None, typer.Option(help="this shard alone")] = None,
    data: Annotated[Path | None, typer.Option(help="with a plan: the private records of this site")] = None,
    labels: Annotated[Path | None, typer.Option(help="with a plan: file of the labels, for idx, npy, images")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="with a plan: folder of the tokenizer, for text")] = None,
    blank: Annotated[Path | None, typer.Option(help="with a plan: .npy file of booleans")] = None,
    public: Annotated[
        bool,
        typer.Option("--public", help="with a config: all that can refuse a run, without opening a private file"),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """For whoever may see the private records: which are usable, and why others are not. What it prints is PRIVATE.

    With --public it says instead what a run would be refused for before a private file is opened: that is for everybody's eyes.
    Writes no file and charges nothing. No other command tells of a bad record: it contributes nothing, as if it were blank.
    """
    from distqexp import api
    from distqexp.errors import UsageError

    if public:
        from distqexp.stages.ahead import check_ahead

        if any(option is not None for option in (shard, data, labels, blank)) or (source and source.suffix == ".h5"):
            raise UsageError("check: --public with a plan or private files; expected it with a config alone")
        say(*check_ahead(own_config(source, overrides)))
        return
    if source is not None and source.suffix == ".h5":
        if overrides:
            raise UsageError("--set: found with a plan, whose config is fixed; expected it with a config")
        say(*api.check(source, shard=shard, data=data, labels=labels, blank=blank, tokenizer=tokenizer))
        return
    config = own_config(source, overrides)
    say(*api.check(config, shard=shard, data=data, labels=labels, blank=blank, tokenizer=tokenizer))


@commands.command(epilog="example: distqexp count configs/icu.toml --epsilon 0.05")
def count(
    epsilon: Annotated[float, typer.Option(help="what the count may cost, at the config's delta")],
    config: ConfigPath = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    insecure_noise_seed: Seed = None,
) -> None:
    """Release a noisy count of the private units, for privacy.units where no public figure is known."""
    from distqexp import api

    unit_count = api.count(own_config(config, overrides), epsilon, insecure_noise_seed=insecure_noise_seed)
    say(*unit_count.lines())
    if as_json:
        say(json.dumps(unit_count.tree(), sort_keys=True))


@commands.command(
    epilog="example: distqexp sketch plan.h5 --data ccu.csv --out ccu.h5   (next round: --release release-000.h5; patients whose "
    "budget has another name here: --population icu)"
)
def sketch(
    plan: PlanPath,
    out: Annotated[Path, typer.Option(help="the sketch file to write; as sensitive as the records")],
    data: OwnRecords = None,
    release: Annotated[
        list[Path] | None,
        typer.Option(help="the release that this round builds on; each one so far, where the plan names its weights"),
    ] = None,
    shard: Annotated[str | None, typer.Option(help="the shard's name in the plan")] = None,
    labels: Labels = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="folder of the tokenizer, for text; the plan knows which")
    ] = None,
    blank: Blank = None,
    population: Annotated[
        str | None,
        typer.Option(
            help="what this site calls the plan's population; needed once, where its ledger knows other names"
        ),
    ] = None,
    insecure_noise_seed: Annotated[
        int | None,
        typer.Option(
            "--insecure-noise-seed",
            metavar="N",
            help="take part in the test run of this seed, whose releases are NOT PRIVATE",
        ),
    ] = None,
    weights: Weights = None,
    yes: Yes = False,
) -> None:
    """At a site: sketch its own private records and charge its own ledger.

    Before anything is charged the records are held against the plan's public ones. Where something looks wrong (another unit of
    measure, inverted labels, one class alone, missing values, no record, too many or few units) a terminal is told what, and the
    command ends with exit code 2 unless --yes is given. Whether it does tells something about the records: to whoever sees it.
    """
    from distqexp import api

    api.sketch(
        plan,
        data,
        out,
        release=release,
        shard=shard,
        labels=labels,
        blank=blank,
        tokenizer=tokenizer,
        population=population,
        insecure_noise_seed=insecure_noise_seed,
        weights=weights,
        on_remarks=teller(f"distqexp check {plan}" + (f" --data {data}" if data else ""), yes),
    )


@commands.command(epilog="example: distqexp pool plan.h5 ccu.h5 csru.h5 --out quadratic-000.h5")
def pool(
    plan: PlanPath,
    sketches: Annotated[list[Path], typer.Argument(help="sketch files of one round: exactly the plan's shards")],
    out: Annotated[Path, typer.Option(help="the pooled quadratic to write; as sensitive as the records")],
) -> None:
    """At the curator: add the sites' integer sketches."""
    from distqexp.stages.pool import pool_by_hand  # not distqexp.api: this command needs no torch

    pool_by_hand(plan, sketches, out)


@commands.command(
    epilog="example: distqexp release plan.h5 quadratic-000.h5 --config configs/icu.toml --out release-000.h5"
)
def release(
    plan: PlanPath,
    quadratic: Annotated[Path, typer.Argument(help="the pooled quadratic of the round; deleted afterwards")],
    out: Annotated[Path, typer.Option(help="the release file to write")],
    previous: Annotated[
        list[Path] | None,
        typer.Option(
            help="the release before, from the second round on; each one so far, where the plan names its weights"
        ),
    ] = None,
    config: ConfigOption = None,
    overrides: Overrides = None,
    keep_quadratic: Annotated[bool, typer.Option("--keep-quadratic", help="don't delete the quadratic file")] = False,
    insecure_noise_seed: Seed = None,
    weights: Weights = None,
) -> None:
    """At the curator: charge the ledger, draw the sample, store the release and the next round's state."""
    from distqexp import api
    from distqexp.artefacts.plan import Plan
    from distqexp.artefacts.release import diagnostics_of

    stored = api.release(
        plan,
        quadratic,
        out,
        previous=previous,
        config=own_config(config, overrides) if config else None,
        insecure_noise_seed=insecure_noise_seed,
        keep_quadratic=keep_quadratic,
        weights=weights,
    )
    diagnostics = diagnostics_of(Plan.read(plan), stored)
    if diagnostics is not None:
        say(f"round {stored.round + 1}: {diagnostics.line()} (released: paid for)")


@commands.command(epilog="example: distqexp void plan.h5 --out void-000.h5   (a later round: --release release-000.h5)")
def void(
    plan: PlanPath,
    out: Annotated[Path, typer.Option(help="the void file to write; public")],
    release: Annotated[
        list[Path] | None,
        typer.Option(
            help="the release that the void round builds on; each one so far, where the plan names its weights"
        ),
    ] = None,
    weights: Weights = None,
) -> None:
    """At the coordinator: give up, for ever, a round that was never drawn, so that the sites can take their charge back."""
    from distqexp import api

    stored = api.void(plan, out, release=release, weights=weights)
    say(
        f"round {stored.round} of plan {stored.plan_id[:16]} is void: it is never released (ledger entry {stored.entry.number})",
        f"{out}: for each site that sketched it: distqexp ledger accept-void; it is not signed yet, hand it on by a way they trust",
    )


@commands.command(epilog="example: distqexp export plan.h5 release-000.h5 --config configs/icu.toml --out model")
def export(
    plan: PlanPath,
    releases: Annotated[list[Path], typer.Argument(help="the releases of all rounds")],
    out: Annotated[Path, typer.Option(help="the folder to write: weights and certificate")],
    config: ConfigOption = None,
    overrides: Overrides = None,
    weights: Weights = None,
) -> None:
    """Write the weights and the certificate; with --config, print metrics before and after."""
    from distqexp import api

    certificate, metrics = api.export(
        plan, releases, out, config=own_config(config, overrides) if config else None, weights=weights
    )
    say(certificate["statement"])
    if config:
        say(json.dumps(metrics, sort_keys=True))
