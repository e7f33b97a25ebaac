"""The ``distqexp`` command: one stage at a time, so that a site can run ``sketch`` and nothing else."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from distqexp.errors import NotAvailableYet

app = typer.Typer(
    name="distqexp",
    help="Fine-tune a pretrained model with differential privacy, stage by stage.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
ledger_app = typer.Typer(help="What was spent, and what may be spent.", rich_markup_mode=None)
app.add_typer(ledger_app, name="ledger")

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


@app.command(epilog="example: distqexp plan configs/icu.toml --out plan.h5")
def plan(
    out: Annotated[Path, typer.Option(help="the plan file to write")],
    config: ConfigPath = None,
    overrides: Overrides = None,
) -> None:
    """Fix every rule from public data, print the accuracy forecast and what a rank will need."""
    from distqexp import api
    from distqexp.stages.plan import describe_plan

    made = api.plan(api.load_config(config, overrides or []), out)
    _say(*describe_plan(made))


@app.command(
    epilog="example: distqexp check configs/icu.toml   (at a site: distqexp check plan.h5 --data north.csv --shard north)"
)
def check(
    source: Annotated[
        Path | None, typer.Argument(help="TOML config, or plan.h5; the embedded digits task when absent")
    ] = None,
    shard: Annotated[str | None, typer.Option(help="this shard alone")] = None,
    data: Annotated[Path | None, typer.Option(help="with a plan: the private records of this site")] = None,
    labels: Annotated[Path | None, typer.Option(help="with a plan: file of the labels, for idx")] = None,
    blank: Annotated[Path | None, typer.Option(help="with a plan: .npy file of booleans")] = None,
    overrides: Overrides = None,
) -> None:
    """For whoever may see the private records: which are usable, and why others are not. What it prints is PRIVATE.

    Writes no file and charges nothing. No other command tells a bad record: it contributes nothing, as if it were blank.
    """
    from distqexp import api
    from distqexp.errors import UsageError

    if source is not None and source.suffix == ".h5":
        if overrides:
            raise UsageError("--set: found with a plan, whose config is fixed; expected it with a config")
        _say(*api.check(source, shard=shard, data=data, labels=labels, blank=blank))
        return
    config = api.load_config(source, overrides or [])
    _say(*api.check(config, shard=shard, data=data, labels=labels, blank=blank))


@app.command(epilog="example: distqexp count configs/icu.toml --epsilon 0.05")
def count(
    epsilon: Annotated[float, typer.Option(help="what the count may cost, at the config's delta")],
    config: ConfigPath = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")] = False,
    insecure_noise_seed: Seed = None,
) -> None:
    """Release a noisy count of the private units, for privacy.units where no public figure is known."""
    from distqexp import api

    found = api.count(api.load_config(config, overrides or []), epsilon, insecure_noise_seed=insecure_noise_seed)
    _say(*found.lines())
    if as_json:
        _say(json.dumps(found.tree(), sort_keys=True))


@app.command(
    epilog="example: distqexp sketch plan.h5 --data ccu.csv --out ccu.h5   (next round: --release release-000.h5; patients whose "
    "budget has another name here: --population icu)"
)
def sketch(
    plan: PlanPath,
    out: Annotated[Path, typer.Option(help="the sketch file to write; as sensitive as the records")],
    data: Annotated[Path | None, typer.Option(help="the private records of this site")] = None,
    release: Annotated[Path | None, typer.Option(help="the release that this round builds on")] = None,
    shard: Annotated[str | None, typer.Option(help="the shard's name in the plan")] = None,
    labels: Annotated[Path | None, typer.Option(help="file of the labels, for idx")] = None,
    blank: Annotated[Path | None, typer.Option(help=".npy file of booleans: true blanks that row's slot")] = None,
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
) -> None:
    """At a site: sketch its own private records and charge its own ledger."""
    from distqexp import api

    api.sketch(
        plan,
        data,
        out,
        release=release,
        shard=shard,
        labels=labels,
        blank=blank,
        population=population,
        insecure_noise_seed=insecure_noise_seed,
    )


@app.command(epilog="example: distqexp pool plan.h5 ccu.h5 csru.h5 --out quadratic-000.h5")
def pool(
    plan: PlanPath,
    sketches: Annotated[list[Path], typer.Argument(help="sketch files of one round: exactly the plan's shards")],
    out: Annotated[Path, typer.Option(help="the pooled quadratic to write; as sensitive as the records")],
) -> None:
    """At the curator: add the sites' integer sketches."""
    from distqexp.stages.pool import pool_by_hand  # not distqexp.api: this command needs no torch

    pool_by_hand(plan, sketches, out)


@app.command(epilog="example: distqexp release plan.h5 quadratic-000.h5 --config configs/icu.toml --out release-000.h5")
def release(
    plan: PlanPath,
    quadratic: Annotated[Path, typer.Argument(help="the pooled quadratic of the round; deleted afterwards")],
    out: Annotated[Path, typer.Option(help="the release file to write")],
    previous: Annotated[Path | None, typer.Option(help="the release before, from the second round on")] = None,
    config: ConfigOption = None,
    overrides: Overrides = None,
    keep_quadratic: Annotated[bool, typer.Option("--keep-quadratic", help="don't delete the quadratic file")] = False,
    insecure_noise_seed: Seed = None,
) -> None:
    """At the curator: charge the ledger, draw the sample, store the release and the next round's state."""
    from distqexp import api
    from distqexp.artefacts.plan import Plan
    from distqexp.artefacts.release import diagnostics_of

    made = api.release(
        plan,
        quadratic,
        out,
        previous=previous,
        config=api.load_config(config, overrides or []) if config else None,
        insecure_noise_seed=insecure_noise_seed,
        keep_quadratic=keep_quadratic,
    )
    told = diagnostics_of(Plan.read(plan), made)
    if told is not None:
        _say(f"round {made.round + 1}: {told.line()} (released: paid for)")


@app.command(epilog="example: distqexp void plan.h5 --out void-000.h5   (a later round: --release release-000.h5)")
def void(
    plan: PlanPath,
    out: Annotated[Path, typer.Option(help="the void file to write; public")],
    release: Annotated[Path | None, typer.Option(help="the release that the void round builds on")] = None,
) -> None:
    """At the coordinator: give a round up that was never drawn, for ever, so that the sites can take their charge back."""
    from distqexp import api

    found = api.void(plan, out, release=release)
    _say(
        f"round {found.round} of plan {found.plan_id[:16]} is void: it is never released (ledger entry {found.entry.number})",
        f"{out}: for each site that sketched it: distqexp ledger accept-void; it is not signed yet, hand it on by a way they trust",
    )


@app.command(epilog="example: distqexp export plan.h5 release-000.h5 --config configs/icu.toml --out model")
def export(
    plan: PlanPath,
    releases: Annotated[list[Path], typer.Argument(help="the releases of all rounds")],
    out: Annotated[Path, typer.Option(help="the folder to write: weights and certificate")],
    config: ConfigOption = None,
    overrides: Overrides = None,
) -> None:
    """Write the weights and the certificate; with --config, print metrics before and after."""
    from distqexp import api

    certificate, metrics = api.export(
        plan, releases, out, config=api.load_config(config, overrides or []) if config else None
    )
    _say(certificate["statement"])
    if config:
        _say(json.dumps(metrics, sort_keys=True))


@app.command(epilog="example: distqexp inspect plan.h5")
def inspect(file: Annotated[Path, typer.Argument(help="any distqexp file")]) -> None:
    """Tell a person what a file is. Of private files the header only."""
    from distqexp.storage.inspect import describe

    _say(describe(file))


@app.command(epilog="example: distqexp verify runs/digits   (or: distqexp verify model plan.h5 release-000.h5)")
def verify(
    paths: Annotated[list[Path], typer.Argument(help="distqexp files, certificates, or folders of a run")],
) -> None:
    """Check checksums and identities, every figure of plan and releases, and a certificate against them, its model and the ledger."""
    from distqexp.stages.verify import verify_paths

    _say(*verify_paths(paths))


@ledger_app.command("show", epilog="example: distqexp ledger show --population icu")
def ledger_show(population: Annotated[str | None, typer.Option(help="this population only")] = None) -> None:
    """Print every charge, what the charges add up to, and the caps."""
    from distqexp.privacy.ledger import Ledger

    ledger = Ledger.open(create=False)
    rows = ledger.rows(population)
    for row in rows:
        part = f", part {row.part.number} of {row.part.parts}" if row.part else ""
        unit = f"unit {row.unit}" if row.unit else "unit unknown"
        _say(
            f"{row.id}: {row.time} {row.population}, {row.key}{part}: mu {row.event.mu:.6g}, {row.adjacency}, {row.state}, {unit}"
            + ("" if row.private else f", NOT PRIVATE ({row.universe})")
        )
    for name in sorted({row.population for row in rows} | ({population} if population else set())):
        for plan in sorted(plan for plan, local in ledger.accepted().items() if local == name != plan):
            _say(f"{name}: plans call it {plan!r}")
        cap = ledger.cap(name)
        capped = cap and cap.line()
        _say(f"{name}: {capped or 'no cap set: a config has its own budget as the cap'}")
        guarantee = ledger.spent(name)  # seeded test runs protect nobody and are not in it
        deltas = [cap.delta] if cap else [1e-5, 1e-6]
        figures = ", ".join(f"epsilon {guarantee.epsilon(delta):.6g} at delta {delta:g}" for delta in deltas)
        pure = f", epsilon {guarantee.pure:.6g} at delta 0" if 0 < guarantee.pure < math.inf else ""
        _say(f"{name}: spent in all: mu {guarantee.mu:.6g}, {figures}{pure}")


@ledger_app.command(
    "cap",
    epilog="example: distqexp ledger cap icu --epsilon 2 --delta 1e-5 --unit pid --records-per-unit 50   (or without the last two)",
)
def ledger_cap(
    population: Annotated[str, typer.Argument(help="the name in data.population, or the one that this site gave it")],
    epsilon: Annotated[float, typer.Option(help="cap on epsilon")],
    delta: Annotated[float, typer.Option(help="cap on delta")],
    unit: Annotated[
        str | None, typer.Option(help="for each of these: the column of the unit ids, or record; as before when absent")
    ] = None,
    records_per_unit: Annotated[
        int | None,
        typer.Option(
            help="no unit has more records in any data that are charged: plans for single records count for so many"
        ),
    ] = None,
) -> None:
    """Set the cap of a population. No config can raise it."""
    from distqexp.privacy.ledger import Ledger

    ledger = Ledger.open()
    ledger.set_cap(population, epsilon, delta, unit, records_per_unit)
    cap = ledger.cap(population)
    if cap is not None:
        _say(f"{population}: {cap.line()}")


@ledger_app.command("accept-void", epilog="example: distqexp ledger accept-void void-000.h5")
def ledger_accept_void(
    file: Annotated[Path, typer.Argument(help="the void file, from the coordinator itself")],
) -> None:
    """At a site: take the charge back for a round that the coordinator voided, once."""
    from distqexp import api

    for row in api.accept_void(file):
        _say(f"{row.id}: {row.population}, {row.key}: mu {row.event.mu:.6g} given back")


@ledger_app.command("head", epilog="example: distqexp ledger head")
def ledger_head() -> None:
    """Print number and hash of the newest entry as one line N:HASH, to note elsewhere."""
    from distqexp import api

    _say(api.ledger_head())


@ledger_app.command("verify", epilog="example: distqexp ledger verify   (with a noted head: --head 12:9f2c...)")
def ledger_verify(
    head: Annotated[
        str | None,
        typer.Option(metavar="N:HASH", help="a head that was noted elsewhere; the ledger must hold that entry"),
    ] = None,
) -> None:
    """Check the hash chain, and that the ledger still holds a noted head."""
    from distqexp import api

    api.ledger_verify(head)
    _say("ledger: the hash chain holds" + (f", and holds the noted head {head.strip()}" if head else ""))


@app.command(epilog="example: distqexp tune configs/digits.toml --out runs/tuned --epsilon 1 --epsilon 4")
def tune(
    out: Annotated[
        Path, typer.Option(help="the folder of tuned-epsE.toml, trials.csv and tune.png; goes on with an old one")
    ],
    config: ConfigPath = None,
    epsilon: Annotated[list[float] | None, typer.Option(help="target; the config's own when absent")] = None,
    overrides: Overrides = None,
    trials: Annotated[int | None, typer.Option(help="settings to try, in the place of tune.trials")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")] = False,
) -> None:
    """Choose hyperparameters on public records that play the private ones. Opens no private file, charges nothing."""
    from distqexp.tuning import tune as tune_config

    found = tune_config(config, out, epsilon or [], overrides or [], trials)
    for tuned in found:
        _say(*tuned.lines)
    if as_json:
        chosen = {f"{tuned.epsilon:g}": tuned.summary() for tuned in found}
        _say(json.dumps({"out": str(out), "epsilons": chosen}, sort_keys=True))


@app.command(
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
    canaries: Annotated[
        int | None, typer.Option(help="audit one whole run with so many made-up records among public ones")
    ] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")] = False,
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
    if canaries is not None and draws is not None:
        raise UsageError("--draws: found with --canaries, which makes one run; expected one of the two")
    found: api.Audit | api.RunAudit
    if canaries is not None:
        config = api.load_config(source, overrides or [])
        found = api.audit_run(config, canaries, out, insecure_noise_seed=insecure_noise_seed)
    elif source is not None:
        found = api.audit(source, out, draws=100_000 if draws is None else draws)
    _say(*found.lines())
    if as_json:
        _say(json.dumps(found.tree(), sort_keys=True))
    if not found.holds:
        raise typer.Exit(1)


def _later(name: str, help_text: str) -> None:
    @app.command(
        name,
        help=help_text,
        epilog="not available yet",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def command() -> None:
        raise NotAvailableYet(f"distqexp {name}")


_later("doctor", "Check this machine (not available yet).")
_later("cost", "Forecast time and memory (not available yet).")


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def main() -> None:
    """Entry point of the ``distqexp`` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code. ``--debug`` adds the places of a traceback to an error."""
    from distqexp.engines.base import exit_code, places, reason

    debug = "--debug" in arguments
    try:
        code = app(args=[word for word in arguments if word != "--debug"], prog_name="distqexp", standalone_mode=False)
        return int(code or 0)
    except Exception as error:  # noqa: BLE001 - whatever went wrong, people get one line and a script its exit code
        if hasattr(error, "format_message"):  # the command line parser's own errors, whichever library it comes from
            sys.stderr.write(f"distqexp: {' '.join(error.format_message().split())} See --help.\n")
            return 2
        if not getattr(error, "reported", False):
            sys.stderr.write((places(error) if debug else "") + f"distqexp: {reason(error)}\n")
        return exit_code(error)
