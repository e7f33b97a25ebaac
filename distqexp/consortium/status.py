"""What stands in a study's folder, and what each party does next, with the command for it. Public facts alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from distqexp.consortium.exchange import Found, found_in, of_study
from distqexp.consortium.home import Home
from distqexp.consortium.news import Standing, answered_before, standing_of
from distqexp.consortium.party import VOID_TAKEN
from distqexp.consortium.pins import accepted, read_own_study
from distqexp.errors import UsageError
from distqexp.federation.closing import Closing
from distqexp.federation.plain_words import all_released
from distqexp.federation.quorum import quorum
from distqexp.federation.study import Study


def status(folder: Path, home: Home | None = None) -> list[str]:
    """Return lines on where a study stands by its folder, which is not checked here, and each party's next step.

    Raises UsageError where the party of this home did not accept the study, FileContentError for a message of another one.
    """
    home = home or Home()
    studies = [read_own_study(home.study_folder(pins.study)) for pins in accepted(home)]
    messages = found_in(folder)
    stated = {found.header.study for found in messages}
    for study in studies:
        if study.study_id in stated:
            here = _Here(folder, study, of_study(messages, study), home.name(), home.study_folder(study.study_id))
            return list(here.lines())
    raise UsageError(
        f"{folder}: no study in it that was accepted here; expected one: distqexp study show {folder}, distqexp study accept {folder} "
        "--coordinator CARD"
    )


class _Here(NamedTuple):
    """A study's folder, and the home of the party that looks."""

    folder: Path
    study: Study
    messages: list[Found]
    me: str
    own: Path

    def lines(self) -> Iterator[str]:
        study, standing = self.study, standing_of(self.messages)
        if standing.void is not None:
            yield f"study {study.name}: round {standing.round} is void; the study has ended"
            yield from self._last_visits(self.own / VOID_TAKEN, "take note of it, once")
        elif standing.round == study.rounds:
            yield f"study {study.name}: {all_released(study)}"
            yield self._step(
                study.coordinator.name, f"export the model: distqexp study export {self.folder} --out model"
            )
            yield from self._last_visits(self.own / f"release-{study.rounds - 1:03d}.h5", "take the last release")
        else:
            yield from self._going_on(standing)

    def _last_visits(self, taken: Path, what: str) -> Iterator[str]:
        """Yield what sites do last, after which they keep no exact sums; ``taken`` is there once this party did it."""
        for site in self.study.site_names:
            if site == self.me and taken.exists() and not any(self.own.glob("sketch-*")):
                yield self._step(site, "nothing is left to do")
            else:
                yield self._step(site, f"{what}: distqexp study sketch {self.folder}")
        for name in self.study.helper_names:
            if name not in self.study.site_names:
                yield self._step(name, "nothing is left to do")

    def _going_on(self, standing: Standing) -> Iterator[str]:
        study, at = self.study, (standing.round, standing.attempt)
        yield f"study {study.name}: round {at[0]} of {study.rounds}, attempt {at[1]}, {'closed' if standing.closed else 'open'}"
        here = [one.header for one in self.messages if (one.header.round, one.header.attempt) == at]
        sent = {header.sender for header in here if header.kind in ("masked", "sketch")}
        if standing.closed is None:
            yield from self._open_steps(sent, at)
        else:
            answered = {header.sender for header in here if header.kind == "answer"}
            yield from self._closed_steps(standing.closed, answered)

    def _open_steps(self, sent: set[str], at: tuple[int, int]) -> Iterator[str]:
        study = self.study
        listed = self._listed(at[0], at[1] - 1) if at[1] else study.site_names
        accepted_yet = any(one.header.sender != study.coordinator.name for one in self.messages)
        first = "" if accepted_yet else "accept, then "
        for site in study.site_names:
            if site in sent:
                yield self._step(site, "wait: sent")
            elif site not in listed:
                yield self._step(site, "wait for the release: the attempt before was closed without it")
            else:
                begin = "" if site == self.me else first
                yield self._step(site, f"{begin}sketch: distqexp study sketch {self.folder} --data FILE")
        needed = len(listed) if at[1] and answered_before(self.messages, at) else study.k_min
        wait = f"{len(sent)} of {len(listed)} sites sent, {needed} are needed"
        enough = len(sent) >= needed
        command = f"close: {wait}: distqexp study close {self.folder}"
        yield self._step(study.coordinator.name, command if enough else f"wait: {wait}")

    def _listed(self, round: int, attempt: int) -> tuple[str, ...]:
        """Return the sites that the closing of an attempt lists; it is not checked here."""
        for path, header, _ in self.messages:
            if (header.kind, header.round, header.attempt) == ("closing", round, attempt):
                return Closing.parse(path, path.read_bytes()[-header.length :], self.study).sites
        return self.study.site_names

    def _closed_steps(self, closed: Found, answered: set[str]) -> Iterator[str]:
        study = self.study
        for helper in study.helper_names:
            text = "wait: answered" if helper in answered else f"answer: distqexp helper answer {closed.path}"
            yield self._step(helper, text)
        missing = max(quorum(len(study.helpers)) - len(answered), 0) if study.helpers else 0
        if missing:
            have = "helper has" if missing == 1 else "helpers have"
            yield self._step(study.coordinator.name, f"wait: {missing} more {have} to answer")
        else:
            yield self._step(study.coordinator.name, f"release: distqexp study release {self.folder} --config CONFIG")
        for site in study.site_names:
            yield self._step(site, "wait for the release")

    def _step(self, name: str, text: str) -> str:
        return f"{'you, ' if name == self.me else ''}{name}: {text}"
