"""A site's side of a task, and a helper's: bytes in, bytes out, through the functions that the commands use.

These work on files. Outside of a study a task has a temporary folder of its own, of mode 0700, which is gone when the task ends;
the ledger alone outlives it. In a study a task is a visit: what came is written into this party's copy of the folder that the
parties exchange, the visit is made as the command makes it, and what it wrote there is sent back.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from distqexp import api
from distqexp.adapters.nvflare.exchanged import alone_in, receive, sent_by
from distqexp.adapters.nvflare.settings import SiteSettings, party_of, read_settings
from distqexp.adapters.nvflare.wire import ANSWER, SKETCH, TASKS, VISIT, Answer, Payload, field, several
from distqexp.consortium.answering import answer
from distqexp.consortium.exchange import found_in
from distqexp.consortium.news import COORDINATOR_KINDS, standing_of
from distqexp.consortium.party import Party, open_party
from distqexp.consortium.site import Records, sketch_visit
from distqexp.engines.base import exit_code, places, reason
from distqexp.engines.serial import SerialEngine
from distqexp.errors import FileContentError, StorageError, UsageError
from distqexp.federation.keys import passphrase_from
from distqexp.federation.messages import peek
from distqexp.storage.hdf5 import read_header


def attempt(settings_file: Path, task: str, payload: Payload) -> Answer:
    """Perform a task by the settings of this machine.

    What goes wrong is told in one line in the log beside the settings (mode 0600), with whatever else the stages say. The caller
    gets the exit code alone, for FLARE may carry logs and error texts to the server.
    """
    try:
        with _local_log(settings_file.with_suffix(".log")):
            try:
                return Answer(0, perform(read_settings(SiteSettings, settings_file), task, payload))
            except Exception as error:  # noqa: BLE001 - whatever went wrong, the coordinator gets its code and nothing else
                code = exit_code(error)
                sys.stderr.write(("" if code != 5 else places(error)) + f"distqexp: {reason(error)}\n")
                return Answer(code, {})
    except OSError:  # the log itself can't be written: FLARE would tell its path
        return Answer(StorageError.exit_code, {})


def perform(settings: SiteSettings, task: str, payload: Payload) -> Payload:
    """Return what a task asks of this site.

    Raises DistqexpError. What can refuse does so before the charge; a disk that is full after it costs nothing more, for the task
    that comes again is the same.
    """
    work = {SKETCH: _sketch, VISIT: _visit, ANSWER: _answer}.get(task)
    if work is None:
        raise UsageError(f"task {ascii(task)[:40]}; expected one of {', '.join(TASKS)}")
    with party_of(settings):
        return work(settings, payload)


def _sketch(settings: SiteSettings, payload: Payload) -> Payload:
    """Sketch a plan's records outside of a study. A plan of a study that was accepted here is refused."""
    if settings.plan_id is None:
        raise FileContentError("task: outside of a study; expected one of the study whose folder the settings name")
    with tempfile.TemporaryDirectory(prefix="distqexp-", dir=settings.scratch) as name:
        folder = Path(name)
        plan, releases = _received(payload, folder, settings.plan_id)
        return {"sketch": _sketched(settings, plan, releases, folder).read_bytes()}


def _visit(settings: SiteSettings, payload: Payload) -> Payload:
    """Make a site's visit in its study; what it sends in the current attempt of the round comes back, the sums last."""
    with _in_study(settings) as party:
        with party.journal.refusals():
            receive(party, several(payload, "messages"), COORDINATOR_KINDS)
        records = Records(settings.data, settings.labels, settings.tokenizer, settings.blank, settings.weights)
        _tell(sketch_visit(party.folder, records, passphrase_from, SerialEngine()))
        standing = standing_of(found_in(party.folder))
        sent = sent_by(party, party.name, ("seed", party.sketch_kind), (standing.round, standing.attempt))
        return {"messages": [one.path.read_bytes() for one in sent]}


def _answer(settings: SiteSettings, payload: Payload) -> Payload:
    """Answer a closing as a helper of the study."""
    with _in_study(settings) as party:
        with party.journal.refusals():
            receive(party, several(payload, "seeds"), ("seed",))
            (closing,) = receive(party, [field(payload, "closing", bytes)], ("closing",))
        _tell(answer(closing, passphrase_from))
        header, identity = peek(closing)
        answers = sent_by(party, party.name, ("answer",), (header.round, header.attempt))
        return {"messages": [one.path.read_bytes() for one in answers if one.header.receipts == (identity,)]}


@contextmanager
def _in_study(settings: SiteSettings) -> Iterator[Party]:
    """Yield this party in its study, with nobody else at work there."""
    if settings.exchange is None:
        raise UsageError("settings: no exchange; expected the folder of a study for a task of one")
    with alone_in(settings.exchange):
        yield open_party(settings.exchange, passphrase_from)


def _tell(lines: Sequence[str]) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def _received(payload: Payload, folder: Path, plan_id: str) -> tuple[Path, list[Path]]:
    """Write the plan and the releases of a task into its folder. Raises FileContentError for a plan that was not agreed to."""
    plan = _written(folder / "plan.h5", field(payload, "plan", bytes))
    read_header(plan, kind="plan", plan_id=plan_id)
    releases = several(payload, "releases")
    return plan, [_written(folder / f"release-{number:03d}.h5", one) for number, one in enumerate(releases)]


def _sketched(settings: SiteSettings, plan: Path, releases: list[Path], folder: Path) -> Path:
    out = folder / "sketch.h5"
    api.sketch(
        plan,
        settings.data,
        out,
        release=releases or None,
        shard=settings.shard,
        labels=settings.labels,
        blank=settings.blank,
        tokenizer=settings.tokenizer,
        population=settings.population,
        insecure_noise_seed=settings.insecure_noise_seed,
        ledger=settings.ledger,
        weights=settings.weights,
    )
    return out


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@contextmanager
def _local_log(path: Path) -> Iterator[None]:
    """Send what the stages write for the site's own people to a file that is theirs alone."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.fchmod(descriptor, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file, redirect_stderr(file):
        yield
