"""The coordinator's side without a study: a plan's rounds, each asked of the sites, pooled and released; then the model.

A run that was cut off goes on with the same folder: released rounds stay, a pooled sum that is there is released, and other
rounds are asked again, for which no site is charged twice.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distqexp import api
from distqexp.adapters.nvflare.settings import CoordinatorSettings
from distqexp.adapters.nvflare.wire import SKETCH, Answer, Ask, Payload, failures, field
from distqexp.artefacts.plan import Plan
from distqexp.errors import EngineError, FileContentError, UsageError
from distqexp.stages.folder import open_folder, quadratic_path, release_path
from distqexp.storage.atomic import write_atomic
from distqexp.storage.hdf5 import read_header


class Coordinator:
    """One run of a plan with a trusted curator, in the folder of its settings."""

    def __init__(self, settings: CoordinatorSettings) -> None:
        """Read the plan and make the folder; nothing is asked or charged. Raises DistqexpError."""
        if settings.plan is None:
            raise UsageError("settings: no plan; expected the file of one, without a study")
        self._settings = settings
        self._plan = Plan.read(settings.plan)
        self._config = None if settings.config is None else api.load_config(settings.config)
        settings.require_clients("sites", self._plan.config.shards)
        settings.require_clients("helpers", ())
        open_folder(settings.out, resume=True, private=True)
        self._plan_file = settings.out / "plan.h5"
        if not self._plan_file.exists():
            write_atomic(self._plan_file, settings.plan.read_bytes(), new=True)
        read_header(self._plan_file, kind="plan", plan_id=self._plan.plan_id)

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
        settings = self._settings

        def write(out: Path) -> None:
            api.export(
                self._plan_file,
                releases,
                out,
                config=self._config,
                ledger=settings.ledger,
                weights=settings.weights,
            )

        return whole_model(settings.out / "model", write)

    def _run_round(self, round: int, ask: Ask) -> None:
        settings = self._settings
        quadratic = quadratic_path(settings.out, round)
        if not quadratic.exists():
            with tempfile.TemporaryDirectory(prefix=".pooling-", dir=settings.out) as folder:
                self._pool(round, ask, Path(folder))
        api.release(
            self._plan_file,
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
        payload: Payload = {
            "plan": self._plan_file.read_bytes(),
            "releases": [path.read_bytes() for path in self._releases(round)],
        }
        answers = ask(SKETCH, dict.fromkeys(settings.sites, payload))
        paths = [self._sketch(client, folder, _require(client, answers)) for client in settings.sites]
        api.pool(self._plan_file, paths, quadratic_path(settings.out, round))

    def _sketch(self, client: str, folder: Path, payload: Payload) -> Path:
        """Write a site's sketch. Raises FileContentError where it is of a shard that is not this client's."""
        shard = self._settings.sites[client]
        path = folder / f"{shard}.h5"
        write_atomic(path, field(payload, "sketch", bytes), private=True)
        found = read_header(path, kind="sketch", plan_id=self._plan.plan_id).header.get("shard")
        if found != shard:
            raise FileContentError(f"client {client}: sketch of shard {ascii(found)[:60]}; expected its own, {shard}")
        return path

    def _releases(self, round: int) -> list[Path]:
        """Return the releases that a round builds on: the one before, or all where the plan names its weights."""
        first = 0 if self._plan.named else max(0, round - 1)
        return [release_path(self._settings.out, number) for number in range(first, round)]


def whole_model(out: Path, write: Callable[[Path], object]) -> dict[str, Any]:
    """Write the model's folder, all of it or nothing, where it isn't there yet; return its certificate, which is public."""
    unfinished = out.with_name(f".{out.name}-unfinished")
    if not out.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        write(unfinished)
        unfinished.rename(out)
    certificate: dict[str, Any] = json.loads((out / "certificate.json").read_bytes())
    return certificate


def _require(client: str, answers: Mapping[str, Answer]) -> Payload:
    if client not in answers or answers[client].code:
        raise EngineError(f"{failures([client], answers)}; its own log says why: mend it and run the job again")
    return answers[client].payload
