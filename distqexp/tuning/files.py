"""Which files a rehearsal may open: none of data.private, unless the rows that it reads there are data.public's."""

from __future__ import annotations

import os
from pathlib import Path

from distqexp.config import Config, DataConfig, TuneConfig
from distqexp.errors import UsageError
from distqexp.problem.identity import are_linked, record_files
from distqexp.problem.readers.patterns import is_pattern


def public_without_private(config: Config) -> DataConfig:
    """Return data.public after checking that no source of a rehearsal holds a private record.

    Compares paths and links, and opens nothing. A file that holds public and private records alike is allowed where ``rows`` on both
    sides keep them apart; sources of [tune] may then name only rows of data.public.

    Raises:
        UsageError: There is no data.public, or a rehearsal would read private records.
    """
    public, tune = config.data.public, config.tune or TuneConfig()
    if public is None:
        raise UsageError("data.public: absent; expected public records, which tune rehearses on")
    sources = [("data.public", public), *((f"tune.private.{i}", data) for i, data in enumerate(tune.private))]
    sources += [("tune.eval", tune.eval)] if tune.eval else []
    secrets = [("data.private", data) for data in config.data.private]
    secrets += [("data.eval", config.data.eval)] if config.data.eval and config.data.eval_private else []
    for where, data in sources:
        for private, secret in secrets:
            if not share_a_file(data, secret):
                continue
            if _ranges_meet(data, secret):
                raise UsageError(
                    f"{where}: its file is that of {private}, and rows don't keep them apart; expected other files, or "
                    "disjoint rows in both: tune reads public records only"
                )
            if where != "data.public" and not (_files_of(data) <= _files_of(public) and _within(data, public)):
                raise UsageError(
                    f"{where}: its file is that of {private}; expected rows of data.public: tune reads public records only"
                )
    return public


def _files_of(data: DataConfig) -> frozenset[str]:
    """The files behind a source, links followed; the embedded digits count as one file."""
    if data.format == "digits":
        return frozenset({"digits"})
    others = [Path(path) for path in (data.labels, data.blank) if path is not None]
    return frozenset(os.path.realpath(path) for path in (*record_files(data), *others))


def share_a_file(one: DataConfig, other: DataConfig) -> bool:
    """Tell whether two sources share a file, under whatever names. Opens nothing."""
    return bool(_files_of(one) & _files_of(other)) or are_linked(one, other)


def _ranges_meet(one: DataConfig, other: DataConfig) -> bool:
    if one.rows is None or other.rows is None:
        return True
    if (is_pattern(one.path) or is_pattern(other.path)) and one.path != other.path:
        return True  # rows of several files have other numbers
    return any(a < d and c < b for a, b in one.rows for c, d in other.rows)


def _within(inner: DataConfig, outer: DataConfig) -> bool:
    if outer.rows is None:
        return True
    return inner.rows is not None and all(any(c <= a and b <= d for c, d in outer.rows) for a, b in inner.rows)
