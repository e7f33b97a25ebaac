"""The interface: functions that look at files and runs, and change neither."""

from __future__ import annotations

from pathlib import Path

from distqexp.api.paths import StrPath, optional_path
from distqexp.artefacts.plan import Plan
from distqexp.audit.command import Audit, audit_plan, write_audit
from distqexp.audit.one_run import RunAudit, run_audit, write_run_audit
from distqexp.config import Config
from distqexp.errors import UsageError
from distqexp.report.html import REPORT, is_report, write_report
from distqexp.stages.folder import open_folder
from distqexp.stages.verify import verify_paths
from distqexp.storage.inspect import describe


def audit(plan_file: StrPath, out: StrPath, *, draws: int = 100_000, runs: int = 1) -> Audit:
    """Draw many releases of a plan's mechanism on two neighbouring datasets, and see whether they tell more than claimed.

    Reads no record and charges nothing. Writes audit.json and audit.png.

    Args:
        plan_file: The plan's file.
        out: The folder to write the findings to.
        draws: How many releases of each round to draw on either dataset.
        runs: How many runs of the plan are audited as one, against the claim for all of them together.

    Returns:
        The findings; ``holds`` says whether the claim survives.
    """
    findings = audit_plan(Plan.read(Path(plan_file)), draws, runs=runs)
    write_audit(findings, Path(out))
    return findings


def audit_run(config: Config, canaries: int, out: StrPath, *, insecure_noise_seed: int | None = None) -> RunAudit:
    """Make one run on public records and made-up ones, and see what its releases and its model tell of them.

    Opens no private file and charges nothing. Writes audit-run.json and audit-run.png.

    Args:
        config: The config; its public records play the private ones.
        canaries: How many records to make up.
        out: The folder to write the findings to.
        insecure_noise_seed: Seed of the noise and the coins, for tests of the audit.

    Returns:
        The findings; ``holds`` says whether the claim survives.

    Raises:
        UsageError: There are no public data, too few canaries, or the adjacency leaves no unit out.
    """
    open_folder(Path(out), resume=True)  # refused now, not after the run
    scored = run_audit(config, canaries, noise_seed=insecure_noise_seed)
    write_run_audit(scored, Path(out))
    return scored.audit


def inspect(path: StrPath) -> str:
    """Describe a file in a few lines for people.

    Args:
        path: Any distqexp file. Of private files the header alone is described.

    Returns:
        The lines, as one text. Public.

    Raises:
        FileContentError: The file is damaged, or another program's.
    """
    return describe(Path(path))


def report(*folders: StrPath, out: StrPath | None = None) -> Path:
    """Write a page of HTML on one run, or on several side by side, that needs no network and no other file.

    Args:
        folders: The folders of finished runs.
        out: The page to write; when None ``report.html`` in the folder of a single run, and here for several. A report that is there
            already is written over.

    Returns:
        The page's path. Public.

    Raises:
        UsageError: A folder has no certificate, or ``out`` is another file.
        FileContentError: A file is not what its name says.
    """
    paths = [Path(folder) for folder in folders]
    page = Path(out) if out else (paths[0] if len(paths) == 1 else Path()) / REPORT
    if page.exists() and not is_report(page):
        raise UsageError(f"--out {page}: exists and is no report; expected a new file, nothing else is overwritten")
    write_report(paths, page)
    return page


def verify(*paths: StrPath, config: Config | None = None, weights: StrPath | None = None) -> list[str]:
    """Check files, certificates or a run's folder, alone and against each other.

    A certificate is computed again from the plan and all its releases, which are among ``paths`` or lie beside it.

    Args:
        paths: Files, certificates, or folders of a run.
        config: The run's config, which says where its public records lie. With it the parameters of later rounds are checked even
            where the run's files left out what they were sketched with.
        weights: This machine's copy of the pretrained weights, for a plan that names them; when None what ``config`` has, or
            DISTQEXP_WEIGHTS says, or else what the factory gives.

    Returns:
        A line for each file, with what could not be checked.

    Raises:
        FileContentError: A file is not what it says; the first such file ends the check.
    """
    return verify_paths([Path(path) for path in paths], config, optional_path(weights))
