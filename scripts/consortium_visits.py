"""Measure a coordinator's and the helpers' visits in a round of many sites, by the commands themselves, each in its own process.

The plan is a real one of k coordinates. Sites' vectors are made up, masked, signed and written as sites do it; sketching itself is
measured elsewhere. What is printed tells nothing of records.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distqexp.federation.contribution import contribute
from distqexp.federation.keys import Card, Identity
from distqexp.federation.messages import peek
from distqexp.federation.study import Study

CONFIG = """
[model]
factory = "distqexp.problem.models:logistic"
args = {{ inputs = {inputs}, outputs = 1 }}
loss = "binary-cross-entropy"
[data]
population = "made-up"
record_shape = [{inputs}]
{shards}
[privacy]
epsilon = 1.0
delta = 1e-6
units = 100000
[precision]
kind = "identity"
[mechanism]
rounds = 2
clip = 1.0
tolerated_sites = {missing}
"""

SHARD = """
[[data.private]]
shard = "site{number}"
format = "npy"
columns = {{ images = false }}
"""


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run the measurement, print its figures as JSON, and return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=200, help="sites of the study")
    parser.add_argument("--missing", type=int, default=20, help="how many of them send nothing")
    parser.add_argument("--k", type=int, default=100_000, help="coordinates of the plan")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        figures = _measured(Path(name), options)
    print(json.dumps(figures, indent=2))
    return figures


def _measured(root: Path, options: argparse.Namespace) -> dict[str, float]:
    figures: dict[str, float] = {}

    def at(party: str, *words: object) -> float:
        """Run a command of a party; return its seconds."""
        environment = os.environ | {
            "DISTQEXP_HOME": str(root / party / "home"),
            "DISTQEXP_LEDGER": str(root / party / "ledger.sqlite"),
        }
        (root / party).mkdir(exist_ok=True)
        begun = time.perf_counter()
        command = [sys.executable, "-c", "from distqexp.cli import main; main()", *map(str, words)]
        subprocess.run(command, env=environment, cwd=root, check=True, stdout=subprocess.DEVNULL)
        return round(time.perf_counter() - begun, 2)

    def card(party: str) -> Path:
        return root / party / "home" / f"{party}.card"

    shards = "".join(SHARD.format(number=number, inputs=options.k - 1) for number in range(options.sites))
    (root / "task.toml").write_text(CONFIG.format(inputs=options.k - 1, shards=shards, missing=options.missing))
    for party in ("office", "helper0", "helper1"):
        at(party, "site", "init", party)
    sites = [Identity.draw(f"site{number}") for number in range(options.sites)]
    cards: list[Path | str] = []
    for site in sites:
        site.card.write(root / f"{site.name}.card")
        cards += ["--site", root / f"{site.name}.card"]
    figures["plan (s)"] = at("office", "plan", "task.toml", "--out", "plan.h5")
    terms = [
        "--k-min",
        options.sites - options.missing,
        "--trust",
        "helper-masks-distributed-noise",
        "--out",
        "study.toml",
    ]
    helpers = ["--helper", card("helper0"), "--helper", card("helper1")]
    at("office", "study", "new", "many", "--plan", "plan.h5", *cards, *helpers, *terms)
    at("office", "study", "sign", "study.toml", "--plan", "plan.h5", "--folder", "exchange")
    for helper in ("helper0", "helper1"):
        at(helper, "study", "accept", "exchange", "--coordinator", card("office"))
    study = Study.parse(root / "study.toml", (root / "study.toml").read_bytes())
    vector = np.random.default_rng(0).integers(-(2**40), 2**40, options.k)
    begun = time.process_time()
    present = sites[: options.sites - options.missing]
    for site in present:
        contribute(study, site, vector, (0, 0), root / "exchange")
    figures["a site masks, signs and writes (s of CPU)"] = round((time.process_time() - begun) / len(present), 3)
    figures["close (s)"] = at("office", "study", "close", "exchange")
    (closing,) = (
        path for path in (root / "exchange").glob("closing-*") if peek(path)[0].sender == Card.read(card("office")).name
    )
    for helper in ("helper0", "helper1"):
        figures[f"{helper} answers (s)"] = at(helper, "helper", "answer", closing)
    figures["release (s)"] = at("office", "study", "release", "exchange", "--config", "task.toml")
    figures["largest process (MB)"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1)
    return figures


if __name__ == "__main__":
    main()
