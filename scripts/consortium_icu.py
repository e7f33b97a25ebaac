"""Four hospitals of ICU stays as a study by files, against the same study with a trusted curator: what noise in shares costs.

Every party has keys, ledger, log and folder of its own; a command is a command of its party. The surgical unit drops out after
the first round, in both ways. What is printed is of public benchmark records.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

from distqexp.cli import run

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "icu" / "four-hospitals.toml"
SITES = ("coronary", "cardiac", "surgical", "medical")
HELPERS = ("ethics", "archive")
GONE, OFFICE = "surgical", "office"
SHARED, CURATOR = "helper-masks-distributed-noise", "trusted-curator"


class Consortium:
    """The folders of one study."""

    def __init__(self, root: Path, trust: str) -> None:
        self.root = root
        self.trust = trust
        self.helpers = HELPERS if trust == SHARED else ()
        self.visits: dict[str, int] = dict.fromkeys(SITES, 0)

    def at(self, party: str, *words: str | Path) -> str:
        """Run a command of a party and return what it printed. Raises SystemExit where it fails."""
        folder = self.root / party
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["DISTQEXP_HOME"], os.environ["DISTQEXP_LEDGER"] = str(folder / "home"), str(folder / "ledger.sqlite")
        said, told = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
            code = run([str(word) for word in words])
        if code:
            raise SystemExit(f"{party}: {' '.join(map(str, words))}: {code}: {told.getvalue()}")
        return said.getvalue()

    def begin(self, plan: Path) -> None:
        """Keys, study, signature, and everybody's acceptance."""
        for party in (OFFICE, *SITES, *self.helpers):
            self.at(party, "site", "init", party)
        cards = [word for site in SITES for word in ("--site", self.card(site))]
        cards += [word for helper in self.helpers for word in ("--helper", self.card(helper))]
        terms = ("--k-min", "3", "--trust", self.trust, "--out", self.root / "study.toml")
        self.at(OFFICE, "study", "new", "icu", "--plan", plan, *cards, *terms)
        self.at(OFFICE, "study", "sign", self.root / "study.toml", "--plan", plan, "--folder", self.exchange)
        for party in (*SITES, *self.helpers):
            more = ["--not-elsewhere"] if party in SITES else []
            self.at(party, "study", "accept", self.exchange, "--coordinator", self.card(OFFICE), *more)
            if party in SITES:
                self.visits[party] += 1

    def round(self, number: int, data: Path) -> None:
        """A whole round; the site that is gone joins the first one alone."""
        for site in SITES:
            if number == 0 or site != GONE:
                self.at(site, "study", "sketch", self.exchange, "--data", data, "--yes")
                self.visits[site] += 1
        self.at(OFFICE, "study", "close", self.exchange)
        for helper in self.helpers:
            (closing,) = self.exchange.glob(f"closing-{number:03d}-00-*.message")
            self.at(helper, "helper", "answer", closing)
        self.at(OFFICE, "study", "release", self.exchange, "--config", CONFIG, *self.overrides)

    @property
    def overrides(self) -> tuple[str, ...]:
        """What makes the config that of the plan."""
        return () if self.trust == SHARED else ("--set", "mechanism.tolerated_sites=0")

    def export(self) -> dict[str, float]:
        """The metrics of the model on the evaluation records."""
        out = self.root / "model"
        said = self.at(OFFICE, "study", "export", self.exchange, "--out", out, "--config", CONFIG, *self.overrides)
        metrics: dict[str, float] = json.loads(said.splitlines()[-1])["after"]
        return metrics

    @property
    def exchange(self) -> Path:
        """The folder that the parties exchange."""
        return self.root / "exchange"

    def card(self, party: str) -> Path:
        """The card of a party."""
        return self.root / party / "home" / f"{party}.card"


def study(scratch: Path, trust: str, data: Path, rounds: int) -> dict[str, float]:
    """Run one study from keys to metrics in a folder that is removed."""
    made = Consortium(scratch, trust)
    plan = scratch / "plan.h5"
    scratch.mkdir(parents=True)
    made.at(OFFICE, "plan", CONFIG, "--out", plan, *made.overrides)
    made.begin(plan)
    for number in range(rounds):
        made.round(number, data)
    metrics = made.export()
    expected = {site: 2 if site == GONE else 1 + rounds for site in SITES}
    if made.visits != expected:
        raise SystemExit(f"visits {made.visits}; expected {expected}")
    shutil.rmtree(scratch)
    return metrics


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both ways by turns and print their AUROC and the difference of the means with its standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--seeds", type=int, default=20, help="studies of each way; the noise is the operating system's"
    )
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    data = Path(os.environ["DISTQEXP_DATA"]).resolve() / "icu2012" / "set-b.csv.gz"
    found: dict[str, list[float]] = {SHARED: [], CURATOR: []}
    for number in range(options.seeds):
        for trust, values in found.items():
            metrics = study(options.out / f"scratch-{number}", trust, data, rounds=2)
            values.append(metrics["auroc"])
        (options.out / "auroc.json").write_text(json.dumps(found))
    means = {trust: statistics.fmean(values) for trust, values in found.items()}
    for trust, mean in means.items():
        spread = statistics.stdev(found[trust]) if options.seeds > 1 else math.nan
        print(f"{trust}: AUROC {mean:.4f}, standard deviation {spread:.4f} over {options.seeds} studies")
    error = (
        math.sqrt(sum(statistics.variance(values) / len(values) for values in found.values()))
        if options.seeds > 1
        else math.nan
    )
    print(f"difference {means[SHARED] - means[CURATOR]:+.4f}, standard error {error:.4f}")


if __name__ == "__main__":
    main()
