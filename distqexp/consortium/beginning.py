"""How a study begins: the coordinator derives it from a plan and signs it; every other party accepts it, and nothing else later."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from distqexp.artefacts.named import described
from distqexp.artefacts.plan import Plan
from distqexp.consortium.exchange import Found, deliver, found_in, sent_messages
from distqexp.consortium.home import Ask, Home
from distqexp.consortium.journal import Journal, OwnWordsError
from distqexp.consortium.pins import PLAN_FILE, STUDY_FILE, Pins, accepted
from distqexp.errors import FileContentError, UsageError
from distqexp.federation.keys import Card, Identity
from distqexp.federation.messages import check_message, extract_message, peek, write_message
from distqexp.federation.study import LARGEST_STUDY, Study, Trust, read_study, sign_study
from distqexp.privacy.ledger import Cap, Ledger
from distqexp.privacy.ledger.populations import PlanPopulation
from distqexp.problem.models import require_allowed_factory
from distqexp.stages.charging import Charging, check_budget
from distqexp.stages.naming import charging_at_site
from distqexp.stages.own_weights import completed_plan
from distqexp.storage.atomic import write_atomic
from distqexp.storage.canonical import canonical_json


def model_digest(plan: Plan) -> str:
    """Return the SHA-256 of a plan's pretrained weights: the same for a plan that holds them and one that names them."""
    weights = {name: described(array) for name, array in plan.weights.items()} | dict(plan.named)
    return hashlib.sha256(b"distqexp model\n" + canonical_json(weights)).hexdigest()


@dataclass(frozen=True)
class Terms:
    """What a coordinator decides about a study beside its plan."""

    name: str
    sites: tuple[Card, ...]
    helpers: tuple[Card, ...]
    trust: Trust
    k_min: int


def study_of(plan: Plan, coordinator: Card, terms: Terms) -> Study:
    """Return the study of a plan: its figures are the plan's. Raises UsageError where plan and terms don't fit."""
    config = plan.config
    tolerated = config.mechanism.tolerated_sites
    names = sorted(card.name for card in terms.sites)
    if names != sorted(config.shards):
        raise UsageError(
            f"study {terms.name}: sites {', '.join(names)}; expected the plan's shards {', '.join(sorted(config.shards))}: a site "
            "has the name of its shard"
        )
    if config.mechanism.parts > 1:
        raise UsageError(
            f"study {terms.name}: mechanism.parts {config.mechanism.parts} in the plan; expected 1 in a study"
        )
    if (terms.trust is Trust.SHARED_NOISE) != (tolerated > 0):
        raise UsageError(
            f"study {terms.name}: trust {str(terms.trust)!r} with mechanism.tolerated_sites {tolerated} in the plan; expected "
            f"{'1 or more' if terms.trust is Trust.SHARED_NOISE else '0'}: the plan fixes who draws the noise"
        )
    return Study(
        name=terms.name, plan_id=plan.plan_id, model=model_digest(plan), coordinator=coordinator, sites=terms.sites,
        helpers=terms.helpers, k_min=terms.k_min, epsilon=config.privacy.epsilon, delta=config.privacy.delta, unit=config.unit,
        adjacency=config.privacy.adjacency, presence=config.privacy.presence, rounds=config.mechanism.rounds, trust=terms.trust,
        tolerated=tolerated,
    )  # fmt: skip


def require_of_plan(study: Study, plan: Plan) -> None:
    """Raise FileContentError unless a study's figures are its plan's."""
    if study.plan_id != plan.plan_id:
        raise FileContentError(
            f"study {study.name}: plan_id {study.plan_id[:16]}, and the plan given is another one, {plan.plan_id[:16]}; expected the "
            "study's: give that as --plan, or make a study of this one"
        )
    expected = study_of(
        plan, study.coordinator, Terms(study.name, study.sites, study.helpers, study.trust, study.k_min)
    )
    for field, wanted in vars(expected).items():
        if getattr(study, field) != wanted:
            raise FileContentError(
                f"study {study.name}: {field} {getattr(study, field)}; expected {wanted}, as its plan has it: make it again"
            )


def sign(study_file: Path, plan_file: Path, folder: Path, ask: Ask, home: Home | None = None) -> list[Path]:
    """Sign a study and its plan, and begin the folder that the parties exchange; return the messages.

    A study is signed once: another call delivers the same messages, into the same folder or another one.

    Raises UsageError where the party is not the study's coordinator, FileContentError where study and plan don't fit, and BudgetError
    where the rounds don't fit what the coordinator's ledger has left.
    """
    home = home or Home()
    identity = home.identity(ask)
    study, plan = Study.parse(study_file, study_file.read_bytes()), Plan.read(plan_file)
    require_of_plan(study, plan)
    if identity.card != study.coordinator:
        raise UsageError(
            f"study {study.name}: signed by {identity.name}; expected its coordinator {study.coordinator.name}"
        )
    if home.folder.is_relative_to(folder.absolute()):
        raise UsageError(
            f"{folder}: the keys of {identity.name} are in it; expected a folder that others may read: choose a new one"
        )
    pins = Pins.read(home.study_folder(study.study_id))
    if pins is None:
        with Ledger.open() as ledger:  # a release that its budget refuses would come after the sites' charges
            check_budget(plan, Charging(ledger), "release")
    folder.mkdir(parents=True, exist_ok=True)
    others = [found for found in found_in(folder) if pins is None or found.header.study != study.study_id]
    if others:
        raise UsageError(f"{folder}: {len(others)} messages in it; expected a new folder for a new study")
    if pins is None:
        pins = _sign_new(home, identity, study, plan_file)
    paths = _signed(home.study_folder(study.study_id), study, pins)
    for path, kind in zip(paths, ("study", "plan"), strict=True):
        deliver(path, folder, check=partial(check_message, path, study.expects(kind), study.roster))
    return [folder / path.name for path in paths]


def _sign_new(home: Home, identity: Identity, study: Study, plan_file: Path) -> Pins:
    """Sign a study and its plan for the first time, and pin the messages: every later call delivers these."""
    own = home.make_study_folder(study.study_id)
    _, study_message = sign_study(study, identity, own / "sent")
    _, plan_message = write_message(own / "sent", identity, study.envelope("plan"), plan_file)
    pins = Pins(study.study_id, study_message, study.plan_id, plan_message)
    _note(home, identity, study, "sign", plan_message)
    _pin(own, study, plan_file, pins)
    return pins


def _signed(own: Path, study: Study, pins: Pins) -> list[Path]:
    """Return the coordinator's copies of the study's and the plan's message. Raises FileContentError where one is gone."""
    copies = {peek(path)[1]: path for path in sent_messages(own)}
    wanted = (pins.study_message, pins.plan_message)
    if missing := [identity for identity in wanted if identity not in copies]:
        raise FileContentError(
            f"{own}: study {study.name} was signed before, and message {missing[0][:16]} is not in it; expected what was sent: restore "
            "the home"
        )
    return [copies[identity] for identity in wanted]


@dataclass(frozen=True)
class Acceptance:
    """What a party says when it accepts a study.

    Attributes:
        folder: The folder that the parties exchange.
        coordinator: The coordinator's card, from elsewhere.
        population: At a site, its own name of the plan's population; None where the ledger knows it.
        cap: At a site, the epsilon that these patients may have spent in all, where the ledger has no cap yet.
        elsewhere: At a site, whether its patients may be at other sites too.
        weights: At a site, its copy of the pretrained weights, where the plan names them.
    """

    folder: Path
    coordinator: Card
    population: str | None = None
    cap: float | None = None
    elsewhere: bool | None = None
    weights: Path | None = None


def accept(given: Acceptance, ask: Ask, home: Home | None = None) -> Study:
    """Accept a study, after every check that can be made before a record is read; later visits refuse everything else.

    Raises:
        UsageError: The party is none of the study's, or something that only it knows is missing.
        FileContentError: The study or the plan is not signed by the coordinator, or another one was accepted.
        BudgetError: The plan's rounds don't fit what the site's population has left.
    """
    home = home or Home()
    identity = home.identity(ask)
    messages = found_in(given.folder)
    stated = next((one.header.study for one in messages if one.header.kind == "study"), "")
    with Journal(home.log(identity), stated).refusals():
        study = read_study(_only(messages, given.folder, "study").path, given.coordinator)
        if study.roster.get(identity.name) != identity.card:
            raise UsageError(
                f"study {study.name}: {identity.name} with key {identity.card.signing[:16]} is not in it; expected "
                f"{', '.join(study.roster)}: send {study.coordinator.name} the card"
            )
        _accept(study, messages, identity, given, home)
    return study


def _accept(study: Study, messages: list[Found], identity: Identity, given: Acceptance, home: Home) -> None:
    """Check the plan and what only the party knows, and pin both."""
    own, at_site = home.make_study_folder(study.study_id), identity.name in study.site_names
    study_found, plan_found = (_only(messages, given.folder, kind) for kind in ("study", "plan"))
    earlier = Pins.read(own)
    if any(pins.plan_id == study.plan_id and pins.study != study.study_id for pins in accepted(home)):
        raise FileContentError(
            f"study {study.name}: its plan {study.plan_id[:16]} is that of another study accepted here; expected a plan of its own: sums "
            "of two lists of sites would give single sites away"
        )
    if earlier is not None:
        _require_same(study, earlier, (study_found, plan_found), given)
        given = replace(given, population=given.population or earlier.population)
    # A coordinator that is a site too has pins of its own signing, without a site's answers.
    new = earlier is None or (at_site and earlier.population is None)
    if new and at_site:
        _refuse_sketched(study, identity.name)
    copy = own / "received.h5"
    extract_message(plan_found.path, study.expects("plan"), study.roster, copy)
    plan = Plan.read(copy)
    if plan.plan_id != study.plan_id:
        raise FileContentError(
            f"{plan_found.path}: plan {plan.plan_id[:16]}; expected {study.plan_id[:16]}, as the study has it: ask {study.coordinator.name}"
        )
    require_of_plan(study, plan)
    population = _accept_at_site(study, plan, identity.name, given) if at_site else None
    pins = Pins(
        study.study_id, study_found.identity, study.plan_id, plan_found.identity, population, bool(given.elsewhere)
    )
    if earlier is not None and not new and earlier != pins:
        raise OwnWordsError(
            f"study {study.name}: accepted before with other answers (elsewhere {earlier.elsewhere}, population {earlier.population}); "
            "expected the same: what is accepted stays",
            f"study {study.name}: accepted before with other answers; expected the same",
        )
    if at_site:
        _set_cap(study, plan, identity.name, given, pins)
    if new:
        _pin(own, study, copy, pins)
        _note(home, identity, study, "accept", plan_found.identity)
    copy.unlink()


def _require_same(study: Study, earlier: Pins, messages: tuple[Found, Found], given: Acceptance) -> None:
    """Refuse other messages than those accepted before, and another population."""
    for found, pinned in zip(messages, (earlier.study_message, earlier.plan_message), strict=True):
        if found.identity != pinned:
            raise FileContentError(
                f"{found.path}: another {found.header.kind} message than the one accepted, {pinned[:16]}; ask {study.coordinator.name}"
            )
    if earlier.population is not None and given.population not in (None, earlier.population):
        raise OwnWordsError(
            f"study {study.name}: population {given.population!r}; expected {earlier.population!r}, under which it was accepted: what is "
            "accepted stays",
            f"study {study.name}: another population than the one under which it was accepted",
        )


def _refuse_sketched(study: Study, shard: str) -> None:
    """Refuse a plan whose sums left this site without a study: they would be neither signed nor masked, and differ from a study's."""
    with Ledger.open() as ledger:
        if any(row.key.startswith(f"site-{shard}/{study.plan_id}/") for row in ledger.rows()):
            raise FileContentError(
                f"study {study.name}: its plan was sketched here without a study, as the ledger says; expected a plan of its own: ask "
                f"{study.coordinator.name}"
            )


def _accept_at_site(study: Study, plan: Plan, shard: str, given: Acceptance) -> str:
    """Check what only the site knows; return its own name of the population."""
    require_allowed_factory(plan.config.model.factory)
    if given.elsewhere is None:
        raise UsageError(
            f"study {study.name}: not said whether a {study.unit} of yours may be at other sites too; expected --elsewhere or "
            "--not-elsewhere"
        )
    if given.elsewhere and study.presence == 1:
        raise UsageError(
            f"study {study.name}: presence 1, yet a {study.unit} of yours may be at several sites; expected a study with "
            f"privacy.presence of 2 or more: ask {study.coordinator.name}"
        )
    completed_plan(plan, given.weights)
    unit = _unit(plan, shard)
    asked = None if given.cap is None else Cap(given.cap, study.delta)
    with Ledger.open() as ledger:
        name = PlanPopulation(plan.config.data.population, given.population)
        local = ledger.local_population(name)
        if asked is not None and (cap := ledger.cap(local)) is not None and cap.epsilon != asked.epsilon:
            raise UsageError(
                f"--cap {given.cap}: {local} has a cap of epsilon {cap.epsilon} in this ledger; leave it out, or change it with "
                "distqexp ledger cap"
            )
        charging = charging_at_site(plan, Charging(ledger, unit=unit), local)
        check_budget(plan, charging, f"site-{shard}", cap=asked)
    return local


def _set_cap(study: Study, plan: Plan, shard: str, given: Acceptance, pins: Pins) -> None:
    """Set the cap that was given, where the ledger has none: once nothing else refuses the study, for a cap can't be taken back."""
    with Ledger.open() as ledger:
        if given.cap is not None and pins.population is not None and ledger.cap(pins.population) is None:
            ledger.set_cap(pins.population, given.cap, study.delta, _unit(plan, shard))


def _unit(plan: Plan, shard: str) -> str:
    return plan.config.data.private[plan.config.shards.index(shard)].unit_name


def _only(messages: list[Found], folder: Path, kind: str) -> Found:
    """Return the one message of a kind in a folder. Raises FileContentError where there are several, UsageError where none is."""
    found = [one for one in messages if one.header.kind == kind]
    if not found:
        raise UsageError(f"{folder}: no {kind} in it; expected one signed {kind}: get it from the coordinator")
    if len({one.identity for one in found}) > 1:
        raise FileContentError(
            f"{folder}: {len(found)} messages with a {kind}; expected one: a folder is for one study; take the others out"
        )
    return found[0]


def shown(source: Path, coordinator: Card | None) -> tuple[Study, bool]:
    """Return the study of a folder, of a message or of an unsigned file, and whether its coordinator's signature was checked.

    Raises FileContentError, UsageError.
    """
    path = _only(found_in(source), source, "study").path if source.is_dir() else source
    if path.suffix == ".toml":
        return Study.parse(path, _content(path)), False
    if coordinator is not None:
        return read_study(path, coordinator), True
    header, _ = peek(path)
    content = path.read_bytes()[-header.length :] if header.length else b""
    return Study.parse(path, content), False


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_STUDY)
    except OSError:
        raise UsageError(f"{path}: can't be read; expected a study, or the folder of one") from None


def _pin(own: Path, study: Study, plan_file: Path, pins: Pins) -> None:
    write_atomic(own / STUDY_FILE, study.to_bytes(), private=True)
    write_atomic(own / PLAN_FILE, plan_file.read_bytes(), private=True)
    pins.write(own)


def _note(home: Home, identity: Identity, study: Study, event: str, plan_message: str) -> None:
    with Journal(home.log(identity), study.study_id).open() as journal:
        journal.note({"event": event, "plan": study.plan_id, "message": plan_message, "name": study.name})


def write_study(study: Study, out: Path) -> None:
    """Write an unsigned study to a new file, for people to read and for ``sign``. Raises UsageError where there is one."""
    write_atomic(out, study.to_bytes(), new=True)


def cards(paths: Sequence[Path]) -> tuple[Card, ...]:
    """Read cards, in order. Raises FileContentError, UsageError."""
    return tuple(Card.read(path) for path in paths)
