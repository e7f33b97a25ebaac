"""Settings that each party keeps on its own machine, in TOML. No task and no job can change them."""

from __future__ import annotations

import os
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from distqexp.consortium.home import HOME_VARIABLE
from distqexp.errors import UsageError
from distqexp.federation.header import DIGEST

COORDINATOR_FILE = "distqexp-coordinator.toml"

LEDGER_VARIABLE = "DISTQEXP_LEDGER"
"""The environment variable with a user's own ledger."""

Settings = TypeVar("Settings", "SiteSettings", "CoordinatorSettings")


def site_file(client: str) -> str:
    """Return the name of a client's settings, beside FLARE's own local settings."""
    return f"distqexp-{client}.toml"


@dataclass(frozen=True)
class SiteSettings:
    """What a site or a helper works with. Paths in the file are relative to it.

    Attributes:
        plan_id: The plan that this site agreed to, without a study; no other is sketched.
        exchange: This party's copy of the folder of a study, from which it accepted it; then plan, trust and names are the study's.
        home: The party's own folder, with keys, log and what it keeps of studies; see ``party_of``.
        shard: The shard's name in the plan.
        data: The private records.
        labels: The file of the labels.
        tokenizer: The folder of the tokenizer.
        blank: A .npy file of booleans.
        weights: This machine's copy of the pretrained weights.
        population: What this site calls the plan's population.
        ledger: The site's ledger; the user's own when None.
        scratch: Where private temporary folders are made; the system's place when None.
        insecure_noise_seed: The test run to take part in, which is NOT PRIVATE.
    """

    plan_id: str | None = None
    exchange: Path | None = None
    home: Path | None = None
    shard: str | None = None
    data: Path | None = None
    labels: Path | None = None
    tokenizer: Path | None = None
    blank: Path | None = None
    weights: Path | None = None
    population: str | None = None
    ledger: Path | None = None
    scratch: Path | None = None
    insecure_noise_seed: int | None = None

    def __post_init__(self) -> None:
        """Check how the fields fit together. Raises UsageError."""
        if (self.plan_id is None) == (self.exchange is None):
            raise UsageError(
                "settings: expected either plan_id, the plan that this site agreed to, or exchange, the folder of a study"
            )
        if self.plan_id is not None and not DIGEST.fullmatch(self.plan_id):
            raise UsageError(f"settings: plan_id {ascii(self.plan_id)[:80]}; expected 64 hexadecimal digits")
        _require_none(self, ("shard", "population", "insecure_noise_seed"))


@dataclass(frozen=True)
class CoordinatorSettings:
    """What the coordinator works with. Paths in the file are relative to it.

    Attributes:
        out: The folder of the run: the model, and without a study plan and releases. Private while a round is pooled.
        sites: The shard, or the party of the study, of each client that is a site.
        plan: The plan's file, without a study.
        exchange: The coordinator's copy of the folder of a study, in which it signed it.
        home: The coordinator's own folder, with keys and log; see ``party_of``.
        config: The config, which says where public and evaluation data are.
        ledger: The coordinator's ledger; the user's own when None.
        weights: This machine's copy of the pretrained weights.
        insecure_noise_seed: Seed of the noise, for tests: the releases are NOT PRIVATE.
        keep_quadratics: Whether to keep the pooled sums, which are private.
        timeout: Seconds that clients have for a task; 0 waits for ever.
        helpers: The helper of the study that each client is, of those that are one.
    """

    out: Path
    sites: dict[str, str]
    plan: Path | None = None
    exchange: Path | None = None
    home: Path | None = None
    config: Path | None = None
    ledger: Path | None = None
    weights: Path | None = None
    insecure_noise_seed: int | None = None
    keep_quadratics: bool = False
    timeout: int = 0
    helpers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the names and how the fields fit together. Raises UsageError."""
        for table, names in (("sites", self.sites), ("helpers", self.helpers)):
            if len(set(names.values())) < len(names):
                raise UsageError(f"settings: the same name twice in {table}; expected one client for each")
        if (self.plan is None) == (self.exchange is None):
            raise UsageError("settings: expected either plan, the file of a plan, or exchange, the folder of a study")
        _require_none(self, ("insecure_noise_seed", "keep_quadratics"))

    def require_clients(self, table: str, names: Sequence[str]) -> None:
        """Raise UsageError unless a table has a client for each of these names and for no other."""
        found: dict[str, str] = getattr(self, table)
        if set(found.values()) != set(names):
            raise UsageError(
                f"settings: {table} {', '.join(sorted(found.values()))[:200] or 'none'}; expected a client for each of "
                f"{', '.join(names)[:200] or 'none'}"
            )


@contextmanager
def party_of(settings: SiteSettings | CoordinatorSettings) -> Iterator[None]:
    """Let everything in the block work with the settings' own folder of the party and their ledger.

    Studies find both as commands do, by the environment; one process of FLARE's is one party's. A ledger alone brings the folder
    ``party`` beside it. With neither, the environment stays as it is.
    """
    home = settings.home or (settings.ledger.parent / "party" if settings.ledger else None)
    named = {HOME_VARIABLE: home, LEDGER_VARIABLE: settings.ledger}
    before = {name: os.environ.get(name) for name, path in named.items() if path is not None}
    os.environ.update({name: str(named[name]) for name in before})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def read_settings(kind: type[Settings], path: Path) -> Settings:
    """Read a party's settings. Raises UsageError where a key is unknown, missing or of another type."""
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror}); expected the settings of this party") from None
    except ValueError:
        raise UsageError(f"{path}: it is no TOML; expected the settings of this party") from None
    known = {one.name for one in fields(kind)}
    if unknown := sorted(set(tree) - known):
        raise UsageError(f"{path}: unknown {', '.join(unknown)[:200]}; expected some of {', '.join(sorted(known))}")
    hints = typing.get_type_hints(kind)
    values = {name: _converted(path, name, value, hints[name]) for name, value in tree.items()}
    try:
        return kind(**values)
    except TypeError:
        raise UsageError(f"{path}: a key is missing; expected out and sites") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _converted(path: Path, name: str, value: Any, hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]
    table = typing.get_origin(hint) is dict
    wanted: Any = dict if table else str if hint is Path else hint
    if type(value) is not wanted or (table and not all(isinstance(one, str) for one in value.values())):
        raise UsageError(f"{path}: {name} is a {type(value).__name__}; expected a {wanted.__name__}")
    return path.parent / Path(value).expanduser() if hint is Path else value


def _require_none(settings: SiteSettings | CoordinatorSettings, names: Sequence[str]) -> None:
    """Refuse keys that a study fixes, or does not have."""
    for name in names:
        if settings.exchange is not None and getattr(settings, name):
            raise UsageError(f"settings: {name} with exchange; expected none: a study fixes it, and draws real noise")
