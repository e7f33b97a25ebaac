"""Measure what a large sketch costs: each rank's memory above its imports, files, and the share of the sum in the time.

    python scripts/large_sketches.py --out runs/large                               # 2 ranks, k = 100,000: seconds
    python scripts/large_sketches.py --out runs/large --ranks 64 --k 1000000        # 20 GB for the imports alone
    python scripts/large_sketches.py --out runs/large --ranks 4 --k 10000000 --serial

The task is that of ``scaling.py``, generated, with as many parameters as coordinates. One run of ``python -m distqexp.fit``
with k = 100 on as many ranks comes first. A rank's baseline is what it holds after the imports of a run; ``above`` is its
peak of the large run less that. With ``--serial`` the release's bytes are compared with those of one process without MPI.
Noise is from a seed: nothing here is private.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scaling import Bench, Case, default_launcher, write_task

SMALL = 100
MEBI = 2**20
KINDS = ("plan", "sketch", "quadratic", "release", "model")


@dataclass(frozen=True)
class Run:
    """What one run left: the memory of each rank in bytes, its seconds, the bytes of its files, and its release's SHA-256."""

    memories: list[dict[str, int]]
    seconds: dict[str, float]
    files: dict[str, int]
    digest: str


def resident(name: str) -> int:
    """This process's memory in bytes: VmRSS is what it holds now, VmHWM the most that it ever held."""
    text = Path("/proc/self/status").read_text("ascii")
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name}:"))


def as_rank(folder: Path, arguments: Sequence[str]) -> int:
    """Run the main job in this process and leave its memory in ``folder``."""
    import torch
    from torch.func import grad, vmap

    from distqexp import fit
    from distqexp.engines.launcher import launched_size

    if launched_size(os.environ) is not None:
        from mpi4py import MPI  # noqa: F401
    vmap(grad(torch.square))(torch.zeros(1))  # torch imports half of what it has at its first use
    baseline = resident("VmRSS")
    code = fit.main([*arguments])
    memory = {"baseline": baseline, "peak": resident("VmHWM")}
    (folder / f"memory-{os.getpid()}.json").write_text(json.dumps(memory), "utf-8")
    return code


def run(bench: Bench, case: Case, settings: Sequence[str]) -> Run:
    """One run of the case."""
    out = bench.folder / "run"
    settings = [*case.overrides, "output.keep_sketches=true", *settings]
    arguments = [
        *(__file__, "--rank", str(bench.folder), str(bench.folder / "task.toml"), "--out", str(out), "--json"),
        *("--insecure-noise-seed", "7", *(word for setting in settings for word in ("--set", setting))),
    ]
    seconds = bench.launch(case.ranks, arguments)["seconds"]
    found = sorted(bench.folder.glob("memory-*.json"))
    memories = [json.loads(path.read_text("utf-8")) for path in found]
    for path in found:
        path.unlink()
    files = {kind: sum(path.stat().st_size for path in out.glob(f"{kind}*")) for kind in KINDS}
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(out.glob("release-*.h5")))).hexdigest()
    shutil.rmtree(out)
    return Run(memories, seconds, files, digest)


def report(case: Case, small: Run, large: Run, parts: Mapping[str, float]) -> dict[str, Any]:
    """The figures of a run, memory in MiB."""
    above = [(memory["peak"] - memory["baseline"]) / MEBI for memory in large.memories]
    return {
        **asdict(case),
        "baseline": [memory["baseline"] / MEBI for memory in large.memories],
        "above": above,
        "above with k = 100": [(memory["peak"] - memory["baseline"]) / MEBI for memory in small.memories],
        "peaks together": sum(memory["peak"] for memory in large.memories) / MEBI,
        "seconds": large.seconds,
        "one sum": parts["sum"],
        "share of the sum": parts["sum"] / sum(large.seconds.values()),
        "files": {kind: size / MEBI for kind, size in large.files.items()},
    }


def main() -> None:
    """Entry point."""
    if sys.argv[1:2] == ["--rank"]:
        sys.exit(as_rank(Path(sys.argv[2]), sys.argv[3:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for large-sketches.json")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--k", type=int, default=100_000)
    parser.add_argument("--records", type=int, default=128)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the task")
    parser.add_argument(
        "--serial", action="store_true", help="compare the release with that of one process without MPI"
    )
    parser.add_argument("--launcher", default=default_launcher(), help="such as 'srun -n {ranks}'")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    case = Case("large", options.ranks, options.records, options.k)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        bench = Bench(Path(folder).resolve(), options.launcher)
        write_task(bench.folder, options.records)
        small = run(bench, replace(case, k=SMALL), options.set)
        large = run(bench, case, options.set)
        found = report(case, small, large, bench.parts(case.ranks, [case.k])[case.k])
        if options.serial:
            bench.launcher = ""
            alone = run(bench, replace(case, ranks=1), options.set)
            found["equal to serial"] = alone.digest == large.digest
    (options.out / "large-sketches.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
