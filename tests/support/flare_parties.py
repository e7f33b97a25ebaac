"""A coordinator and three sites with embedded digits, each with settings, ledger and keys of its own, as FLARE's adapter has them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distqexp import api
from distqexp.adapters.nvflare.coordinator import Coordinator
from distqexp.adapters.nvflare.settings import COORDINATOR_FILE, CoordinatorSettings, read_settings, site_file
from distqexp.adapters.nvflare.site import attempt
from distqexp.adapters.nvflare.wire import Answer, Payload
from distqexp.errors import StoppedError
from distqexp.federation.keys import Identity
from distqexp.federation.study import Study, Trust, sign_study
from distqexp.kinds import Adjacency

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
    last_round: int = ROUNDS

    @property
    def out(self) -> Path:
        return self.root / "run"

    def ask(self, name: str, payloads: Mapping[str, Payload]) -> Mapping[str, Answer]:
        """Give the task to each client in this process, and keep what went to and fro."""
        if any(len(payload.get("releases", ())) > self.last_round for payload in payloads.values()):
            raise StoppedError("enough rounds")
        self.asked.append((name, payloads))
        present = [client for client in payloads if (name, client) not in self.absent]
        answers = {client: attempt(self.local / site_file(client), name, payloads[client]) for client in present}
        self.answered.append(answers)
        return answers

    def coordinator(self) -> Coordinator:
        return Coordinator(read_settings(CoordinatorSettings, self.local / COORDINATOR_FILE))

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
    root: Path, plan_file: Path, *, masks: bool = False, k_min: int = 3, local: Path | None = None
) -> Parties:
    """Settings for everybody, for the plan in that file; with masks a study too, in which two sites are helpers."""
    parties = Parties(root, local or root / "local")
    parties.local.mkdir(parents=True)
    plan_id = api.Plan.read(plan_file).plan_id
    office = {"plan": str(plan_file), "out": str(parties.out), "config": str(plan_file.parent / "task.toml")}
    own: dict[str, dict[str, Any]] = {name: {"plan_id": plan_id, "shard": name} for name in SHARDS}
    for name in ("office", *SHARDS):
        (root / name / "scratch").mkdir(parents=True)
    if masks:
        study = write_study(root, plan_id, k_min)
        office |= {"study": str(study), "identity": str(root / "office" / "keys")}
        card = str(root / "office" / "card")
        own = {
            name: {"study": str(study), "coordinator": card, "identity": str(root / name / "keys")} for name in SHARDS
        }
    for name, settings in own.items():
        settings["scratch"] = str(root / name / "scratch")
    for name, settings in (("office", office), *own.items()):
        settings |= {"ledger": str(root / name / "ledger.sqlite"), "insecure_noise_seed": SEED}
    for name in HELPERS.values() if masks else ():
        own[name] |= {"helper_log": str(root / name / "helper.log")}
    tables = f"[sites]\n{toml(CLIENTS)}" + (f"[helpers]\n{toml(HELPERS)}" if masks else "")
    (parties.local / COORDINATOR_FILE).write_text(f"keep_quadratics = true\n{toml(office)}{tables}")
    for client, name in CLIENTS.items():
        (parties.local / site_file(client)).write_text(toml(own[name]))
    return parties


def write_study(root: Path, plan_id: str, k_min: int) -> Path:
    """Keys and cards for everybody, and the study that the office signed."""
    identities = {name: Identity.draw(name) for name in ("office", *SHARDS)}
    for name, identity in identities.items():
        identity.write(root / name / "keys")
    identities["office"].card.write(root / "office" / "card")
    study = Study(
        name="digits",
        plan_id=plan_id,
        model="8" * 64,
        coordinator=identities["office"].card,
        sites=tuple(identities[name].card for name in SHARDS),
        helpers=tuple(identities[name].card for name in HELPERS.values()),
        k_min=k_min,
        epsilon=2.0,
        delta=1e-4,
        unit="record",
        adjacency=Adjacency.ZERO_OUT,
        presence=1,
        rounds=ROUNDS,
        trust=Trust.MASKS,
    )
    return sign_study(study, identities["office"], root / "office")[0]


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
