"""What a fit gives back: the model, what it costs, and how it got there. All of it is public but the metrics of private records."""

from __future__ import annotations

import dataclasses
import html
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from distqexp.artefacts.card import ModelCard
from distqexp.errors import NotAvailableYet, UsageError
from distqexp.live.predictor import Predictor
from distqexp.live.scratch import Scratch
from distqexp.problem.network import Network

_PUBLIC_FILES = ("plan.h5", "progress.jsonl", "model.safetensors", "model.pt", "model.json", "certificate.json")


@dataclasses.dataclass(frozen=True)
class Facts:
    """The public figures of a finished run, in JSON types.

    Attributes:
        certificate: The certificate.
        metrics: The metrics on the evaluation records, "before" and "after"; not covered by epsilon.
        history: A mapping for each round: its number, what it cost, how far it moved (None between rounds of a large model), and its
            diagnostics if there are any.
        budget: Of the ledger: population, delta, cap, spent and left, as epsilons.
        seconds: The seconds of each stage.
        card: What ``ModelCard.tree`` gives.
        warnings: The warnings of the plan and of the run, a line each.
        unmoved: Whether the model is as it was before.
    """

    certificate: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    history: list[dict[str, Any]]
    budget: dict[str, Any]
    seconds: dict[str, float]
    card: dict[str, Any]
    warnings: list[str]
    unmoved: bool


class Fitted(Predictor):
    """A finished fit: a model that predicts, with its certificate and its history.

    Attributes:
        certificate: What was released under which guarantee, and what that doesn't cover: certificate.json.
        metrics: The metrics on the evaluation records before and after; not covered by epsilon.
        history: A mapping for each round.
        budget: What the ledger says of the population: cap, spent and left.
        seconds: The seconds of each stage.
        warnings: What the plan and the run warned of, a line each; also where a callback kept lines from being printed.
        out: The folder of the run. Where none was asked for it is a temporary one, which goes with this object: ``save`` keeps it.
    """

    def __init__(self, network: Network, facts: Facts, out: Path, temporary: Scratch | None = None) -> None:
        super().__init__(network, ModelCard.of_tree(facts.card))
        self.certificate, self.metrics, self.history = facts.certificate, facts.metrics, facts.history
        self.budget, self.seconds, self.out = facts.budget, facts.seconds, out
        self.warnings, self._unmoved = tuple(facts.warnings), facts.unmoved
        self._temporary = temporary

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_temporary": None}

    @property
    def model(self) -> nn.Module:
        """The fine-tuned module, in evaluation mode: a copy, the module that was passed in is as it was."""
        return self.network.module

    @property
    def epsilon(self) -> float:
        """The epsilon that the releases cost together, at ``delta``."""
        return float(self.certificate["epsilon"])

    @property
    def delta(self) -> float:
        """The delta of the guarantee."""
        return float(self.certificate["delta"])

    @property
    def left(self) -> float:
        """The epsilon that the population has left under its cap, at the cap's delta, after this run."""
        return float(self.budget["left"])

    def save(self, folder: str | Path) -> Path:
        """Copy the run's public files into a new folder, for ``load_model``, ``distqexp predict`` and ``distqexp verify``.

        Raises UsageError where the folder has files already, or the run's own folder is gone.
        """
        path = Path(folder)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"save: {path} is not a new or empty folder; nothing is overwritten")
        if not self.out.is_dir():
            raise UsageError(f"save: the run's folder {self.out} is gone; expected it to be there until it is saved")
        path.mkdir(parents=True, exist_ok=True)
        for file in sorted(self.out.iterdir()):
            if file.name in _PUBLIC_FILES or file.name.startswith("release-") or file.name == "report.html":
                shutil.copyfile(file, path / file.name)
        return path

    def report(self, out: str | Path | None = None) -> Path:
        """Write the run's report, one HTML page without anything from elsewhere, and return its path.

        Args:
            out: The page; ``report.html`` in the run's folder when None.
        """
        try:
            pages = importlib.import_module("distqexp.report.html")
        except ModuleNotFoundError:
            raise NotAvailableYet("report") from None
        path = self.out / "report.html" if out is None else Path(out)
        pages.write_report([self.out], path)
        return path

    def __repr__(self) -> str:
        lines = self._lines()
        width = max(12, *(len(name) + 2 for name, _ in lines))
        return "\n".join(f"{name:<{width}}{value}" for name, value in lines)

    def _repr_html_(self) -> str:
        style = "text-align:left;vertical-align:top;padding:0.15em 0.8em 0.15em 0"
        rows = "".join(
            f'<tr><th scope="row" style="{style}">{html.escape(name)}</th><td style="{style}">{html.escape(value)}</td></tr>'
            for name, value in self._lines()
        )
        return f"<table><caption>distqexp fit</caption><tbody>{rows}</tbody></table>"

    def _lines(self) -> list[tuple[str, str]]:
        lines = [
            ("model", f"{type(self.model).__name__}, {self.network.d:,} parameters fine-tuned"),
            ("guarantee", str(self.certificate["statement"])),
            ("rounds", f"{len(self.history)}"),
            ("left", f"epsilon {self.left:.4g} of {self.budget['cap']:.4g} at delta {self.budget['delta']:g} "
                     f"for population {self.budget['population']!r}"),
        ]  # fmt: skip
        if self._unmoved:
            lines.append(("unmoved", "the model is as it was: no move of any round was kept, though all are paid for"))
        lines += [("warning", text) for text in self.warnings]
        before, after = (self.metrics.get(when, {}) for when in ("before", "after"))
        lines += [
            (name, f"{before.get(name, float('nan')):.4g} before, {value:.4g} after (not covered)")
            for name, value in after.items()
        ]
        kept = "this object's own, gone with it: save(folder) keeps it" if self._temporary else str(self.out)
        return [*lines, ("folder", kept)]


def facts_of(text: str) -> Facts:
    """Return the facts that ``json.dumps(dataclasses.asdict(facts))`` gave this text of."""
    return Facts(**json.loads(text))
