"""A coordinator and three sites with embedded digits, each with settings, ledger and keys of its own, as FLARE's adapter has them."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distqexp import api
from distqexp.adapters.nvflare.coordinator import Coordinator
from distqexp.adapters.nvflare.settings import (
    COORDINATOR_FILE,
    CoordinatorSettings,
    SiteSettings,
    party_of,
    read_settings,
    site_file,
)
from distqexp.adapters.nvflare.site import attempt
from distqexp.adapters.nvflare.study import StudyCoordinator
from distqexp.adapters.nvflare.wire import Answer, Payload
from distqexp.consortium.beginning import Acceptance, Terms, accept, sign, study_of, write_study
from distqexp.consortium.home import Home
from distqexp.federation.keys import passphrase_from
from distqexp.federation.study import Trust

SHARDS = ("north", "south", "west")
CLIENTS = {f"clinic-{shard}": shard for shard in SHARDS}
HELPERS = {"clinic-north": "north", "clinic-south": "south"}
SEED, ROUNDS = 5, 2

CONFIG = """
[model]
factory = "distqexp.problem.models:logistic"
args = { inputs = 64, outputs = 10 }
loss = "cross-entropy"
[model.pretrain]
epochs = 20
optimiser = "lbfgs"
[data]
population = "digits"
[data.public]
format = "digits"
rows = [[0, 597]]
[[data.private]]
format = "digits"
shard = "north"
rows = [[597, 800]]
[[data.private]]
format = "digits"
shard = "south"
rows = [[800, 1100]]
[[data.private]]
format = "digits"
shard = "west"
rows = [[1100, 1397]]
[data.eval]
format = "digits"
rows = [[1397, 1797]]
[privacy]
epsilon = 2.0
delta = 1e-4
units = 800
[precision]
kind = "diagonal"
damping = 1.0
[mechanism]
rounds = 2
clip_quantile = 0.5
"""


@dataclass
class Parties:
    """Folders of a coordinator and of three sites; ``local`` has the settings of all, as FLARE's simulator wants them."""

    root: Path
    local: Path
    asked: list[tuple[str, Mapping[str, Payload]]] = field(default_factory=list)
    answered: list[Mapping[str, Answer]] = field(default_factory=list)
    absent: set[tuple[str, str]] = field(default_factory=set)

    @property
    def out(self) -> Path:
        return self.root / "run"

    def ask(self, name: str, payloads: Mapping[str, Payload]) -> Mapping[str, Answer]:
        """Give the task to each client in this process, and keep what went to and fro."""
        self.asked.append((name, payloads))
        present = [client for client in payloads if (name, client) not in self.absent]
        answers = {client: attempt(self.local / site_file(client), name, payloads[client]) for client in present}
        self.answered.append(answers)
        return answers

    def coordinator(self) -> Coordinator | StudyCoordinator:
        settings = read_settings(CoordinatorSettings, self.local / COORDINATOR_FILE)
        return Coordinator(settings) if settings.exchange is None else StudyCoordinator(settings)

    def change(self, client: str, **settings: Any) -> None:
        """Set keys of a client's settings."""
        path = self.local / site_file(client)
        path.write_text(toml(tomllib.loads(path.read_text()) | settings))

    def log(self, client: str) -> str:
        """What the client's own log says."""
        return (self.local / site_file(client)).with_suffix(".log").read_text()

    def charges(self, name: str) -> Sequence[str]:
        return [row.key for row in api.Ledger.open(self.root / name / "ledger.sqlite").rows()]


def make_parties(
    root: Path, plan_file: Path, *, trust: Trust | None = None, k_min: int = 3, local: Path | None = None
) -> Parties:
    """Settings for everybody, for the plan in that file; with a mode of trust a study too, in which two sites may be helpers."""
    parties = Parties(root, local or root / "local")
    parties.local.mkdir(parents=True)
    office: dict[str, Any] = {"out": str(parties.out), "config": str(plan_file.parent / "task.toml")}
    own: dict[str, dict[str, Any]] = {name: {} for name in SHARDS}
    for name in ("office", *SHARDS):
        (root / name / "scratch").mkdir(parents=True)
    if trust is None:
        plan_id = api.Plan.read(plan_file).plan_id
        office |= {"plan": str(plan_file), "keep_quadratics": True}
        own = {name: {"plan_id": plan_id, "shard": name} for name in SHARDS}
    else:
        begin_study(root, plan_file, trust, k_min)
    for name, settings in (("office", office), *own.items()):
        settings |= {"ledger": str(root / name / "ledger.sqlite")}
        settings |= {"insecure_noise_seed": SEED} if trust is None else {"exchange": str(root / name / "exchange")}
    for name in SHARDS:
        own[name]["scratch"] = str(root / name / "scratch")
    helpers = HELPERS if trust is not None and trust.has_masks else {}
    tables = f"[sites]\n{toml(CLIENTS)}" + (f"[helpers]\n{toml(helpers)}" if helpers else "")
    (parties.local / COORDINATOR_FILE).write_text(f"{toml(office)}{tables}")
    for client, name in CLIENTS.items():
        (parties.local / site_file(client)).write_text(toml(own[name]))
    return parties


@contextmanager
def at(root: Path, name: str) -> Iterator[None]:
    """What the block does is done by that party, with its keys and its ledger, as its commands would do it."""
    with party_of(SiteSettings(exchange=root / name / "exchange", ledger=root / name / "ledger.sqlite")):
        yield


def begin_study(root: Path, plan_file: Path, trust: Trust, k_min: int, study: str = "digits") -> None:
    """Keys and cards for everybody, and the study that the office signed and all others accepted."""
    cards = {}
    for name in ("office", *SHARDS):
        with at(root, name):
            home = Home()
            cards[name] = home.card() if home.folder.exists() else home.create(name, None).card
    helpers = tuple(cards[name] for name in HELPERS.values()) if trust.has_masks else ()
    terms = Terms(study, tuple(cards[name] for name in SHARDS), helpers, trust, k_min)
    write_study(study_of(api.Plan.read(plan_file), cards["office"], terms), root / f"{study}.toml")
    folder = root / "office" / "exchange"
    shutil.rmtree(folder, ignore_errors=True)
    with at(root, "office"):
        sign(root / f"{study}.toml", plan_file, folder, passphrase_from)
    for name in SHARDS:
        shutil.rmtree(root / name / "exchange", ignore_errors=True)
        shutil.copytree(folder, root / name / "exchange")
        with at(root, name):
            accept(Acceptance(root / name / "exchange", cards["office"], elsewhere=False), passphrase_from)


def toml(tree: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in tree.items())


def by_files(root: Path) -> Path:
    """The same run by files and functions, stage after stage; returns its folder, with the plan and the config in it."""
    root.mkdir()
    (root / "task.toml").write_text(CONFIG)
    config = api.load_config(root / "task.toml")
    plan, releases = root / "plan.h5", [root / f"release-{round:03d}.h5" for round in range(ROUNDS)]
    api.plan(config, plan)
    for round in range(ROUNDS):
        before = releases[round - 1] if round else None
        sketches = [root / f"{shard}.{round}.h5" for shard in SHARDS]
        for shard, path in zip(SHARDS, sketches, strict=True):
            api.sketch(plan, None, path, release=before, insecure_noise_seed=SEED, ledger=root / f"{shard}.sqlite")
        quadratic = root / f"quadratic-{round:03d}.h5"
        api.pool(plan, sketches, quadratic)
        api.release(
            plan, quadratic, releases[round], previous=before, config=config, insecure_noise_seed=SEED,
            ledger=root / "office.sqlite", keep_quadratic=True,
        )  # fmt: skip
    api.export(plan, releases, root / "model", config=config, ledger=root / "office.sqlite")
    return root
