"""A site's side of a task, and a helper's: bytes in, bytes out, through the functions that the commands use.

These work on files, so a task has a temporary folder of its own, of mode 0700, which is gone when the task ends. Only the
ledger and a helper's log outlive it. A task that comes again gives the same integers, and no second charge.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from distqexp import api
from distqexp.adapters.nvflare.settings import SiteSettings, read_settings
from distqexp.adapters.nvflare.wire import ANSWER, MASK, SKETCH, Answer, Payload, field, several
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.sums import Sketch
from distqexp.engines.base import exit_code, places, reason
from distqexp.errors import FileContentError, UsageError
from distqexp.federation.contribution import contribute
from distqexp.federation.helper import Helper
from distqexp.federation.log import Log
from distqexp.federation.masks import MaskContext
from distqexp.privacy.ledger import Ledger
from distqexp.storage.hdf5 import read_header


def attempt(settings_file: Path, task: str, payload: Payload) -> Answer:
    """Perform a task by the settings of this machine.

    What goes wrong is told in one line in the log beside the settings (mode 0600), with whatever else the stages say. The caller
    gets the exit code alone, for FLARE may carry logs and error texts to the server.
    """
    with _local_log(settings_file.with_suffix(".log")):
        try:
            return Answer(0, perform(read_settings(SiteSettings, settings_file), task, payload))
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the coordinator gets its code and nothing else
            code = exit_code(error)
            sys.stderr.write(("" if code != 5 else places(error)) + f"distqexp: {reason(error)}\n")
            return Answer(code, {})


def perform(settings: SiteSettings, task: str, payload: Payload) -> Payload:
    """Return what a task asks of this site.

    Raises DistqexpError. What can refuse does so before the charge; a disk that is full after it costs nothing more, for the task
    that comes again is the same.
    """
    work = {SKETCH: _sketch, MASK: _mask, ANSWER: _answer}.get(task)
    if work is None:
        raise UsageError(f"task {ascii(task)[:40]}; expected one of {SKETCH}, {MASK}, {ANSWER}")
    with tempfile.TemporaryDirectory(prefix="distqexp-", dir=settings.scratch) as folder:
        return work(settings, payload, Path(folder))


def _sketch(settings: SiteSettings, payload: Payload, folder: Path) -> Payload:
    plan, releases = _received(payload, folder, settings.agreed_plan())
    return {"sketch": _sketched(settings, plan, releases, settings.shard, folder).read_bytes()}


def _mask(settings: SiteSettings, payload: Payload, folder: Path) -> Payload:
    study, identity = settings.party()
    at = (field(payload, "round", int), field(payload, "attempt", int))
    MaskContext.of(study, *at)
    if identity.name not in study.site_names or study.roster[identity.name] != identity.card:
        raise UsageError(f"study {study.name}: {identity.name}; expected one of its sites, with the keys of its card")
    plan_file, releases = _received(payload, folder, study.plan_id)
    plan = Plan.read(plan_file)
    require_one_part(plan)
    done = [int(read_header(path, kind="release", plan_id=study.plan_id).header["round"]) for path in releases]
    if max(done, default=-1) + 1 != at[0]:
        raise FileContentError(f"task: round {at[0]} after releases of rounds {done}; expected the release before it")
    sketch_file = _sketched(settings, plan_file, releases, settings.shard or identity.name, folder)
    sketch = Sketch.read(sketch_file, plan, own=True)
    with Ledger.open(settings.ledger) as ledger:
        anchor = ledger.head()
    sent = contribute(study, identity, sketch.sums, at, folder, anchor)
    seeds = {helper: path.read_bytes() for helper, path in sent.seeds.items()}
    return {"masked": sent.masked.read_bytes(), "seeds": seeds, "state": sketch.state}


def _answer(settings: SiteSettings, payload: Payload, folder: Path) -> Payload:
    study, identity = settings.party()
    if settings.helper_log is None:
        raise UsageError("settings: no helper_log; expected the log of a helper, which keeps it from answering twice")
    closing = _written(folder / "closing", field(payload, "closing", bytes))
    seeds = [_written(folder / f"seed-{number}", seed) for number, seed in enumerate(several(payload, "seeds"))]
    helper = Helper(study, identity, Log(settings.helper_log, identity))
    path, _ = helper.answer(closing, seeds, folder)
    return {"answer": path.read_bytes()}


def require_one_part(plan: Plan) -> None:
    """Raise UsageError for a plan with parts: what its parts rest on is not masked."""
    if plan.config.mechanism.parts > 1:
        raise UsageError(f"mechanism.parts {plan.config.mechanism.parts} in the plan; expected 1 with masks")


def _received(payload: Payload, folder: Path, plan_id: str) -> tuple[Path, list[Path]]:
    """Write the plan and the releases of a task into its folder. Raises FileContentError for a plan that was not agreed to."""
    plan = _written(folder / "plan.h5", field(payload, "plan", bytes))
    read_header(plan, kind="plan", plan_id=plan_id)
    releases = several(payload, "releases")
    return plan, [_written(folder / f"release-{number:03d}.h5", one) for number, one in enumerate(releases)]


def _sketched(settings: SiteSettings, plan: Path, releases: list[Path], shard: str | None, folder: Path) -> Path:
    out = folder / "sketch.h5"
    api.sketch(
        plan,
        settings.data,
        out,
        release=releases or None,
        shard=shard,
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
    with os.fdopen(descriptor, "a", encoding="utf-8") as file, redirect_stderr(file):
        yield
