"""Checks the files of a run that are not HDF5 against what lies beside them; a certificate and its weights are checked elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from distqexp.artefacts.card import FILE_NAME as CARD
from distqexp.artefacts.card import ModelCard
from distqexp.errors import FileContentError
from distqexp.storage.others import events_of, is_other, read_tree, tensors_of

ELSEWHERE = ("certificate.json",)


def verify_others(folder: Path) -> list[str]:
    """Return a line for each file of a run's folder that is not HDF5 and not its certificate. Raises FileContentError."""
    lines = [verify_other(path) for path in sorted(folder.iterdir())]
    return [line for line in lines if line is not None]


def verify_other(path: Path) -> str | None:
    """Return a line on a file that is not HDF5, or None where it is no file of a run, or checked elsewhere.

    Raises:
        FileContentError: It is not what its name says, or is not of the run beside it.
    """
    if not path.is_file() or not is_other(path) or path.name in ELSEWHERE:
        return None
    if path.name == "model.safetensors":
        return f"{path}: {len(tensors_of(path))} tensors, readable; its certificate's line says whether it is the run's"
    if path.name == "model.pt":
        return f"{path}: {_torch_file(path)}"
    if path.name == CARD:
        ModelCard.read(path.parent)
        return f"{path}: readable; not checked: whether it is the plan's"
    if path.name == "progress.jsonl":
        events, others = events_of(path)
        cut = f", and {others} lines that are none, as a kill leaves them" if others else ""
        return f"{path}: {len(events)} events{cut}; not checked: its times"
    if path.name == "report.html":
        return f"{path}: not checked: a page for people; distqexp report makes it again"
    if path.suffix == ".sqlite":
        return f"{path}: not checked: a ledger; distqexp ledger verify does that"
    return f"{path}: {_of_plan(path)}; not checked: its figures"


def _torch_file(path: Path) -> str:
    """Hold a torch file of weights against the safetensors file beside it."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        arrays = {str(name): tensor.numpy() for name, tensor in state.items()}
    except Exception:  # noqa: BLE001 - torch refuses a damaged file by errors of many types
        raise FileContentError(f"{path}: not readable as weights of torch; export it again") from None
    beside = path.with_name("model.safetensors")
    if not beside.exists():
        return f"{len(arrays)} tensors, readable; not checked against model.safetensors, which is not beside it"
    from safetensors.numpy import load

    expected = load(beside.read_bytes())
    same = set(arrays) == set(expected) and all(
        arrays[name].shape == array.shape and np.array_equal(arrays[name], array, equal_nan=array.dtype.kind == "f")
        for name, array in expected.items()
    )
    if not same:
        raise FileContentError(
            f"{path}: not the tensors of {beside.name}; one of the two was changed: export them again"
        )
    return f"the {len(arrays)} tensors of {beside.name}"


def _of_plan(path: Path) -> str:
    """Hold the plan that a file of JSON names against the certificate's beside it."""
    plan_id, beside = read_tree(path).get("plan_id"), path.with_name("certificate.json")
    if not isinstance(plan_id, str):
        raise FileContentError(f"{path}: no plan_id; expected a file that distqexp wrote")
    if path.name == "report.json" and beside.exists() and (own := read_tree(beside).get("plan_id")) != plan_id:
        raise FileContentError(
            f"{path}: plan_id {plan_id[:16]}, the certificate beside it has {str(own)[:16]}; one of the two was changed"
        )
    return f"of plan {plan_id[:16]}"
