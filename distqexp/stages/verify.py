"""Checks finished files: checksums, identities, releases upon their plan, and certificates against what they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.restoring import with_file_errors
from distqexp.config import Config
from distqexp.errors import FileContentError, UsageError
from distqexp.gradients.worker import Worker
from distqexp.stages.built import check_built, read_plan, read_release
from distqexp.stages.chain import check_chain, completed_chain
from distqexp.stages.completing import completion
from distqexp.stages.own_weights import completed_plan
from distqexp.stages.verify_certificate import may_be_built, on_this_machine, unbroken_chain, verify_certificate
from distqexp.stages.verify_others import verify_other, verify_others
from distqexp.stages.void import Void
from distqexp.storage.hdf5 import StoredFile, read_header


def verify_paths(paths: Sequence[Path], config: Config | None = None, weights: Path | None = None) -> list[str]:
    """Check files, or every file of a run's folder; return one line a file, which also says what could not be checked.

    A folder with a plan in it is a run of its own. All other files are held against each other: a certificate against the plan
    and the releases that are given with it or, if none are, stand beside it. ``config`` says where the public records of a run lie;
    the states that its releases left out are computed from these. ``weights`` says where this machine's copy of the pretrained weights
    is, for a plan that names them; without it ``config`` does. Raises FileContentError at the first bad file.
    """
    lines: list[str] = []
    single_files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder; give the path of an existing one")
        if not path.is_dir():
            line = verify_other(path)
            if line is None:
                single_files.append(path)
            else:
                lines.append(line)
            continue
        files = sorted([*path.glob("*.h5"), *path.glob("certificate.json")])
        if not files:
            raise UsageError(f"{path}: no file of distqexp in it; expected the folder of a run")
        if (path / "plan.h5").exists():
            lines += _verify_together(files, (), config, weights)
        else:
            single_files += files
        lines += verify_others(path)
    return lines + _verify_together(single_files, _beside(single_files), config, weights)


def _beside(files: Sequence[Path]) -> list[Path]:
    """Return plan and releases in the folder of a lone certificate, where none from elsewhere are given with it."""
    folders = {file.resolve().parent for file in files}
    if len(folders) != 1 or not any(file.suffix == ".json" for file in files):
        return []
    folder, arguments = folders.pop(), {file.resolve() for file in files}
    return [
        file
        for file in [folder / "plan.h5", *sorted(folder.glob("release-*.h5"))]
        if file.exists() and file not in arguments
    ]


def _verify_together(
    files: Sequence[Path], support: Sequence[Path], config: Config | None, weights: Path | None
) -> list[str]:
    """Check files that belong together; files of ``support`` get no line. Certificates, which rest on the others, come last."""
    labels = {file: read_header(file) for file in [*files, *support] if file.suffix != ".json"}
    plans = {label.plan_id: read_plan(file) for file, label in labels.items() if label.kind == "plan"}
    releases: dict[str, dict[int, Release]] = {}
    lines: dict[Path, str] = {}
    for file, label in labels.items():
        plan = plans.get(label.plan_id)
        if plans and plan is None:
            raise FileContentError(
                f"{file}: plan_id {label.plan_id}, expected {next(iter(plans))}; it belongs to another plan"
            )
        remark = _look_into(file, label.kind, plan, releases)
        lines[file] = f"{file}: {label.kind} of plan {label.plan_id[:16]}, every checksum holds{remark}"
    for plan_id, plan in list(plans.items()):
        plans[plan_id] = plan = _with_own_weights(plan, config, weights)
        for file, remark in _check_run(plan, releases.setdefault(plan_id, {}), labels, config).items():
            lines[file] += remark
    for file in files:
        if file.suffix == ".json":
            lines[file] = verify_certificate(file, plans, releases)
    return [lines[file] for file in files]


def _look_into(file: Path, kind: str, plan: Plan | None, releases: dict[str, dict[int, Release]]) -> str:
    """Read a file of its kind and put a release with those of its plan; return what couldn't be checked, for the file's line."""
    if kind == "void":
        Void.read(file)
    if kind != "release":
        return ""
    if plan is None:
        return "; not checked: its figures, as its plan is not given"
    release = read_release(file, plan)
    if releases.setdefault(plan.plan_id, {}).setdefault(release.round, release) is not release:
        raise FileContentError(f"{file}: round {release.round} again; give every release once")
    return ""


def _with_own_weights(plan: Plan, config: Config | None, weights: Path | None) -> Plan:
    """Return a plan with the weights that it names, where its model may be built and this machine has them; else as it is.

    Raises FileContentError where the copy that is named is another.
    """
    if not (plan.lacking and may_be_built(plan)):
        return plan
    path = weights or (config.model.weights if config else None)
    try:
        return completed_plan(on_this_machine(plan), path)
    except UsageError:
        if path is not None:
            raise
        return plan


def _check_run(
    plan: Plan, releases: dict[int, Release], labels: Mapping[Path, StoredFile], config: Config | None
) -> dict[Path, str]:
    """Check the releases from round 0 on, each upon the one before it; return what to add to the lines of plan and releases."""
    chain = unbroken_chain(releases)
    built = may_be_built(plan) and not plan.lacking
    unchecked: list[int] = []
    if built:
        here = on_this_machine(plan)
        worker = Worker.of_plan(here)
        with_file_errors(_plan_file(labels, plan), lambda: check_built(here, worker))
        complete = completion(here, config, worker)
        chain = completed_chain(here, chain, worker, complete)
        releases |= enumerate(chain)
        unchecked = check_chain(here, chain, worker=worker, complete=complete)
    else:
        check_chain(plan, chain, built=False)
    remarks: dict[Path, str] = {}
    for file, label in labels.items():
        if label.plan_id != plan.plan_id:
            continue
        if label.kind == "plan":
            remarks[file] = ", every figure is its config's" + (
                "" if built else f"; not checked: its model, {_why_not(plan)}"
            )
        elif label.kind == "release":
            number = int(label.header["round"])
            whole = number < len(chain)
            remarks[file] = ", every figure is its plan's" + (
                f", and it builds on {'the plan' if number == 0 else f'round {number - 1}'}"
                if whole
                else "; not checked: what it builds on, as earlier rounds are not given"
            )
            if number in unchecked:
                remarks[file] += (
                    "; not checked: its parameters, as the round before left its state out (--config CONFIG, where the public "
                    "records are at hand)"
                )
    return remarks


def _why_not(plan: Plan) -> str:
    if may_be_built(plan):
        return "whose weights it names by SHA-256 and the factory here does not give (--weights PATH)"
    return "not allowed here"


def _plan_file(labels: Mapping[Path, StoredFile], plan: Plan) -> Path:
    return next(file for file, label in labels.items() if (label.kind, label.plan_id) == ("plan", plan.plan_id))
