"""A study of four sites in folders of their own: every party has its keys, ledger and log, and all share one folder of messages."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import SHARDS, Consortium, four_sites
from numpy.typing import NDArray
from run_harness import Commands, Outcome

from distqexp.federation.keys import Identity
from distqexp.federation.log import LogEntry, verify_log
from distqexp.federation.messages import SUFFIX
from distqexp.privacy.ledger import Ledger

HELPERS = ("ethics", "archive")
OFFICE = "curator"


class Terminal(io.StringIO):
    """What a person types on a terminal."""

    def isatty(self) -> bool:
        """A person is there."""
        return True


@dataclass
class StudyFolders:
    """The parties of a study and what they do."""

    sites: Consortium
    trust: str
    helpers: Sequence[str]

    @property
    def root(self) -> Path:
        return self.sites.root

    @property
    def exchange(self) -> Path:
        return self.root / "exchange"

    @property
    def parties(self) -> list[str]:
        return [OFFICE, *SHARDS, *self.helpers]

    def home(self, party: str) -> Path:
        return self.root / party / "home"

    def own(self, party: str) -> Path:
        """The party's own folder of the one study it is in."""
        (folder,) = (self.home(party) / "studies").iterdir()
        return folder

    def card(self, party: str) -> Path:
        return self.home(party) / f"{party}.card"

    def identity(self, party: str) -> Identity:
        return Identity.read(self.home(party) / "identity.json")

    def at(self, party: str) -> Commands:
        """Commands of a party, with its own keys and ledger, in the root."""
        self.sites.patch.setenv("DISTQEXP_HOME", str(self.home(party)))
        commands = self.sites.at(self.root / party)
        self.sites.patch.chdir(self.root)
        return commands

    def begin(self, k_min: int) -> None:
        """Keys, plan, study, signatures, acceptance."""
        for party in self.parties:
            (self.root / party).mkdir(exist_ok=True)
            self.at(party).done("site", "init", party)
        office = self.at(OFFICE)
        office.done("plan", f"{OFFICE}/task.toml", "--out", "plan.h5")
        office.done(*self.new_command("study.toml", k_min=k_min))
        said = office.done("study", "sign", "study.toml", "--plan", "plan.h5", "--folder", "exchange").out
        assert "distqexp study accept exchange --coordinator CARD" in said
        for party in self.parties[1:]:
            self.at(party).done(*self.accept_command(party))

    def new_command(
        self, out: str, *, k_min: int = 2, sites: Sequence[str] = SHARDS, name: str = "sepsis"
    ) -> list[str]:
        cards = [word for site in sites for word in ("--site", str(self.card(site)))]
        cards += [word for helper in self.helpers for word in ("--helper", str(self.card(helper)))]
        terms = ["--k-min", str(k_min), "--trust", self.trust, "--out", out]
        return ["study", "new", name, "--plan", "plan.h5", *cards, *terms]

    def accept_command(self, party: str, folder: str = "exchange") -> list[str]:
        site = ["--not-elsewhere"] if party in SHARDS else []
        return ["study", "accept", folder, "--coordinator", str(self.card(OFFICE)), *site]

    def sketch(self, site: str, *more: str) -> Outcome:
        return self.at(site).distqexp("study", "sketch", "exchange", "--data", f"{site}/{site}.csv", *more)

    def sketches(self, sites: Sequence[str] = SHARDS) -> None:
        for site in sites:
            outcome = self.sketch(site)
            assert outcome.code == 0, outcome

    def close(self) -> Outcome:
        return self.at(OFFICE).distqexp("study", "close", "exchange")

    def closing(self, round: int = 0, attempt: int = 0) -> Path:
        (path,) = self.exchange.glob(f"closing-{round:03d}-{attempt:02d}-*{SUFFIX}")
        return path

    def answers(self, round: int = 0, attempt: int = 0) -> None:
        for helper in self.helpers:
            self.at(helper).done("helper", "answer", self.closing(round, attempt))

    def release(self) -> Outcome:
        return self.at(OFFICE).distqexp("study", "release", "exchange", "--config", f"{OFFICE}/task.toml")

    def whole_round(self, round: int, sites: Sequence[str] = SHARDS) -> None:
        self.sketches(sites)
        assert self.close().code == 0
        self.answers(round)
        outcome = self.release()
        assert outcome.code == 0, outcome

    def log(self, party: str) -> list[LogEntry]:
        return verify_log(self.home(party) / "log.jsonl", self.identity(party).card)

    def check_refused(self, party: str, outcome: Outcome, words: str, code: int = 3, logged: str | None = None) -> None:
        """One line with these words, exit code 3 or 4, and the same line in the party's log, but for folders, or ``logged``."""
        assert outcome.code == code, outcome
        (line,) = outcome.reasons()
        assert words in line, line
        event = self.log(party)[-1].event
        assert (event["event"], event["code"]) == ("refused", code), event
        if logged is not None:
            assert event["reason"] == logged
        else:
            assert re.search(r" (?:/\S*/)?".join(map(re.escape, event["reason"].split(" "))), line)

    def charges(self, party: str) -> list[tuple[str, str, str]]:
        """Role, round and state of every charge in a party's ledger."""
        with Ledger.open(self.root / party / "books" / "ledger.sqlite") as ledger:
            return [(row.key.split("/")[0], row.key.split("/")[2], row.state) for row in ledger.rows()]

    def sums(self, round: int) -> NDArray[np.int64]:
        """The noisy sums of a round, of the release that sites took."""
        from distqexp.artefacts.plan import Plan
        from distqexp.artefacts.release import Release

        plan = Plan.read(self.root / "plan.h5")
        return np.asarray(Release.read(self.own(OFFICE) / f"release-{round:03d}.h5", plan).noisy_sums)


def put_back(study: StudyFolders, party: str, parts: tuple[str, ...]) -> Callable[[], None]:
    """Copy parts of a party's folder; the function that is returned puts them back."""
    kept = study.root / "backup" / party
    for part in parts:
        shutil.copytree(study.root / party / part, kept / part)

    def restore() -> None:
        for part in parts:
            shutil.rmtree(study.root / party / part)
            shutil.copytree(kept / part, study.root / party / part)

    return restore


_SNAPSHOTS: dict[tuple[Any, ...], tuple[Path, Path]] = {}


def begun_study(
    factory: pytest.TempPathFactory,
    run: Commands,
    patch: pytest.MonkeyPatch,
    trust: str = "helper-masks",
    mechanism: Mapping[str, Any] | None = None,
    rounds_done: int = 0,
) -> StudyFolders:
    """A study that was accepted by everybody, with so many rounds released; made once, and put back for each test."""
    key = (trust, json.dumps(mechanism, sort_keys=True), rounds_done)
    helpers = () if trust == "trusted-curator" else HELPERS
    rules = {"rounds": 2, **(mechanism or {})}
    if key in _SNAPSHOTS:
        root, snapshot = _SNAPSHOTS[key]
        shutil.rmtree(root)
        shutil.copytree(snapshot, root)
        return StudyFolders(Consortium(root, SHARDS, run, patch), trust, helpers)
    base = factory.mktemp("study")
    root = base / "root"
    root.mkdir()
    made = StudyFolders(four_sites(root, run, patch, rules), trust, helpers)
    made.begin(k_min=3)
    for round in range(rounds_done):
        made.whole_round(round)
    _SNAPSHOTS[key] = root, base / "snapshot"
    shutil.copytree(root, base / "snapshot")
    return made
