"""Checks of finished files: checksums and identities, releases upon their plan, a certificate against all that it rests on."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.recomputed import refuse_unlike
from distqexp.artefacts.release import Release, charged_part
from distqexp.artefacts.restoring import restored
from distqexp.errors import DistqexpError, FileContentError, UsageError
from distqexp.gradients.worker import Worker
from distqexp.privacy import gdp
from distqexp.privacy.ledger import Ledger
from distqexp.privacy.ledger.books import LedgerRow
from distqexp.privacy.ledger.files import default_path
from distqexp.problem.models import allowed_factory
from distqexp.report.certificate import statement_of
from distqexp.stages.built import check_built, read_plan, read_release
from distqexp.stages.chain import check_chain
from distqexp.stages.charging import Charging
from distqexp.stages.export import certificate_of, fine_tuned
from distqexp.stages.void import Void
from distqexp.storage.hdf5 import read_header

TOLERANCE = 1e-11
"""Relative, of a certificate's figures: the last bits in which numerical libraries differ."""

HASH = re.compile(r"[0-9a-f]{64}")


def verify_path(path: Path) -> list[str]:
    """As ``verify_paths``, of one file or folder."""
    return verify_paths([path])


def verify_paths(paths: Sequence[Path]) -> list[str]:
    """Check files, or every file of a run's folder; one line a file, with what could not be checked.

    A folder with a plan in it is a run of its own. All other files are held against each other: a certificate against the plan and the
    releases that are given with it, or else stand beside it. Raises FileContentError at the first bad one.
    """
    lines: list[str] = []
    loose: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder; give the path of an existing one")
        if not path.is_dir():
            loose.append(path)
            continue
        files = sorted([*path.glob("*.h5"), *path.glob("certificate.json")])
        if not files:
            raise UsageError(f"{path}: no file of distqexp in it; expected the folder of a run")
        if (path / "plan.h5").exists():
            lines += _verify_together(files)
        else:
            loose += files
    return lines + _verify_together(loose, _beside(loose))


def _beside(files: Sequence[Path]) -> list[Path]:
    """Plan and releases in the folder of a lone certificate, where none from elsewhere are given with it."""
    folders = {file.resolve().parent for file in files}
    if len(folders) != 1 or not any(file.suffix == ".json" for file in files):
        return []
    folder, given = folders.pop(), {file.resolve() for file in files}
    return [
        file
        for file in [folder / "plan.h5", *sorted(folder.glob("release-*.h5"))]
        if file.exists() and file not in given
    ]


def _verify_together(files: Sequence[Path], support: Sequence[Path] = ()) -> list[str]:
    """Check files that belong together, the certificates last: they rest on the others. support: looked at, with no line of their own."""
    stored = {file: read_header(file) for file in [*files, *support] if file.suffix != ".json"}
    plans = {found.plan_id: read_plan(file) for file, found in stored.items() if found.kind == "plan"}
    releases: dict[str, dict[int, Release]] = {}
    lines: dict[Path, str] = {}
    for file, found in stored.items():
        plan = plans.get(found.plan_id)
        if plans and plan is None:
            raise FileContentError(
                f"{file}: plan_id {found.plan_id}, expected {next(iter(plans))}; it belongs to another plan"
            )
        missing = ""
        if found.kind == "release" and plan is not None:
            release = read_release(file, plan)
            if releases.setdefault(plan.plan_id, {}).setdefault(release.round, release) is not release:
                raise FileContentError(f"{file}: round {release.round} again; give every release once")
        elif found.kind == "void":
            Void.read(file)
        elif found.kind == "release":
            missing = "; not checked: its figures, as its plan is not given"
        lines[file] = f"{file}: {found.kind} of plan {found.plan_id[:16]}, every checksum holds{missing}"
    for plan_id, plan in plans.items():
        for file, remark in _check_run(plan, releases.get(plan_id, {}), stored).items():
            lines[file] += remark
    for file in files:
        if file.suffix == ".json":
            lines[file] = _verify_certificate(file, plans, releases)
    return [lines[file] for file in files]


def _check_run(plan: Plan, releases: Mapping[int, Release], stored: Mapping[Path, Any]) -> dict[Path, str]:
    """Releases from round 0 on, each upon the one before it; what to add to the lines of plan and releases."""
    chain = _first(releases)
    built = _may_be_built(plan)
    if built:
        here = _on_this_machine(plan)
        restored(_named(stored, "plan", plan), lambda: check_built(here, Worker.of_plan(here)))
        check_chain(here, chain)
    else:
        check_chain(plan, chain, built=False)
    remarks: dict[Path, str] = {}
    for file, found in stored.items():
        if found.plan_id != plan.plan_id:
            continue
        if found.kind == "plan":
            remarks[file] = ", every figure is its config's" + (
                "" if built else "; not checked: its model, not allowed here"
            )
        elif found.kind == "release":
            number = int(found.header["round"])
            whole = number < len(chain)
            remarks[file] = ", every figure is its plan's" + (
                f", and it builds on {'the plan' if number == 0 else f'round {number - 1}'}"
                if whole
                else "; not checked: what it builds on, as earlier rounds are not given"
            )
    return remarks


def _first(releases: Mapping[int, Release]) -> list[Release]:
    """Those of rounds 0, 1, ... up to the first that is not given."""
    found: list[Release] = []
    while len(found) in releases:
        found.append(releases[len(found)])
    return found


def _named(stored: Mapping[Path, Any], kind: str, plan: Plan) -> Path:
    return next(file for file, found in stored.items() if (found.kind, found.plan_id) == (kind, plan.plan_id))


def _may_be_built(plan: Plan) -> bool:
    try:
        allowed_factory(plan.config.model.factory)
    except FileContentError:
        return False
    return True


def _on_this_machine(plan: Plan) -> Plan:
    """The plan with its model on the CPU, which every machine has."""
    config = plan.config
    return replace(plan, config=replace(config, engine=replace(config.engine, device="cpu")))


def _verify_certificate(path: Path, plans: Mapping[str, Plan], releases: Mapping[str, Mapping[int, Release]]) -> str:
    certificate = _read_certificate(path)
    model, found_plan = path.with_name("model.safetensors"), certificate["plan_id"]
    if not model.exists():
        raise FileContentError(f"{model}: missing; expected the model that {path.name} speaks of, beside it")
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    if digest != certificate["model_sha256"]:
        raise FileContentError(
            f"{model}: SHA-256 {digest}, the certificate says {str(certificate['model_sha256'])[:80]}; one of the two was changed"
        )
    if plans and found_plan not in plans:
        raise FileContentError(
            f"{path}: plan_id {str(found_plan)[:80]}, the plan beside it has {next(iter(plans))}; one of the two was changed"
        )
    said = f"{path}: its model has the SHA-256 that it states"
    restored(path, lambda: _check_itself(certificate))
    ledger = _check_ledger(path, certificate)
    if not plans:
        return f"{said}; not checked: its figures against plan and releases, which are not given{ledger}"
    plan = plans[found_plan]
    chain = _first(releases.get(plan.plan_id, {}))
    rounds = plan.config.mechanism.rounds
    if len(chain) < rounds:
        return (
            f"{said}; not checked: its figures against the releases of all {rounds} rounds, which are not given{ledger}"
        )
    _check_figures(path, certificate, plan, chain)
    return f"{said}, and every figure of plan and releases; {_check_tensors(model, plan, chain[-1])}{ledger}"


def _read_certificate(path: Path) -> dict[str, Any]:
    try:
        certificate = json.loads(path.read_text("utf-8"))
        certificate["model_sha256"], certificate["plan_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FileContentError(
            f"{path}: not a certificate of distqexp; expected JSON with model_sha256 and plan_id"
        ) from None
    return dict(certificate)


def _check_itself(certificate: Mapping[str, Any]) -> None:
    """What no certificate says, whatever its plan: figures that contradict each other."""
    ledger = certificate["ledger"]
    if not (
        set(ledger) == {"entry", "hash"}
        and type(ledger["entry"]) is int
        and ledger["entry"] > 0
        and HASH.fullmatch(ledger["hash"])
    ):
        raise FileContentError(f"ledger: found {str(ledger)[:100]}; expected the number and the hash of an entry")
    epsilon, delta, mu = certificate["epsilon"], certificate["delta"], certificate["mu"]
    costs: dict[int | None, float] = {}
    for entry in certificate["rounds"]:
        costs[entry["part"]] = costs.get(entry["part"], 0.0) + entry["mu"] ** 2
    most = math.sqrt(costs.pop(None, 0.0) + max(costs.values(), default=0.0))
    pure = certificate["pure_epsilon"] is not None
    # Rounds in a ball may be cheaper than their mu says; all others add up.
    if not (math.isclose(mu, most, rel_tol=1e-9) or (pure and mu < most)):
        raise FileContentError(f"mu: found {mu!r}; its rounds add up to {most!r}: one of them was changed")
    if not pure:
        least = gdp.epsilon(delta, mu)
        if not epsilon >= least * (1 - 1e-9):
            raise FileContentError(
                f"epsilon: found {epsilon!r} at delta {delta!r}; its mu gives {least!r} or more: one of them was changed"
            )
    if certificate["rho"] is not None:
        refuse_unlike("rho", certificate["rho"], mu**2 / 2, 1e-9)
    seed = certificate["insecure_noise_seed"]
    text = statement_of(epsilon, delta, certificate["unit"], certificate["adjacency"]["kind"], seed)
    refuse_unlike("statement of epsilon, delta, unit and adjacency.kind", certificate["statement"], text)
    refuse_unlike("private", certificate["private"], seed is None)


def _check_figures(path: Path, certificate: dict[str, Any], plan: Plan, releases: Sequence[Release]) -> None:
    """Every field against the one that plan and releases give; versions by their form, the ledger's entry elsewhere."""
    ledger, versions = certificate["ledger"], certificate.get("versions")
    parts = [charged_part(plan, release) for release in releases]
    expected = certificate_of(plan, releases, certificate["model_sha256"], ledger, parts)
    names = set(expected["versions"])
    if not (
        isinstance(versions, dict)
        and set(versions) == names
        and all(isinstance(text, str) and 0 < len(text) <= 100 and text.isprintable() for text in versions.values())
    ):
        raise FileContentError(
            f"{path}: versions: found {str(versions)[:100]}; expected those of {', '.join(sorted(names))}: it was changed"
        )
    expected["versions"] = versions
    epsilon = certificate.get("epsilon")
    if type(epsilon) is float and math.isclose(epsilon, expected["epsilon"], rel_tol=TOLERANCE):
        kind, seed = expected["adjacency"]["kind"], expected["insecure_noise_seed"]
        expected["statement"] = statement_of(epsilon, expected["delta"], expected["unit"], kind, seed)
    # As a file holds it: lists and texts, no tuples.
    expected = json.loads(json.dumps(expected))
    first = {name: expected[name] for name in ("epsilon", "delta", "statement") if name in expected}
    for tree in (first, expected):
        restored(path, lambda tree=tree: _refuse_other_figures(certificate, tree, whole=tree is expected))  # type: ignore[misc]


def _refuse_other_figures(certificate: Mapping[str, Any], expected: Mapping[str, Any], *, whole: bool) -> None:
    found = dict(certificate) if whole else {name: certificate[name] for name in expected if name in certificate}
    refuse_unlike("certificate", found, dict(expected), TOLERANCE)


def _check_ledger(path: Path, certificate: Mapping[str, Any]) -> str:
    """The certificate's entry, and whose units it charges, against this machine's ledger, where that knows the plan. No ledger is made."""
    where = default_path()
    said = f"ledger entry {certificate['ledger']['entry']}"
    if any(entry["part"] is not None for entry in certificate["rounds"]):
        said += " and whose units each round was charged to"
    if not where.exists():
        return f"; not checked: {said}, as there is no ledger here"
    try:
        with Ledger.open(where, create=False) as ledger:
            rows = ledger.rows()
            universe = Charging(ledger, certificate["insecure_noise_seed"]).universe
    except DistqexpError as error:
        return f"; not checked: {said}, as the ledger here can't be read ({error})"

    def charges(round: int) -> list[LedgerRow]:
        key = f"release/{certificate['plan_id']}/{round}"
        return [row for row in rows if (row.universe, row.key.rpartition("/")[0]) == (universe, key)]

    own = charges(len(certificate["rounds"]) - 1)
    if not own:
        return f"; not checked: {said}, as the ledger here does not know the plan"
    expected = [{"entry": row.id, "hash": row.hash} for row in own]
    if certificate["ledger"] not in expected:
        raise FileContentError(
            f"{path}: ledger: {certificate['ledger']}; {where} has {expected[-1]} for it: the certificate was changed"
        )
    for round, entry in enumerate(certificate["rounds"]):
        charged = sorted({"everybody" if row.part is None else f"part {row.part.number}" for row in charges(round)})
        if charged and entry["part"] is not None and charged != [f"part {entry['part']}"]:
            raise FileContentError(
                f"{path}: round {round}: charged to part {entry['part']}; {where} has it charged to {' and '.join(charged)}: the "
                "certificate or its release was changed"
            )
    return f"; {said} {'are' if ' and ' in said else 'is'} this machine's own"


def _check_tensors(model: Path, plan: Plan, last: Release) -> str:
    """The weights beside a certificate against those that the last release gives."""
    if not _may_be_built(plan):
        return "not checked: the model's tensors, as its factory is not allowed here"
    import safetensors
    from safetensors.numpy import load

    try:
        found = load(model.read_bytes())
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError):
        raise FileContentError(f"{model}: not readable as safetensors; export it again") from None
    expected = fine_tuned(_on_this_machine(plan), last.theta).state()
    if set(found) != set(expected):
        raise FileContentError(
            f"{model}: tensors {sorted(found)[:5]}; expected {sorted(expected)[:5]}: it is not the model of plan and releases"
        )
    for name, array in expected.items():
        if found[name].shape != array.shape or not np.array_equal(
            found[name], array, equal_nan=array.dtype.kind == "f"
        ):
            raise FileContentError(
                f"{model}: tensor {name} is not what plan and releases give; one of them was changed: export it again"
            )
    return "its tensors are those of the last release"
