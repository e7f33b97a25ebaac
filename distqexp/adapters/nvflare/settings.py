"""Settings that each party keeps on its own machine, in TOML. No task and no job can change them."""

from __future__ import annotations

import tomllib
import types
import typing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from distqexp.errors import FileContentError, UsageError
from distqexp.federation.header import DIGEST
from distqexp.federation.keys import Card, Identity, passphrase_from
from distqexp.federation.study import Study, Trust, read_study

COORDINATOR_FILE = "distqexp-coordinator.toml"

Settings = TypeVar("Settings", "SiteSettings", "CoordinatorSettings")


def site_file(client: str) -> str:
    """Return the name of a client's settings, beside FLARE's own local settings."""
    return f"distqexp-{client}.toml"


@dataclass(frozen=True)
class SiteSettings:
    """What a site or a helper works with. Paths in the file are relative to it.

    Attributes:
        plan_id: The plan that this site agreed to; no other is sketched. Where there is a study, the study's.
        shard: The shard's name in the plan; in a study the party's own name when None.
        data: The private records.
        labels: The file of the labels.
        tokenizer: The folder of the tokenizer.
        blank: A .npy file of booleans.
        weights: This machine's copy of the pretrained weights.
        population: What this site calls the plan's population.
        ledger: The site's ledger; the user's own when None.
        scratch: Where private temporary folders are made; the system's place when None.
        insecure_noise_seed: The test run to take part in, which is NOT PRIVATE.
        study: The signed study, which fixes the plan and the mode of trust.
        coordinator: The card of its coordinator.
        identity: This party's keys.
        helper_log: The log of a helper.
    """

    plan_id: str | None = None
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
    study: Path | None = None
    coordinator: Path | None = None
    identity: Path | None = None
    helper_log: Path | None = None

    def __post_init__(self) -> None:
        """Check how the fields fit together. Raises UsageError."""
        if (self.plan_id is None) == (self.study is None):
            raise UsageError("settings: expected either plan_id, the plan that this site agreed to, or study")
        if self.plan_id is not None and not DIGEST.fullmatch(self.plan_id):
            raise UsageError(f"settings: plan_id {ascii(self.plan_id)[:80]}; expected 64 hexadecimal digits")

    def party(self) -> tuple[Study, Identity]:
        """Return the study and this party's keys. Raises UsageError, FileContentError."""
        if self.study is None or self.coordinator is None or self.identity is None:
            raise UsageError("settings: expected study, coordinator and identity for a task with masks")
        study = read_study(self.study, Card.read(self.coordinator))
        return _with_masks(study), Identity.read(self.identity, passphrase_from)

    def agreed_plan(self) -> str:
        """Return the identity of the plan that this site agreed to. Raises FileContentError where its study has masks."""
        if self.plan_id is not None:
            return self.plan_id
        if self.study is None or self.coordinator is None:
            raise UsageError("settings: study without coordinator; expected the card of the study's coordinator")
        study = read_study(self.study, Card.read(self.coordinator))
        if study.trust is not Trust.CURATOR:
            raise FileContentError(
                f"task: without masks; expected one with trust {str(study.trust)!r}, as study {study.name} fixes it"
            )
        return study.plan_id


@dataclass(frozen=True)
class CoordinatorSettings:
    """What the coordinator works with. Paths in the file are relative to it.

    Attributes:
        plan: The plan's file.
        out: The folder of the run: plan, releases and model. Private while a round is pooled.
        sites: The shard, or the party of the study, of each client that is a site.
        config: The config, which says where public and evaluation data are.
        ledger: The coordinator's ledger; the user's own when None.
        weights: This machine's copy of the pretrained weights.
        insecure_noise_seed: Seed of the noise, for tests: the releases are NOT PRIVATE.
        keep_quadratics: Whether to keep the pooled sums, which are private.
        timeout: Seconds that clients have for a task; 0 waits for ever.
        study: The signed study; None for a trusted curator without one.
        identity: The coordinator's keys, for a study.
        helpers: The helper of the study that each client is, of those that are one.
    """

    plan: Path
    out: Path
    sites: dict[str, str]
    config: Path | None = None
    ledger: Path | None = None
    weights: Path | None = None
    insecure_noise_seed: int | None = None
    keep_quadratics: bool = False
    timeout: int = 0
    study: Path | None = None
    identity: Path | None = None
    helpers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the names. Raises UsageError."""
        for table, names in (("sites", self.sites), ("helpers", self.helpers)):
            if len(set(names.values())) < len(names):
                raise UsageError(f"settings: the same name twice in {table}; expected one client for each")

    def party(self) -> tuple[Study, Identity] | None:
        """Return the study and the coordinator's keys; None for a trusted curator. Raises UsageError, FileContentError."""
        if self.study is None:
            return None
        if self.identity is None:
            raise UsageError("settings: study without identity; expected the coordinator's keys")
        identity = Identity.read(self.identity, passphrase_from)
        study = read_study(self.study, identity.card)
        return (_with_masks(study), identity) if study.trust.has_masks else None


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
        raise UsageError(f"{path}: a key is missing; expected plan, out and sites") from None
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


def _with_masks(study: Study) -> Study:
    if study.trust is not Trust.MASKS:
        raise UsageError(
            f"study {study.name}: trust {str(study.trust)!r}; expected {str(Trust.MASKS)!r}, the one with masks that FLARE's tasks know"
        )
    return study
