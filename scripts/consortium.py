"""Measure a round with helpers: a site's masking, the helpers, the coordinator, and the memory of all of them in one process.

Messages are signed, written to files and checked when they are read, as between machines; the sum is compared with the plain one.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from distqexp.federation.contribution import contribute
from distqexp.federation.helper import Helper
from distqexp.federation.keys import Identity
from distqexp.federation.log import Log
from distqexp.federation.masks import MaskContext, fresh_seeds, masked
from distqexp.federation.pooling import Pool
from distqexp.federation.quorum import quorum
from distqexp.federation.study import Study, Trust
from distqexp.kinds import Adjacency


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run the measurement, print its figures as JSON, and return them."""
    options = _options(arguments)
    helpers = [Identity.draw(f"helper{number}") for number in range(options.helpers)]
    sites = [Identity.draw(f"site{number}") for number in range(options.sites)]
    office = Identity.draw("office")
    study = _study(options, office, sites, helpers)
    vector = np.random.default_rng(0).integers(-(2**62), 2**62, options.k)
    figures: dict[str, float] = {}

    @contextmanager
    def measured(name: str) -> Iterator[None]:
        wall, processor = time.perf_counter(), time.process_time()
        yield
        figures[f"{name} (s)"] = round(time.perf_counter() - wall, 4)
        figures[f"{name} (s of CPU)"] = round(time.process_time() - processor, 4)

    context = MaskContext.of(study, 0, 0)
    with measured("one site masks"):
        masked(vector, fresh_seeds(context), context, "site0")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with measured("one site masks, signs and writes"):
            sent = [contribute(study, sites[0], vector, (0, 0), folder)]
        present = sites[: options.sites - options.missing]
        sent += [contribute(study, site, vector, (0, 0), folder) for site in present[1:]]
        with measured("coordinator and helpers"):
            pool = Pool(study, office, (0, 0), options.k)
            for one in sent:
                pool.add(one.masked)
            closing, _ = pool.close(folder)
            answers = []
            for helper in helpers[: quorum(len(helpers))]:
                role = Helper(study, helper, Log(folder / f"{helper.name}.log", helper))
                answers.append(role.answer(closing, [one.seeds[helper.name] for one in sent], folder)[0])
            total = pool.unmask(answers)
    with np.errstate(over="ignore"):
        if not np.array_equal(total, vector * np.int64(len(present))):
            raise SystemExit("the sum is not the plain one")
    figures["peak memory (MB)"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    print(json.dumps(figures, indent=2))
    return figures


def _study(options: argparse.Namespace, office: Identity, sites: list[Identity], helpers: list[Identity]) -> Study:
    return Study(
        name="scale", plan_id="0" * 64, model="1" * 64, coordinator=office.card, sites=tuple(site.card for site in sites),
        helpers=tuple(helper.card for helper in helpers), k_min=options.sites - options.missing, epsilon=1.0, delta=1e-6,
        unit="patient", adjacency=Adjacency.ZERO_OUT, presence=1, rounds=1, trust=Trust.SHARED_NOISE, tolerated=options.missing,
    )  # fmt: skip


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=200, help="sites of the study")
    parser.add_argument("--missing", type=int, default=20, help="how many of them send nothing")
    parser.add_argument("--helpers", type=int, default=2, help="helpers: 2, 3 or 4")
    parser.add_argument("--k", type=int, default=100_000, help="entries of a site's vector")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
