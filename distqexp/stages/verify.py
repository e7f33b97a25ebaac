"""Checks of finished files: checksums, identities, and a certificate against its model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from distqexp.errors import FileContentError, UsageError
from distqexp.stages.artefacts import Plan
from distqexp.storage.hdf5 import read_header


def verify_path(path: Path) -> list[str]:
    """Check a file, or every file of a run's folder; one line a file. Raises FileContentError at the first bad one."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder; give the path of an existing one")
    if not path.is_dir():
        return [_verify_file(path)]
    files = sorted([*path.glob("*.h5"), *path.glob("certificate.json")])
    if not files:
        raise UsageError(f"{path}: no file of distqexp in it; expected the folder of a run")
    plan = path / "plan.h5"
    plan_id = Plan.read(plan).plan_id if plan.exists() else None
    return [_verify_file(file, plan_id) for file in files]


def _verify_file(path: Path, plan_id: str | None = None) -> str:
    if path.suffix == ".json":
        return _verify_certificate(path, plan_id)
    stored = read_header(path, plan_id=plan_id)
    if stored.kind == "plan":
        Plan.read(path)
    return f"{path}: {stored.kind} of plan {stored.plan_id[:16]}, every checksum holds"


def _verify_certificate(path: Path, plan_id: str | None) -> str:
    try:
        certificate = json.loads(path.read_text("utf-8"))
        claimed, found_plan = certificate["model_sha256"], certificate["plan_id"]
    except (ValueError, KeyError, TypeError):
        raise FileContentError(
            f"{path}: not a certificate of distqexp; expected JSON with model_sha256 and plan_id"
        ) from None
    model = path.with_name("model.safetensors")
    if not model.exists():
        raise FileContentError(f"{model}: missing; expected the model that {path.name} speaks of, beside it")
    found = hashlib.sha256(model.read_bytes()).hexdigest()
    if found != claimed:
        raise FileContentError(f"{model}: SHA-256 {found}, the certificate says {claimed}; one of the two was changed")
    if plan_id is not None and found_plan != plan_id:
        raise FileContentError(
            f"{path}: plan_id {found_plan}, the plan beside it has {plan_id}; one of the two was changed"
        )
    return f"{path}: its model has the SHA-256 that it states"
