"""The files of a run that are not HDF5, described for people: certificate, weights, progress, report, audit. Public, all of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distqexp.errors import FileContentError, StorageError

LARGEST = 64 << 20
"""A file of text, or the header of weights, with more bytes than this is not read."""


def describe_other(path: Path) -> list[str] | None:
    """Return lines on a file of a run that is not HDF5, or None where its name is none of theirs.

    Raises:
        FileContentError: The file is not what its name says.
        StorageError: It can't be read.
    """
    describer = _describer(path.name)
    return None if describer is None or not path.is_file() else [str(path), *describer(path)]


def is_other(path: Path) -> bool:
    """Return whether a file of this name belongs to a run and is not HDF5."""
    return _describer(path.name) is not None


def read_tree(path: Path) -> dict[str, Any]:
    """Read a file of JSON with an object in it. Raises FileContentError or StorageError."""
    try:
        tree = json.loads(_read(path, LARGEST))
    except (ValueError, RecursionError):
        raise FileContentError(f"{path}: not readable as JSON; take a copy of it, or make it anew") from None
    if not isinstance(tree, dict):
        raise FileContentError(f"{path}: found a {type(tree).__name__}; expected an object of JSON")
    return tree


def tensors_of(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Return type and shape of each tensor by its name, from the header of a safetensors file. Raises FileContentError."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > LARGEST:
                raise ValueError("header")
            header = json.loads(file.read(size))
        return {
            str(name): (str(entry["dtype"]), [int(side) for side in entry["shape"]])
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except OSError as error:
        raise StorageError(f"{path}: can't be read ({error.strerror}); check its owner and mode") from error
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
        raise FileContentError(f"{path}: not readable as safetensors; export it again") from None


def events_of(path: Path) -> tuple[list[Mapping[str, Any]], int]:
    """Return the events of a progress file, and how many lines of it are none: a kill may have cut one."""
    events: list[Mapping[str, Any]] = []
    others = 0
    for line in _read(path, LARGEST).splitlines():
        try:
            event = json.loads(line)
            str(event["stage"]), float(event["seconds"]), event["share"]
            events.append(event)
        except (ValueError, KeyError, TypeError, RecursionError):
            others += 1
    return events, others


def _describer(name: str) -> Callable[[Path], list[str]] | None:
    return {
        "certificate.json": _certificate,
        "model.safetensors": _weights,
        "model.pt": _torch_file,
        "model.json": _card,
        "progress.jsonl": _progress,
        "report.json": _figures,
        "report.html": _page,
        "audit.json": _audit,
        "audit-run.json": _audit,
        "ledger.sqlite": _ledger,
    }.get(name)


def _certificate(path: Path) -> list[str]:
    tree = read_tree(path)
    try:
        subspace, ledger = tree["subspace"], tree["ledger"]
        return [
            "  kind            certificate: what was released, under which guarantee, and what it does not cover (public)",
            f"  statement       {tree['statement']}",
            f"  plan_id         {tree['plan_id']}",
            f"  rounds          {len(tree['rounds'])}, over {subspace['k']:,} of {subspace['d']:,} dimensions ({subspace['kind']})",
            *_held_back(tree["rounds"]),
            *([f"  kept            {tree['kept']['meaning']}"] if "kept" in tree else []),
            f"  guarantee       epsilon {tree['epsilon']:.6g}, delta {tree['delta']:g}, mu {tree['mu']:.6g}",
            f"  ledger          entry {ledger['entry']}, {ledger['hash']}",
            f"  model           SHA-256 {tree['model_sha256']}",
            "  not covered",
            *(f"    {text}" for text in tree["not_covered"]),
            f"  check it        distqexp verify {path.parent}",
        ]
    except (KeyError, TypeError, ValueError):
        raise FileContentError(f"{path}: not a certificate of distqexp; take the one that export wrote") from None


def _held_back(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the guard did, where it did something."""
    halvings = {int(entry["round"]): int(entry.get("halvings", 0)) for entry in rounds}
    times = ", ".join(f"round {round + 1} {number} times" for round, number in halvings.items() if number)
    return [f"  guard           halved the move of {times}"] if times else []


def _card(path: Path) -> list[str]:
    tree = read_tree(path)
    try:
        model, schema = tree["model"], tree["schema"]
        return [
            "  kind            what a model needs beside its weights: its factory, and how records become inputs (public)",
            f"  factory         {model['factory']}, for {model['loss']}",
            f"  records         shape {schema['shape']}, {len(schema['names'])} features",
            f"  use it          distqexp predict {path.parent} DATA --out FILE",
        ]
    except (KeyError, TypeError):
        raise FileContentError(f"{path}: not a model's description by distqexp; export the model again") from None


def _weights(path: Path) -> list[str]:
    tensors = tensors_of(path)
    numbers = 0
    for _, shape in tensors.values():
        size = 1
        for side in shape:
            size *= side
        numbers += size
    return [
        f"  kind            weights of the fine-tuned model: {len(tensors)} tensors, {numbers:,} numbers (public)",
        *(f"    {name}: {kind} {tuple(shape)}" for name, (kind, shape) in tensors.items()),
        "  load it         safetensors.torch.load_file, then load_state_dict",
    ]


def _torch_file(path: Path) -> list[str]:
    return [
        "  kind            the weights of model.safetensors as a torch file (public); not opened here",
        f"  bytes           {path.stat().st_size:,}",
        "  load it         torch.load(path, weights_only=True), then load_state_dict",
    ]


def _progress(path: Path) -> list[str]:
    events, others = events_of(path)
    seconds: dict[str, float] = {}
    for event in events:
        if event["share"] == 1:
            seconds[event["stage"]] = seconds.get(event["stage"], 0.0) + float(event["seconds"])
    cut = f", {others} lines that are none" if others else ""
    return [
        f"  kind            progress of a run: {len(events)} events{cut} (public, no counts in it)",
        *(f"    {stage}: {spent:.1f} s in all" for stage, spent in seconds.items()),
    ]


def _figures(path: Path) -> list[str]:
    tree = read_tree(path)
    evaluation = tree.get("evaluation")
    told = evaluation.get("records") if isinstance(evaluation, dict) else None
    return [
        "  kind            the figures that report.html shows (public)",
        f"  plan_id         {tree.get('plan_id')}",
        f"  evaluation      {f'{told} records, not covered by the guarantee' if told else 'none stored'}",
        "  show it         distqexp report, with the run's folder",
    ]


def _page(path: Path) -> list[str]:
    return [
        "  kind            a page for people (public); open it in a browser: it needs no network",
        f"  bytes           {path.stat().st_size:,}",
    ]


def _ledger(path: Path) -> list[str]:
    return [
        "  kind            a ledger: what was spent on whom (public), with keys and draws in the folder beside it (PRIVATE)",
        f"  read it         DISTQEXP_LEDGER={path} distqexp ledger show",
    ]


def _audit(path: Path) -> list[str]:
    tree = read_tree(path)
    verdict = "no contradiction to the claim was found" if tree.get("holds") is True else "THE CLAIM IS WRONG"
    return [
        "  kind            an audit: whether releases tell more than is claimed (public)",
        f"  plan_id         {tree.get('plan_id')}",
        f"  verdict         {verdict}",
    ]


def _read(path: Path, most: int) -> bytes:
    try:
        if path.stat().st_size > most:
            raise FileContentError(f"{path}: more than {most >> 20} MiB; expected a file of distqexp")
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: can't be read ({error.strerror}); check its owner and mode") from error
