"""The closing of a round: the coordinator's list of the sites whose vectors are added up, with the messages that count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distqexp.errors import FileContentError
from distqexp.federation.header import DIGEST
from distqexp.federation.masks import LARGEST_VECTOR
from distqexp.federation.study import Study
from distqexp.storage.canonical import canonical_json

LARGEST_CLOSING = 1 << 22
"""The bytes that a closing has at most."""


@dataclass(frozen=True)
class Listed:
    """A listed site: the identity of its masked message, and of its sealed seed for each helper."""

    site: str
    masked: str
    seeds: Mapping[str, str]


@dataclass(frozen=True)
class Closing:
    """The list of one attempt of a round. Public; round and attempt are in the header of the message.

    Attributes:
        entries: The length of a site's vector.
        listed: The sites, in the order of their names.
    """

    entries: int
    listed: tuple[Listed, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the listed sites."""
        return tuple(one.site for one in self.listed)

    def to_bytes(self) -> bytes:
        """Return the closing as canonical JSON."""
        sites = [{"site": one.site, "masked": one.masked, "seeds": dict(one.seeds)} for one in self.listed]
        return canonical_json({"entries": self.entries, "sites": sites})

    def require(self, path: Path, study: Study) -> None:
        """Raise FileContentError unless the list is one that a round of the study may be closed with."""
        names = self.sites
        for name in names:
            if name not in study.site_names:
                raise FileContentError(f"{path}: site {name} is listed; expected sites of study {study.name} only")
            if names.count(name) > 1:
                raise FileContentError(f"{path}: site {name} is listed twice; expected each site once")
        if len(names) < study.k_min:
            raise FileContentError(
                f"{path}: {len(names)} sites are listed; expected at least {study.k_min}, as study {study.name} promises"
            )
        for one in self.listed:
            if set(one.seeds) != set(study.helper_names):
                raise FileContentError(
                    f"{path}: seeds of {one.site} for {', '.join(sorted(one.seeds))[:200] or 'nobody'}; expected one for each of "
                    f"{', '.join(study.helper_names)}"
                )

    @staticmethod
    def parse(path: Path, content: bytes, study: Study) -> Closing:
        """Return the closing that the bytes are the canonical form of, checked against the study. Raises FileContentError."""
        try:
            tree: dict[str, Any] = json.loads(content)
            listed = tuple(Listed(one["site"], one["masked"], one["seeds"]) for one in tree["sites"])
            digests = [digest for one in listed for digest in (one.masked, *one.seeds.values())]
            closing = Closing(tree["entries"], listed)
            valid = (
                all(isinstance(one.site, str) for one in listed)
                and all(isinstance(digest, str) and DIGEST.fullmatch(digest) for digest in digests)
                and type(closing.entries) is int
                and 1 <= closing.entries <= LARGEST_VECTOR
                and list(closing.sites) == sorted(closing.sites)
                and closing.to_bytes() == content
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            valid = False
        if not valid:
            raise FileContentError(f"{path}: its content is no closing; expected a list of sites as distqexp writes it")
        closing.require(path, study)
        return closing
