"""What stands in a study's folder, and what each party does next, with the command for it. Public facts alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distqexp.consortium.exchange import Found, found_in, of_study
from distqexp.consortium.home import Home
from distqexp.consortium.news import Standing, standing_of
from distqexp.consortium.pins import STUDY_FILE, accepted
from distqexp.errors import UsageError
from distqexp.federation.plain_words import all_released
from distqexp.federation.quorum import quorum
from distqexp.federation.study import Study


def status(folder: Path, home: Home | None = None) -> list[str]:
    """Return lines on where a study stands by its folder, which is not checked here, and each party's next step.

    Raises UsageError where the party of this home did not accept the study, FileContentError for a message of another one.
    """
    home = home or Home()
    own = [home.study_folder(pins.study) / STUDY_FILE for pins in accepted(home)]
    studies = [Study.parse(path, path.read_bytes()) for path in own]
    messages = found_in(folder)
    stated = {found.header.study for found in messages}
    for study in studies:
        if study.study_id in stated:
            return list(_lines(folder, study, of_study(messages, study), home.card().name))
    raise UsageError(
        f"{folder}: no study in it that was accepted here; expected one: distqexp study show {folder}, distqexp study accept {folder}"
    )


def _lines(folder: Path, study: Study, messages: list[Found], me: str) -> Iterator[str]:
    standing = standing_of(messages)
    if standing.void is not None:
        yield f"study {study.name}: round {standing.round} is void; the study has ended"
        for site in study.site_names:
            yield _step(site, me, f"take a charge back: distqexp study sketch {folder}")
        return
    if standing.round == study.rounds:
        yield f"study {study.name}: {all_released(study)}"
        yield _step(study.coordinator.name, me, f"export the model: distqexp study export {folder} --out model")
        for name in dict.fromkeys((*study.site_names, *study.helper_names)):
            yield _step(name, me, "wait: the coordinator exports the model")
        return
    at = (standing.round, standing.attempt)
    yield f"study {study.name}: round {at[0]} of {study.rounds}, attempt {at[1]}, {'closed' if standing.closed else 'open'}"
    here = [one.header for one in messages if (one.header.round, one.header.attempt) == at]
    sent = {header.sender for header in here if header.kind in ("masked", "sketch")}
    if standing.closed is None:
        yield from _open_steps(folder, study, sent, me)
    else:
        answered = {header.sender for header in here if header.kind == "answer"}
        yield from _closed_steps(folder, study, standing, answered, me)


def _open_steps(folder: Path, study: Study, sent: set[str], me: str) -> Iterator[str]:
    for site in study.site_names:
        yield _step(site, me, "wait: sent" if site in sent else f"sketch: distqexp study sketch {folder} --data FILE")
    enough = len(sent) >= study.k_min
    wait = f"{len(sent)} of {len(study.sites)} sites sent, {study.k_min} are needed"
    yield _step(study.coordinator.name, me, f"{'close' if enough else 'wait'}: {wait}: distqexp study close {folder}")


def _closed_steps(folder: Path, study: Study, standing: Standing, answered: set[str], me: str) -> Iterator[str]:
    closed = standing.closed.path if standing.closed else folder
    for helper in study.helper_names:
        yield _step(helper, me, "wait: answered" if helper in answered else f"answer: distqexp helper answer {closed}")
    missing = max(quorum(len(study.helpers)) - len(answered), 0) if study.helpers else 0
    if missing:
        yield _step(
            study.coordinator.name, me, f"wait: {missing} more helper{'s have' if missing > 1 else ' has'} to answer"
        )
    else:
        yield _step(study.coordinator.name, me, f"release: distqexp study release {folder} --config CONFIG")
    for site in study.site_names:
        yield _step(site, me, "wait for the release")


def _step(name: str, me: str, text: str) -> str:
    return f"{'you, ' if name == me else ''}{name}: {text}"
