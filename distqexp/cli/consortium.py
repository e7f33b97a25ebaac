"""The commands of a consortium: ``distqexp site``, ``study``, ``helper`` and ``log``."""

from __future__ import annotations

import getpass
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distqexp.cli.options import Blank, ConfigOption, Labels, Overrides, OwnRecords, Weights, Yes, own_config, say
from distqexp.cli.remarks import teller

if TYPE_CHECKING:
    from distqexp.config import Config

site = typer.Typer(help="A party's keys and card.", rich_markup_mode=None)
study = typer.Typer(help="A study of a consortium: signed files in one folder.", rich_markup_mode=None)
helper = typer.Typer(help="A helper of a study, who takes masks off sums.", rich_markup_mode=None)
log = typer.Typer(help="A party's signed log.", rich_markup_mode=None)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="the folder of messages that the parties exchange")]


def ask_passphrase() -> str | None:
    """Return the passphrase from DISTQEXP_PASSPHRASE_FILE, else what a person types, else None."""
    from distqexp.federation.keys import passphrase_from

    return passphrase_from(lambda: getpass.getpass("passphrase: ") if sys.stdin.isatty() else None)


def new_passphrase() -> str:
    """Return a new passphrase, which a person types twice. Raises UsageError where there is none, or the two differ."""
    from distqexp.errors import UsageError
    from distqexp.federation.keys import PASSPHRASE_VARIABLE

    words = ask_passphrase()
    if words is None:
        raise UsageError(f"--passphrase: none given; expected a terminal, or {PASSPHRASE_VARIABLE}=FILE")
    asked = words and not os.environ.get(PASSPHRASE_VARIABLE)
    if asked and getpass.getpass("the same passphrase again: ") != words:
        raise UsageError("--passphrase: typed differently the second time; expected the same twice: no keys were drawn")
    return words


def _own_config(path: Path | None, overrides: list[str] | None) -> Config | None:
    """Return the coordinator's config where it is given. Raises UsageError where there is no such file."""
    from distqexp.errors import UsageError

    if path is not None and not path.exists():
        raise UsageError(f"--config {path}: no such file; expected the config that the study's plan was made of")
    return own_config(path, overrides) if path else None


@site.command("init", epilog="example: distqexp site init north")
def init(
    name: Annotated[str, typer.Argument(help="the party's name; a site has the name of its shard")],
    passphrase: Annotated[
        bool,
        typer.Option(
            "--passphrase",
            help="encrypt the keys under a passphrase: typed, or the first line of DISTQEXP_PASSPHRASE_FILE, of mode 600",
        ),
    ] = False,
) -> None:
    """Draw the keys of a party (site, helper or coordinator) into its own folder, DISTQEXP_HOME."""
    from distqexp.consortium.home import Home

    home = Home()
    home.require_new(name)
    card = home.create(name, new_passphrase() if passphrase else None).card
    say(
        f"{card.name}: keys in {home.folder}",
        f"card for the others: {home.card_path(card.name)}",
        f"fingerprint: {card.fingerprint}",
    )


@site.command("card", epilog="example: distqexp site card --out north.card")
def card(out: Annotated[Path | None, typer.Option(help="copy the card to a new file")] = None) -> None:
    """Show the party's card and its fingerprint, which people compare by telephone."""
    from distqexp.consortium.home import Home

    own = Home().card(ask_passphrase)
    if out is not None:
        own.write(out)
    say(own.to_bytes().decode(), f"fingerprint: {own.fingerprint}")


@study.command(
    "new",
    epilog="example: distqexp study new sepsis --plan plan.h5 --site north.card --site south.card --helper ethics.card "
    "--helper archive.card --k-min 2 --trust helper-masks --out study.toml",
)
def new(
    name: Annotated[str, typer.Argument(help="the study's name")],
    plan: Annotated[Path, typer.Option(help="plan.h5, which fixes model, epsilon, rounds and noise")],
    sites: Annotated[list[Path], typer.Option("--site", help="a site's card; its name is that of a shard of the plan")],
    out: Annotated[Path, typer.Option(help="the study to write, for people to read; not signed yet")],
    k_min: Annotated[int, typer.Option(help="the least number of sites whose sums are ever released")],
    trust: Annotated[
        str, typer.Option(help="trusted-curator, helper-masks or helper-masks-distributed-noise")
    ] = "helper-masks",
    helpers: Annotated[list[Path] | None, typer.Option("--helper", help="a helper's card: 2 to 4, or none")] = None,
) -> None:
    """At the coordinator: write a study of a plan and the parties' cards."""
    from distqexp.artefacts.plan import Plan
    from distqexp.consortium.beginning import Terms, cards, study_of, write_study
    from distqexp.consortium.home import Home
    from distqexp.errors import UsageError
    from distqexp.federation.plain_words import in_plain_words
    from distqexp.federation.study import Trust

    if trust not in list(Trust):
        raise UsageError(f"--trust {trust}; expected one of {', '.join(Trust)}")
    terms = Terms(name, cards(sites), cards(helpers or []), Trust(trust), k_min)
    made = study_of(Plan.read(plan), Home().card(ask_passphrase), terms)
    write_study(made, out)
    say(*in_plain_words(made), f"{out}: read it, then distqexp study sign {out} --plan {plan} --folder FOLDER")


@study.command("sign", epilog="example: distqexp study sign study.toml --plan plan.h5 --folder exchange")
def sign(
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="study.toml")],
    plan: Annotated[Path, typer.Option(help="its plan")],
    folder: Annotated[Path, typer.Option(help="the new folder that the parties will exchange")],
) -> None:
    """At the coordinator: sign a study and its plan, once, and begin the folder that the parties exchange.

    Another call delivers the same messages again. A coordinator that is a site of its study accepts it, too.
    """
    from distqexp.consortium.beginning import sign as sign_study

    say(
        *(str(path) for path in sign_study(file, plan, folder, ask_passphrase)),
        f"what comes next, at every other party: distqexp study show {folder} --coordinator CARD, then distqexp study accept {folder} "
        "--coordinator CARD",
    )


@study.command("show", epilog="example: distqexp study show exchange --coordinator office.card")
def show(
    source: Annotated[Path, typer.Argument(help="the study's folder, its message, or study.toml")],
    coordinator: Annotated[Path | None, typer.Option(help="the coordinator's card, to check the signature")] = None,
) -> None:
    """Say in plain words what will be computed, what leaves a site, and what each party could learn."""
    from distqexp.consortium.beginning import shown
    from distqexp.federation.keys import Card
    from distqexp.federation.plain_words import in_plain_words

    found, checked = shown(source, Card.read(coordinator) if coordinator else None)
    say(*in_plain_words(found))
    for one in (found.coordinator, *found.sites, *found.helpers):
        say(f"{one.name}: fingerprint {one.fingerprint}")
    say(
        f"Signed by {found.coordinator.name}, with the key of {coordinator}."
        if checked
        else "Nobody's signature was checked: give --coordinator CARD."
    )


@study.command(
    "accept",
    epilog="example: distqexp study accept exchange --coordinator office.card --population icu --not-elsewhere",
)
def accept(
    folder: Folder,
    coordinator: Annotated[Path, typer.Option(help="the coordinator's card, from elsewhere than the folder")],
    population: Annotated[
        str | None, typer.Option(help="at a site: its own name of the plan's population, where its ledger knows others")
    ] = None,
    cap: Annotated[
        float | None, typer.Option(help="at a site: the epsilon that these patients may spend in all their studies")
    ] = None,
    elsewhere: Annotated[
        bool | None,
        typer.Option(
            "--elsewhere/--not-elsewhere", help="at a site: whether its patients may be at other sites of the study"
        ),
    ] = None,
    weights: Weights = None,
) -> None:
    """At a site or helper: accept a study and its plan, for good. Later visits refuse everything else."""
    from distqexp.consortium.beginning import Acceptance
    from distqexp.consortium.beginning import accept as accept_study
    from distqexp.federation.keys import Card

    if elsewhere is None and sys.stdin.isatty():
        elsewhere = typer.confirm("May your patients be at other sites of the study too?")
    given = Acceptance(folder, Card.read(coordinator), population, cap, elsewhere, weights)
    accepted = accept_study(given, ask_passphrase)
    say(
        f"study {accepted.name} ({accepted.study_id[:16]}) is accepted, with plan {accepted.plan_id[:16]} and no other",
        f"what comes next: distqexp study status {folder}",
    )


@study.command("sketch", epilog="example: distqexp study sketch exchange --data north.csv")
def sketch(
    folder: Folder,
    data: OwnRecords = None,
    labels: Labels = None,
    tokenizer: Annotated[Path | None, typer.Option(help="folder of the tokenizer, for text")] = None,
    blank: Blank = None,
    weights: Weights = None,
    yes: Yes = False,
) -> None:
    """At a site: take what the coordinator sent, sketch the round once, charge the ledger, sign and send."""
    from distqexp.config import EngineConfig
    from distqexp.consortium.site import Records, sketch_visit
    from distqexp.engines import make_engine

    tell = teller("distqexp check on the study's plan" + (f" --data {data}" if data else ""), yes)
    records = Records(data, labels, tokenizer, blank, weights, tell)
    with make_engine(EngineConfig(), os.environ) as engine:
        lines = sketch_visit(folder, records, ask_passphrase, engine)
        say(*(lines if engine.is_root else ()))


@study.command("close", epilog="example: distqexp study close exchange")
def close(folder: Folder) -> None:
    """At the coordinator: close the round over the sites that sent; who comes later is not in it."""
    from distqexp.consortium.coordinator import close as close_round

    say(*close_round(folder, ask_passphrase))


@study.command("release", epilog="example: distqexp study release exchange --config consortium.toml")
def release(folder: Folder, config: ConfigOption = None, overrides: Overrides = None, weights: Weights = None) -> None:
    """At the coordinator: release the closed round, once, with receipts that the sites check."""
    from distqexp.config import EngineConfig
    from distqexp.consortium.releasing import release as release_study
    from distqexp.engines import make_engine

    own = _own_config(config, overrides)
    with make_engine(EngineConfig(), os.environ) as engine:
        lines = release_study(folder, ask_passphrase, engine, config=own, weights=weights)
        say(*(lines if engine.is_root else ()))


@study.command("repeat", epilog="example: distqexp study repeat exchange")
def repeat(folder: Folder) -> None:
    """At the coordinator: ask the listed sites to send a closed round again, where a helper can't answer. No charge."""
    from distqexp.consortium.coordinator import repeat as repeat_round

    say(*repeat_round(folder, ask_passphrase))


@study.command("void", epilog="example: distqexp study void exchange")
def void(
    folder: Folder, yes: Annotated[bool, typer.Option("--yes", help="don't ask; on a terminal alone is asked")] = False
) -> None:
    """At the coordinator: give up, for ever, a round that was never drawn, and the study; sites get their charge for it back, once."""
    from distqexp.consortium.coordinator import void as void_study

    def sure(consequences: str) -> bool:
        return typer.confirm(f"{consequences}\nVoid it?")

    say(*void_study(folder, ask_passphrase, sure if sys.stdin.isatty() and not yes else lambda consequences: True))


@study.command("export", epilog="example: distqexp study export exchange --out model --config consortium.toml")
def export(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="the folder to write: weights, certificate, study, who could learn what")],
    config: ConfigOption = None,
    overrides: Overrides = None,
    weights: Weights = None,
) -> None:
    """At the coordinator: write the model and its certificate after the last round."""
    from distqexp.consortium.releasing import export as export_study

    own = _own_config(config, overrides)
    certificate, metrics = export_study(folder, out, ask_passphrase, config=own, weights=weights)
    say(certificate["statement"])
    if config:
        say(json.dumps(metrics, sort_keys=True))


@study.command("status", epilog="example: distqexp study status exchange")
def status(folder: Folder) -> None:
    """Say where a study stands, and each party's next step and command."""
    from distqexp.consortium.status import status as status_of

    say(*status_of(folder))


@helper.command(
    "answer", epilog="example: distqexp helper answer exchange/closing-000-00-office-0123456789abcdef.message"
)
def answer(closing: Annotated[Path, typer.Argument(help="the coordinator's closing, in the study's folder")]) -> None:
    """At a helper: answer a closing, once a round, for one list of sites."""
    from distqexp.consortium.answering import answer as answer_closing

    say(*answer_closing(closing, ask_passphrase))


@log.command("show", epilog="example: distqexp log show")
def show_log() -> None:
    """Print the party's own log, checked line by line."""
    from distqexp.consortium.home import Home
    from distqexp.federation.log import verify_log

    home = Home()
    for entry in verify_log(home.log_path, home.card(ask_passphrase)):
        say(f"{entry.number}: {entry.time} {json.dumps(dict(entry.event), sort_keys=True)}")


@log.command("verify", epilog="example: distqexp log verify --file north-log.jsonl --card north.card --noted 12:HASH")
def verify(
    file: Annotated[Path | None, typer.Option(help="another party's log; the own one when absent")] = None,
    card: Annotated[Path | None, typer.Option(help="that party's card")] = None,
    noted: Annotated[str | None, typer.Option(help="an anchor N:HASH that was noted elsewhere")] = None,
) -> None:
    """Check a log: every line's hash, signature and place, and that a noted line is in it."""
    from distqexp.consortium.home import Home
    from distqexp.errors import UsageError
    from distqexp.federation.keys import Card
    from distqexp.federation.log import verify_log
    from distqexp.privacy.ledger.head import Anchor

    if (file is None) != (card is None):
        raise UsageError("log verify: a file without its party's card, or a card alone; expected both or neither")
    home = Home()
    path, whose = file or home.log_path, Card.read(card) if card else home.card(ask_passphrase)
    entries = verify_log(path, whose, Anchor.parse(noted, "distqexp log verify") if noted else None)
    last = f"{entries[-1].number}:{entries[-1].hash}" if entries else "no line"
    say(f"{path}: {len(entries)} lines of {whose.name}, whole and signed; the last is {last}")


@log.command("mend", epilog="example: distqexp log mend")
def mend() -> None:
    """Remove a last line that a crash cut short; its event was never confirmed."""
    from distqexp.consortium.home import Home

    home = Home()
    say(f"{home.log_path}: {home.log(home.identity(ask_passphrase)).mend()} bytes removed")
