"""Run the main job, and write what its sketch stage took in every process: seconds of the clock, and of the processor.

    python scripts/benchmarks/stage_clock.py FOLDER CONFIG --out runs/one ...     # the arguments of python -m distqexp.fit

Each rank writes FOLDER/RANK.json. With Dask that holds the worker processes too, which are children of this one. On a machine that does
other things as well, seconds of the processor are what is left to compare.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from distqexp import fit
from distqexp.engines.launcher import launched_rank
from distqexp.stages import rounds


def processor_seconds() -> dict[int, float]:
    """Of this process and its descendants, by process id."""
    own = os.getpid()
    seconds, found = {own: time.process_time()}, [own]
    tick = os.sysconf("SC_CLK_TCK")
    while found:
        tasks = Path(f"/proc/{found.pop()}/task")
        for children in tasks.glob("*/children"):
            for child in map(int, children.read_text("ascii").split()):
                fields = Path(f"/proc/{child}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
                seconds[child] = (int(fields[11]) + int(fields[12])) / tick
                found.append(child)
    return seconds


def clocked(folder: Path) -> Any:
    """The sketch stage, with a clock around it."""
    original = rounds.sketch_same_records

    def sketch(*arguments: Any, **keywords: Any) -> Any:
        began, before = time.perf_counter(), processor_seconds()
        try:
            return original(*arguments, **keywords)
        finally:
            after = processor_seconds()
            taken = [seconds - before.get(process, 0.0) for process, seconds in after.items()]
            figures = {"clock": time.perf_counter() - began, "processor": taken}
            (folder / f"{launched_rank(os.environ)}.json").write_text(json.dumps(figures), "utf-8")

    return sketch


if __name__ == "__main__":
    rounds.sketch_same_records = clocked(Path(sys.argv[1]))
    sys.exit(fit.main(sys.argv[2:]))
