"""The commands of ``distqexp ledger``: what was spent, and what may be spent."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distqexp.cli.options import say

if TYPE_CHECKING:
    from distqexp.privacy.ledger import Cap, Ledger, LedgerRow

_HASH = re.compile(r"\b[0-9a-f]{64}\b")

commands = typer.Typer(help="What was spent, and what may be spent.", rich_markup_mode=None)


@commands.command("show", epilog="example: distqexp ledger show icu --delta 1e-6")
def show(
    name: Annotated[str | None, typer.Argument(metavar="POPULATION", help="this population only")] = None,
    population: Annotated[str | None, typer.Option(help="the same")] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="say epsilon at this delta too, such as that of a config; 1e-5, 1e-6 or the cap's"),
    ] = None,
) -> None:
    """Print what the charges of each population add up to, and the caps; then every charge."""
    from distqexp.errors import UsageError
    from distqexp.privacy.ledger import Ledger

    if delta is not None and not 0 < delta < 1:
        raise UsageError(f"--delta {delta!r}; expected a number between 0 and 1")
    if None not in (name, population) and name != population:
        raise UsageError(f"--population {population}: found with {name}; expected one population")
    name = name or population
    ledger = Ledger.open(create=False)
    rows = ledger.rows(name)
    known = {row.population for row in ledger.rows()} | set(ledger.populations())
    for one in [name] if name else sorted(known):
        say(*_population_lines(ledger, one, delta))
        if one not in known:
            say(f"{one}: not on record here; {_known(known)}")
    for row in rows:
        say(_charge_line(row))


def _known(names: set[str]) -> str:
    return f"known are {', '.join(sorted(names))}" if names else "nobody is"


def _charge_line(row: LedgerRow) -> str:
    part = f", part {row.part.number} of {row.part.parts}" if row.part else ""
    unit = f"unit {row.unit}" if row.unit else "unit unknown"
    sampling = getattr(row.event, "sampling", 1.0)
    sampled = f" sampled at {sampling:g}" if sampling < 1 else ""
    key = _HASH.sub(lambda found: found[0][:16], row.key)
    return (
        f"{row.id}: {row.time} {row.population}, {key}{part}: mu {row.event.mu:.6g}{sampled}, {row.adjacency}, {row.state}, {unit}"
        + ("" if row.private else f", NOT PRIVATE ({row.universe})")
    )


def _population_lines(ledger: Ledger, name: str, delta: float | None) -> Iterator[str]:
    """What plans call the population where that differs, its cap, what is left of it, and what its charges add up to."""
    from distqexp.privacy.ledger.left import Left

    for plan in sorted(plan for plan, own in ledger.local_names().items() if own == name != plan):
        yield f"{name}: plans call it {plan!r}"
    cap = ledger.cap(name)
    capped = cap and cap.line()
    yield f"{name}: {capped or 'no cap set: a config has its own budget as the cap'}"
    guarantee = ledger.spent(name)  # seeded test runs protect nobody and are not in it
    if cap:
        yield f"{name}: {Left.of(cap, guarantee, _unit_of(ledger, name, cap)).line()}"
    deltas = [cap.delta] if cap else [1e-5, 1e-6]
    deltas += [delta] if delta is not None and delta not in deltas else []
    figures = ", ".join(f"epsilon {guarantee.epsilon(delta):.6g} at delta {delta:g}" for delta in deltas)
    pure = f", epsilon {guarantee.pure:.6g} at delta 0" if 0 < guarantee.pure < math.inf else ""
    yield f"{name}: spent in all: mu {guarantee.mu:.6g}, {figures}{pure}"


def _unit_of(ledger: Ledger, name: str, cap: Cap) -> str | None:
    """The unit that a cap is for: the declared one, or the only one that charges name."""
    if cap.declaration:
        return cap.declaration.unit
    names = {row.unit for row in ledger.rows(name) if row.private and row.state != "voided"}
    return names.pop() if len(names) == 1 else None


@commands.command(
    "cap",
    epilog="example: distqexp ledger cap icu --epsilon 2 --delta 1e-5 --unit pid --records-per-unit 50   (or without the last two)",
)
def cap(
    population: Annotated[str, typer.Argument(help="the name in data.population, or the one that this site gave it")],
    epsilon: Annotated[float, typer.Option(help="cap on epsilon")],
    delta: Annotated[float, typer.Option(help="cap on delta")],
    unit: Annotated[
        str | None, typer.Option(help="for each of these: the column of the unit ids, or record; as before when absent")
    ] = None,
    records_per_unit: Annotated[
        int | None,
        typer.Option(
            help="no unit has more records than this in any data that are charged: plans for single records count for so many"
        ),
    ] = None,
) -> None:
    """Set the cap of a population. No config can raise it."""
    from distqexp.privacy.ledger import Ledger

    ledger = Ledger.open()
    known = set(ledger.populations())
    ledger.set_cap(population, epsilon, delta, unit, records_per_unit)
    stored = ledger.cap(population)
    if stored is not None:
        new = "" if population in known else f" (new: not on record here so far; {_known(known)})"
        say(f"{population}: {stored.line()}{new}")


@commands.command("accept-void", epilog="example: distqexp ledger accept-void void-000.h5")
def accept_void(
    file: Annotated[Path, typer.Argument(help="the void file, from the coordinator itself")],
) -> None:
    """At a site: take the charge back for a round that the coordinator voided, once."""
    from distqexp import api

    for row in api.accept_void(file):
        say(f"{row.id}: {row.population}, {row.key}: mu {row.event.mu:.6g} given back")


@commands.command("head", epilog="example: distqexp ledger head")
def head() -> None:
    """Print number and hash of the newest entry as one line N:HASH, to note elsewhere."""
    from distqexp import api

    say(api.ledger_head())


@commands.command("verify", epilog="example: distqexp ledger verify   (with a noted head: --head 12:9f2c...)")
def verify(
    head: Annotated[
        str | None,
        typer.Option(metavar="N:HASH", help="a head that was noted elsewhere; the ledger must hold that entry"),
    ] = None,
) -> None:
    """Check the hash chain, and that the ledger still holds a noted head."""
    from distqexp import api

    api.ledger_verify(head)
    say("ledger: the hash chain holds" + (f", and holds the noted head {head.strip()}" if head else ""))
