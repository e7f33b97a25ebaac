"""The coordinator's side: a plan's rounds, each asked of the sites, pooled and released; then the model.

A run that was cut off goes on with the same folder: released rounds stay, a pooled sum that is there is released, and other
rounds are asked again, for which no site is charged twice.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distqexp import api
from distqexp.adapters.nvflare.settings import CoordinatorSettings
from distqexp.adapters.nvflare.site import require_one_part
from distqexp.adapters.nvflare.wire import ANSWER, MASK, SKETCH, Answer, Ask, Payload, field, meaning
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.sums import Quadratic
from distqexp.errors import EngineError, FileContentError, UsageError
from distqexp.federation.keys import Identity
from distqexp.federation.messages import peek
from distqexp.federation.pooling import Pool
from distqexp.federation.receiving import Taken
from distqexp.federation.study import Study
from distqexp.stages.folder import open_folder, quadratic_path, release_path
from distqexp.storage.atomic import write_atomic
from distqexp.storage.canonical import canonical_json
from distqexp.storage.hdf5 import read_header


class Coordinator:
    """One run of a plan, in the folder of its settings."""

    def __init__(self, settings: CoordinatorSettings) -> None:
        """Read plan and study and make the folder; nothing is asked or charged. Raises DistqexpError."""
        self._settings = settings
        self._plan = Plan.read(settings.plan)
        self._config = None if settings.config is None else api.load_config(settings.config)
        self._party = settings.party()
        self._taken = Taken()
        self._require_clients()
        open_folder(settings.out, resume=True, private=True)
        plan = settings.out / "plan.h5"
        if not plan.exists():
            write_atomic(plan, settings.plan.read_bytes(), new=True)
        read_header(plan, kind="plan", plan_id=self._plan.plan_id)

    def run(self, ask: Ask) -> dict[str, Any]:
        """Run all rounds that are not released yet, and export; return the certificate, which is public.

        Raises:
            EngineError: A client did not answer, or failed.
            DistqexpError: What the stages raise.
        """
        settings = self._settings
        rounds = self._plan.config.mechanism.rounds
        for round in range(rounds):
            if not release_path(settings.out, round).exists():
                self._run_round(round, ask)
        return self._export([release_path(settings.out, round) for round in range(rounds)])

    def _export(self, releases: list[Path]) -> dict[str, Any]:
        """Write the model's folder, all of it or nothing; return the certificate."""
        settings = self._settings
        out, unfinished = settings.out / "model", settings.out / ".model-unfinished"
        if not out.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            api.export(
                settings.plan,
                releases,
                unfinished,
                config=self._config,
                ledger=settings.ledger,
                weights=settings.weights,
            )
            unfinished.rename(out)
        certificate: dict[str, Any] = json.loads((out / "certificate.json").read_bytes())
        return certificate

    def _run_round(self, round: int, ask: Ask) -> None:
        settings = self._settings
        quadratic = quadratic_path(settings.out, round)
        if not quadratic.exists():
            with tempfile.TemporaryDirectory(prefix=".pooling-", dir=settings.out) as folder:
                self._pool(round, ask, Path(folder))
        api.release(
            settings.plan,
            quadratic,
            release_path(settings.out, round),
            previous=self._releases(round) or None,
            config=self._config,
            insecure_noise_seed=settings.insecure_noise_seed,
            ledger=settings.ledger,
            keep_quadratic=settings.keep_quadratics,
            weights=settings.weights,
        )

    def _pool(self, round: int, ask: Ask, folder: Path) -> None:
        settings = self._settings
        payload: dict[str, Any] = {
            "plan": settings.plan.read_bytes(),
            "releases": [path.read_bytes() for path in self._releases(round)],
        }
        if self._party is not None:
            self._pool_masked(round, ask, payload, folder)
            return
        answers = ask(SKETCH, dict.fromkeys(settings.sites, payload))
        paths = [self._sketch(client, folder, _require(client, answers)) for client in settings.sites]
        api.pool(settings.plan, paths, quadratic_path(settings.out, round))

    def _sketch(self, client: str, folder: Path, payload: Payload) -> Path:
        """Write a site's sketch. Raises FileContentError where it is of a shard that is not this client's."""
        shard = self._settings.sites[client]
        path = folder / f"{shard}.h5"
        write_atomic(path, field(payload, "sketch", bytes), private=True)
        found = read_header(path, kind="sketch", plan_id=self._plan.plan_id).header.get("shard")
        if found != shard:
            raise FileContentError(f"client {client}: sketch of shard {ascii(found)[:60]}; expected its own, {shard}")
        return path

    def _pool_masked(self, round: int, ask: Ask, payload: Payload, folder: Path) -> None:
        """Pool a round over the sites that answered, at least as many as the study wants, with the helpers that did."""
        settings, (study, identity) = self._settings, self._of_study()
        attempt, clients = self._begin_attempt(round)
        task = {**payload, "round": round, "attempt": attempt}
        answers = ask(MASK, dict.fromkeys(clients, task))
        given = {
            client: answers[client].payload for client in clients if client in answers and not answers[client].code
        }
        states = {field(one, "state", str) for one in given.values()}
        if len(states) > 1:
            raise FileContentError(f"round {round}: the sites sketched at {len(states)} states; expected one")
        pool = Pool(study, identity, (round, attempt), self._plan.width, self._taken)
        for client, one in given.items():
            pool.add(self._masked(client, folder, one))
        with api.Ledger.open(settings.ledger) as ledger:
            anchor = ledger.head()
        try:
            closing, _ = pool.close(folder, anchor)
        except UsageError as error:
            raise EngineError(f"{error} ({_failures(clients, answers)})") from None
        write_atomic(self._attempt_file(round, attempt), canonical_json(sorted(given)))
        asked = {
            client: {"closing": closing.read_bytes(), "seeds": [_seed(one, name) for one in given.values()]}
            for client, name in settings.helpers.items()
        }
        sums = pool.unmask(self._answers(asked, ask, folder))
        Quadratic(self._plan.plan_id, round, states.pop(), sums).write(quadratic_path(settings.out, round))

    def _answers(self, asked: Mapping[str, Payload], ask: Ask, folder: Path) -> list[Path]:
        """Return the helpers' answers; unmasking says where they are too few."""
        answers = ask(ANSWER, asked)
        found: list[Path] = []
        for client in asked:
            if client in answers and not answers[client].code:
                path = folder / f"answer-{len(found)}"
                write_atomic(path, field(answers[client].payload, "answer", bytes), private=True)
                found.append(path)
        if not found:
            raise EngineError(f"no helper answered ({_failures(asked, answers)}); run the job again when they can")
        return found

    def _masked(self, client: str, folder: Path, payload: Payload) -> Path:
        """Write a site's masked vector. Raises FileContentError where another party than this client's signed it."""
        name = self._settings.sites[client]
        path = folder / f"masked-{name}"
        write_atomic(path, field(payload, "masked", bytes), private=True)
        sender = peek(path)[0].sender
        if sender != name:
            raise FileContentError(f"client {client}: a masked vector of {sender}; expected its own, {name}")
        return path

    def _begin_attempt(self, round: int) -> tuple[int, list[str]]:
        """Return the number of a new attempt of a round, which is taken for good, and the clients to ask.

        Helpers answer a round for one list of sites. So once a list was closed, later attempts ask its sites alone.
        """
        clients = sorted(self._settings.sites)
        for attempt in itertools.count():
            path = self._attempt_file(round, attempt)
            if not path.exists():
                write_atomic(path, b"", new=True)
                return attempt, clients
            if listed := path.read_bytes():
                clients = [client for client in clients if client in json.loads(listed)]
        raise AssertionError

    def _attempt_file(self, round: int, attempt: int) -> Path:
        """Return the file of an attempt: empty, or with the clients that its closing lists. Public."""
        return self._settings.out / f"attempt-{round:03d}-{attempt:02d}.json"

    def _releases(self, round: int) -> list[Path]:
        """Return the releases that a round builds on: the one before, or all where the plan names its weights."""
        first = 0 if self._plan.named else max(0, round - 1)
        return [release_path(self._settings.out, number) for number in range(first, round)]

    def _of_study(self) -> tuple[Study, Identity]:
        if self._party is None:
            raise UsageError("settings: no study with masks; expected one")
        return self._party

    def _require_clients(self) -> None:
        """Refuse settings whose clients are not the plan's shards, or not the study's parties."""
        settings, plan = self._settings, self._plan
        pairs = [("sites", settings.sites, plan.config.shards)]
        if self._party is not None:
            study, _ = self._party
            require_one_part(plan)
            if study.plan_id != plan.plan_id:
                raise UsageError(f"plan {plan.plan_id[:16]}; expected plan {study.plan_id[:16]} of study {study.name}")
            pairs = [("sites", settings.sites, study.site_names), ("helpers", settings.helpers, study.helper_names)]
        for table, clients, names in pairs:
            if set(clients.values()) != set(names):
                found = ", ".join(sorted(clients.values()))[:200] or "none"
                raise UsageError(f"settings: {table} {found}; expected a client for each of {', '.join(names)[:200]}")


def _require(client: str, answers: Mapping[str, Answer]) -> Payload:
    if client not in answers or answers[client].code:
        raise EngineError(f"{_failures([client], answers)}; its own log says why: mend it and run the job again")
    return answers[client].payload


def _seed(payload: Payload, helper: str) -> bytes:
    """Return the seed that a site sealed to a helper. Raises FileContentError where there is none."""
    sealed: bytes = field(field(payload, "seeds", dict), helper, bytes)
    return sealed


def _failures(clients: Iterable[str], answers: Mapping[str, Answer]) -> str:
    """Return which clients failed, and how, in words that hold nothing private."""
    failed = [
        f"client {client}: {meaning(answers[client].code) if client in answers else 'no answer in time'}"
        for client in clients
        if client not in answers or answers[client].code
    ]
    return "; ".join(failed) or "all clients answered"
