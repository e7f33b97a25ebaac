"""Measure what a large sketch takes: each rank's memory above its imports, files, and the share of the sum in the time.

    python scripts/large_sketches.py --out runs/large                                    # 2 ranks, k = 100,000
    python scripts/large_sketches.py --out runs/large --ranks 4 --k 10000000 --micro-batch 1 --identity --serial
    python scripts/large_sketches.py --out runs/large --ranks 64 --k 1000000 --micro-batch 2 --kronecker --serial

The task is that of ``scaling.py``, generated, with as many parameters as coordinates. A rank's baseline is what it holds
after the imports of a run, and ``above`` the peak of a run of ``python -m distqexp.fit`` less that. With ``--serial`` the
releases are compared with those of one process without MPI, byte by byte. Noise is from a seed: nothing here is private.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaling import INPUTS, OUTPUTS, Bench, Case, default_launcher, write_task

MEBI = 2**20
KRONECKER = "precision.kind=kronecker"
KINDS = ("plan", "sketch", "quadratic", "release", "model")


@dataclass(frozen=True)
class Run:
    """What one run left: the memory of each rank, the seconds of its stages, the bytes of its files, its releases' SHA-256.

    Of a rank's memory it has the baseline and, by stage, the peaks.
    """

    memories: list[dict[str, dict[str, int]]]
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
    from distqexp.report.progress import Progress

    rank = 0
    if launched_size(os.environ) is not None:
        from mpi4py import MPI

        rank = MPI.COMM_WORLD.Get_rank()
    if KRONECKER not in arguments:  # layer by layer gradients never need it
        vmap(grad(torch.square))(torch.zeros(1))  # torch imports half of this at its first use
    baseline = resident("VmRSS")
    peaks: dict[str, int] = {}
    now, begin = "start", Progress.stage

    def turn(stage: str) -> None:
        nonlocal now
        peaks[now] = max(peaks.get(now, 0), resident("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # VmHWM begins anew
        now = stage

    def stage(self: Progress, name: str, *more: Any) -> None:
        turn(name)
        begin(self, name, *more)

    Progress.stage = stage  # type: ignore[method-assign]
    code = fit.main([*arguments])
    turn("end")
    (folder / f"memory-{rank:04}.json").write_text(
        json.dumps({"start": {"baseline": baseline}, "peaks": peaks}), "utf-8"
    )
    return code


def run(bench: Bench, ranks: int, settings: Sequence[str]) -> Run:
    """One run of the task under the launcher of ``bench``."""
    out = bench.folder / "run"
    arguments = [
        *(__file__, "--rank", str(bench.folder), str(bench.folder / "task.toml"), "--out", str(out), "--json"),
        *("--insecure-noise-seed", "7", *(word for setting in settings for word in ("--set", setting))),
    ]
    seconds = bench.launch(ranks, arguments)["seconds"]
    found = sorted(bench.folder.glob("memory-*.json"))
    memories = [json.loads(path.read_text("utf-8")) for path in found]
    files = {kind: sum(path.stat().st_size for path in out.glob(f"{kind}*")) for kind in KINDS}
    digest = hashlib.sha256()
    for path in sorted(out.glob("release-*.h5")):
        digest.update(path.read_bytes())
    for path in found:
        path.unlink()
    shutil.rmtree(out)
    return Run(memories, seconds, files, digest.hexdigest())


def settings_of(case: Case, micro_batch: int | None, geometry: str, keep: bool = True) -> list[str]:
    """What the case and the options change in the task; ``geometry`` is sjlt, identity or kronecker.

    Without ``keep`` no private file is left, and above k = 2^20 several ranks have the sum by blocks.
    """
    changes = [*case.overrides, f"output.keep_sketches={json.dumps(keep)}"]
    if geometry != "sjlt":
        changes = [change for change in changes if not change.startswith("subspace.")] + ["subspace.kind=identity"]
    if geometry == "kronecker":
        # Two hidden layers of one width, as a single one of this size would have moments of many gigabytes.
        width = next(n for n in itertools.count(1) if n * (INPUTS + 1) + n * (n + 1) + OUTPUTS * (n + 1) >= case.k)
        changes = [change for change in changes if not change.startswith("model.args.hidden")]
        changes += [f"model.args.hidden=[{width},{width}]", KRONECKER, "precision.source=probes"]
        changes += [f"data.record_shape=[{INPUTS}]", "precision.samples=64"]
    return changes + ([] if micro_batch is None else [f"engine.micro_batch={micro_batch}"])


def report(case: Case, found: Run, one_sum: float) -> dict[str, Any]:
    """The figures of a run, by rank: memory and files in MiB."""
    baselines = [memory["start"]["baseline"] for memory in found.memories]
    peaks = [memory["peaks"] for memory in found.memories]
    return {
        **asdict(case),
        "baseline": [round(baseline / MEBI) for baseline in baselines],
        "above": [round((max(peak.values()) - base) / MEBI) for peak, base in zip(peaks, baselines, strict=True)],
        "above, by stage": {
            stage: [round((peak[stage] - base) / MEBI) for peak, base in zip(peaks, baselines, strict=True)]
            for stage in peaks[0]
        },
        "all ranks together": round(sum(max(peak.values()) for peak in peaks) / MEBI),
        "seconds": found.seconds,
        "one sum": one_sum,
        "share of the sum": one_sum / sum(found.seconds.values()),
        "files": {kind: size / MEBI for kind, size in found.files.items()},
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
    parser.add_argument("--micro-batch", type=int, help="default: that of scaling.py, 4 from k = 500,000 on")
    parser.add_argument(
        "--identity", dest="geometry", action="store_const", const="identity", default="sjlt",
        help="all parameters, in place of a random subspace of as many",
    )  # fmt: skip
    parser.add_argument(
        "--kronecker", dest="geometry", action="store_const", const="kronecker",
        help="all parameters of two hidden layers, whitened layer by layer by the curvature of probes",
    )  # fmt: skip
    parser.add_argument("--blocks", action="store_true", help="keep no sketches: sums by blocks above k = 2^20")
    parser.add_argument("--serial", action="store_true", help="compare the releases with those of one process")
    parser.add_argument("--launcher", default=default_launcher(), help="such as 'srun -n {ranks}'")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    case = Case("large", options.ranks, options.records, options.k)
    settings = settings_of(case, options.micro_batch, options.geometry, keep=not options.blocks)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        bench = Bench(Path(folder).resolve(), options.launcher)
        write_task(bench.folder, options.records)
        large = run(bench, case.ranks, settings)
        found = report(case, large, bench.parts(case.ranks, [case.k])[case.k]["sum"])
        if options.serial:
            bench.launcher = ""
            found["equal to serial"] = run(bench, 1, settings).digest == large.digest
    (options.out / "large-sketches.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
