"""The coordinator's side of a study: the visits that its commands make, with FLARE carrying the folder's messages in between.

Everything that is refused, remembered, signed and charged is so by the study's own functions. A run that was cut off goes on where
the folder stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distqexp import api
from distqexp.adapters.nvflare.coordinator import whole_model
from distqexp.adapters.nvflare.exchanged import news_of, receive, sent_by
from distqexp.adapters.nvflare.settings import CoordinatorSettings, party_of
from distqexp.adapters.nvflare.wire import ANSWER, VISIT, Ask, Payload, failures, several
from distqexp.consortium.coordinator import close, open_coordinator, standing_here
from distqexp.consortium.exchange import Found, note
from distqexp.consortium.news import Standing, listed_before
from distqexp.consortium.releasing import export, release
from distqexp.engines.serial import SerialEngine
from distqexp.errors import DistqexpError, EngineError, FileContentError, UsageError
from distqexp.federation.keys import passphrase_from
from distqexp.stages.folder import open_folder


class StudyCoordinator:
    """One run of a study that was signed in the folder of the settings."""

    def __init__(self, settings: CoordinatorSettings) -> None:
        """Open the study and make the folder of the run; nothing is asked or charged. Raises DistqexpError."""
        if settings.exchange is None:
            raise UsageError("settings: no exchange; expected the folder of a study")
        self._settings = settings
        self._folder = settings.exchange
        self._config = None if settings.config is None else api.load_config(settings.config)
        with party_of(settings):
            self._party = open_coordinator(self._folder, passphrase_from)
        self._study = self._party.study
        settings.require_clients("sites", self._study.site_names)
        settings.require_clients("helpers", self._study.helper_names)
        self._delivered: dict[str, set[str]] = {}
        open_folder(settings.out, resume=True, private=True)

    def run(self, ask: Ask) -> dict[str, Any]:
        """Run all rounds that are not released yet, and export; return the certificate, which is public.

        Raises:
            EngineError: Too few clients answered.
            DistqexpError: What the study's visits raise.
        """
        while (standing := self._standing()).round < self._study.rounds:
            if standing.void is not None:
                self._tell(ask, self._settings.sites)
                raise UsageError(
                    f"study {self._study.name}: round {standing.round} is void; expected a study that goes on: make another one"
                )
            if standing.closed is None:
                self._collect(standing, ask)
                standing = self._standing()
            self._release(standing, ask)
        with party_of(self._settings):
            certificate = whole_model(
                self._settings.out / "model",
                lambda out: export(
                    self._folder, out, passphrase_from, config=self._config, weights=self._settings.weights
                ),
            )
        self._tell(ask, list(self._delivered))
        return certificate

    def _standing(self) -> Standing:
        party = self._party
        with party_of(self._settings), party.journal.refusals(), party.journal.open() as journal:
            return standing_here(party, journal)[0]

    def _collect(self, standing: Standing, ask: Ask) -> None:
        """Ask the sites whose messages are not here yet, and close the attempt over those that sent."""
        at = (standing.round, standing.attempt)
        kinds = ("seed", self._party.sketch_kind)
        listed = listed_before(self._party, news_of(self._party), *at) if standing.attempt else self._study.site_names
        missing = {
            client: name
            for client, name in self._settings.sites.items()
            if name in listed and len(sent_by(self._party, name, kinds, at)) <= len(self._study.helpers)
        }
        answers = ask(VISIT, {client: self._news_for(client) for client in missing})
        for client, name in missing.items():
            if client in answers and not answers[client].code:
                self._note_delivered(client)
                self._take(client, answers[client].payload, kinds, name, at)
        try:
            with party_of(self._settings):
                close(self._folder, passphrase_from)
        except UsageError as error:
            raise EngineError(f"{error} ({failures(missing, answers)})") from None

    def _release(self, standing: Standing, ask: Ask) -> None:
        """Ask the helpers that did not answer the closing yet, and release the round."""
        if standing.closed is None:
            raise EngineError(f"study {self._study.name}: round {standing.round} is not closed; expected a closing")
        closed, at, told = standing.closed, (standing.round, standing.attempt), ""
        missing = {
            client: name
            for client, name in self._settings.helpers.items()
            if not sent_by(self._party, name, ("answer",), at)
        }
        if missing:
            payloads = {client: self._question(closed, name, at) for client, name in missing.items()}
            answers = ask(ANSWER, payloads)
            for client, name in missing.items():
                if client in answers and not answers[client].code:
                    self._take(client, answers[client].payload, ("answer",), name, at)
            told = f" ({failures(missing, answers)})"
        try:
            with party_of(self._settings):
                release(
                    self._folder,
                    passphrase_from,
                    SerialEngine(),
                    config=self._config,
                    weights=self._settings.weights,
                )
        except UsageError as error:
            raise EngineError(f"{error}{told}") from None

    def _question(self, closed: Found, helper: str, at: tuple[int, int]) -> Payload:
        """Return what a helper needs: the closing, and the seed of each listed site that is sealed to it."""
        wanted = {one.seeds[helper]: one.site for one in self._party.closing(closed).listed}
        seeds = [
            one.path.read_bytes()
            for site in wanted.values()
            for one in sent_by(self._party, site, ("seed",), at)
            if one.identity in wanted
        ]
        return {"closing": closed.path.read_bytes(), "seeds": seeds}

    def _take(
        self, client: str, payload: Payload, kinds: tuple[str, ...], name: str, at: tuple[int, int]
    ) -> list[Path]:
        try:
            return receive(self._party, several(payload, "messages"), kinds, name, at)
        except FileContentError as error:
            raise FileContentError(f"client {client}: {error}") from None

    def _tell(self, ask: Ask, clients: Iterable[str]) -> None:
        """Bring sites what ends the study, so that they forget their sums or take charges back. Who is not there misses it."""
        payloads = {client: self._news_for(client) for client in clients}
        try:
            if payloads:
                ask(VISIT, payloads)
        except DistqexpError as error:
            note(f"not every site was told how round and study ended, and keeps its sums until it is: {error}")

    def _news_for(self, client: str) -> Payload:
        """Return what the coordinator told of rounds and this run did not bring to a client yet."""
        known = self._delivered.get(client, set())
        return {"messages": [one.path.read_bytes() for one in news_of(self._party) if one.identity not in known]}

    def _note_delivered(self, client: str) -> None:
        self._delivered[client] = {one.identity for one in news_of(self._party)}
