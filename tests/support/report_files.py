"""Folders of finished runs as a report reads them, without a run: a certificate, stored figures, progress and an audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from distqexp.report.certificate import Certificate, certificate_bytes
from distqexp.report.evaluation import Outputs, evaluation_figures

PLAN = "ab" * 32


def certificate(**changes: Any) -> dict[str, Any]:
    """A certificate of two rounds."""
    fields: dict[str, Any] = {
        "epsilon": 0.99,
        "delta": 1e-5,
        "mu": 0.27,
        "rho": 0.036,
        "adjacency": "zero-out",
        "unit": "all records of one unit id",
        "unit_column": "patient",
        "units": 1200,
        "pure_epsilon": None,
        "rounds": [
            {"round": number, "mu": 0.19, "part": None, "clip": 1.0, "temperature": 13.7, "halvings": 0}
            for number in range(2)
        ],
        "parts": 1,
        "micro_batch": None,
        "noise": "discrete",
        "arithmetic": "exact integer",
        "mechanism": "exponential mechanism, beta = 0, infinite trust radius",
        "subspace": {"kind": "srht", "k": 100, "d": 650, "seed": 7},
        "precision": {"kind": "dense", "source": "public", "damping": 0.1},
        "plan_id": PLAN,
        "ledger": {"entry": 4, "hash": "cd" * 32},
        "model_sha256": "ef" * 32,
        "versions": {"distqexp": "0.2.0"},
    }
    return Certificate(**(fields | changes)).tree()


def outputs(classes: int, records: int, *, strength: float, seed: int) -> Outputs:
    """Logits that know the truth about as well as ``strength`` says; one logit for two classes, one prediction for none."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, max(classes, 2), records).astype(np.float64)
    if classes > 2:
        logits = random.normal(size=(records, classes)) + strength * (targets[:, None] == np.arange(classes))
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(records), targets.astype(int)]
        return Outputs(logits, targets, losses)
    values = random.normal(size=records) + strength * (2 * targets - 1)
    if classes == 0:
        return Outputs(values[:, None], targets, (values - targets) ** 2)
    return Outputs(values[:, None], targets, np.log1p(np.exp((1 - 2 * targets) * values)))


def figures(classes: int = 2, *, strength: float = 1.5, records: int = 300, **changes: Any) -> dict[str, Any]:
    """What a run stores for its report; the run made the model better."""
    loss = {0: "mean-squared-error", 2: "binary-cross-entropy"}.get(classes, "cross-entropy")
    sides = [outputs(classes, records, strength=one, seed=1) for one in (0.3, strength)]
    return {
        "schema": 1,
        "plan_id": PLAN,
        "population": "icu",
        "model": "distqexp.problem.models:mlp",
        "loss": loss,
        "pretrained": True,
        "evaluation": evaluation_figures(loss, *sides),
        "public_loss": [{"rounds": number, "loss": 0.7 - 0.1 * number} for number in range(3)],
        "curve": [[0.05 * number, -1.0 - 0.2 * number] for number in range(41)],
        "budget": {
            "population": "icu", "epsilon": 3.0, "delta": 1e-5, "set": True, "test": False, "before": 1.1, "after": 2.2,
        },
        "took_part": {"shards": ["north", "south"], "processes": 4, "engine": "mpi", "public": True},
    } | changes  # fmt: skip


def write_run(folder: Path, tree: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A folder with the certificate (with these fields) and the figures of a finished run; returns it."""
    folder.mkdir(parents=True)
    (folder / "certificate.json").write_bytes(certificate_bytes(certificate(**changes)))
    (folder / "report.json").write_text(json.dumps(figures() if tree is None else tree), "utf-8")
    stages = [("plan", None, 4.0), ("sketch", 0, 90.5), ("sketch", 1, 30.0), ("release", 1, 2.0)]
    events = [
        {"stage": stage, "round": round, "share": share, "seconds": seconds, "seconds_left": None, "time": 1.8e9}
        for stage, round, seconds in stages
        for share in (0.0, 1.0)
    ]
    (folder / "progress.jsonl").write_text(
        "".join(f"{json.dumps(event)}\n" for event in events) + '{"stage": "cut', "utf-8"
    )
    return folder


def write_audit(folder: Path, *, holds: bool = True, plan_id: str = PLAN) -> None:
    """An audit of the plan beside its run."""
    finding = {"pair": "one unit", "epsilon": 0.4, "mu": 0.11, "claimed_mu": 0.27}
    tree = {"plan_id": plan_id, "holds": holds, "findings": [finding], "caveats": ["An audit gives a lower bound."]}
    (folder / "audit").mkdir()
    (folder / "audit" / "audit.json").write_text(json.dumps(tree), "utf-8")
