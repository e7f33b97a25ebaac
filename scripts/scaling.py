"""Measure how a run scales: 1, 2 and 64 ranks at fixed and at growing work, and k up to 10^6.

    python scripts/scaling.py --out runs/scaling            # a JSON file and a plot
    python scripts/scaling.py --out runs/scaling --quick    # a minute, to see that it works

Every case is a real run of ``python -m distqexp.fit`` under the launcher. Beside it, on as many ranks, one sum of ready
vectors (k,) and the files of a round are timed; ``compute`` is what they leave of the sketch stage. The speed-up of two ranks
over one is measured on a transformer and, with DISTQEXP_DATA set, on the MNIST task, and two Dask workers against two ranks, all in
runs that alternate. Ranks beyond the machine's cores share them; in that case look at the sums and at seconds of the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.speed_ups import dask_and_mpi, interval, speed_up, write_encoder

REPOSITORY = Path(__file__).resolve().parent.parent
CLOCK = REPOSITORY / "scripts" / "benchmarks" / "stage_clock.py"
INPUTS, OUTPUTS = 64, 10

TASK = f"""
[model]
factory = "distqexp.problem.models:mlp"
args = {{ inputs = {INPUTS}, outputs = {OUTPUTS} }}
loss = "cross-entropy"

[data]
population = "scaling"

[data.private]
format = "hdf5"
path = "records.h5"
columns = {{ features = ["inputs"], target = "target", standardise = false }}

[privacy]
epsilon = 1.0
delta = 1e-5
units = 1000

[subspace]
kind = "sjlt"

[mechanism]
clip = 1.0
"""


@dataclass(frozen=True)
class Case:
    """One run: which series it belongs to, and its size. micro_batch falls as k grows, to bound memory."""

    series: str
    ranks: int
    records: int
    k: int

    @property
    def hidden(self) -> int:
        """Width of the hidden layer with which the model has at least k parameters, and hardly more."""
        return -(-(self.k - OUTPUTS) // (INPUTS + 1 + OUTPUTS))

    @property
    def overrides(self) -> list[str]:
        """What the case changes in the task."""
        return [
            f"data.private.rows=[[0, {self.records}]]",
            f"model.args.hidden=[{self.hidden}]",
            f"subspace.k={self.k}",
            f"engine.micro_batch={max(4, min(64, 2_000_000 // self.k))}",
        ]


def cases(ranks: Sequence[int], quick: bool) -> list[Case]:
    """Fixed work, work that grows with the ranks, and k."""
    k, fixed, each = (1_000, 2_048, 1_024) if quick else (10_000, 16_384, 1_024)
    sizes = (100, 10_000) if quick else (1_000, 10_000, 100_000, 1_000_000)
    few = [n for n in ranks if n <= 2] or [min(ranks)]
    return [
        *(Case("fixed work", n, fixed, k) for n in ranks),
        *(Case("growing work", n, each * n, k) for n in ranks),
        *(Case("k", n, 128, size) for size in sizes for n in few),
    ]


class Bench:
    """Runs commands under the launcher, in a temporary folder with ledgers of its own."""

    def __init__(self, folder: Path, launcher: str) -> None:
        self.folder = folder
        self.launcher = launcher
        self.runs = 0

    def launch(self, ranks: int, arguments: Sequence[str]) -> dict[str, Any]:
        """The JSON object that is the last line of standard output. Ends the script when the command fails. 0 ranks: no launcher."""
        self.runs += 1
        paths = [str(CLOCK.parents[1]), os.environ.get("PYTHONPATH", "")]  # of the benchmarks' models
        environ = dict(
            os.environ, OMP_NUM_THREADS="1", DISTQEXP_LEDGER=str(self.folder / f"ledger-{self.runs}.sqlite"),
            PYTHONPATH=os.pathsep.join(filter(None, paths)),
        )  # fmt: skip
        launcher = shlex.split(self.launcher.format(ranks=ranks)) if ranks else []
        command = [*launcher, sys.executable, *arguments]
        done = subprocess.run(command, cwd=self.folder, env=environ, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{shlex.join(command)}: exit code {done.returncode}\n{done.stderr}")
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def fit(self, ranks: int, config: Path, overrides: Sequence[str]) -> dict[str, Any]:
        """One run: seconds of each stage; of the sketch stage by the clock, and the processor's of the process that took most."""
        out, clocks = self.folder / f"run-{self.runs}", self.folder / "clocks"
        clocks.mkdir()
        settings = [word for override in overrides for word in ("--set", override)]
        arguments = [str(CLOCK), str(clocks), str(config), "--out", str(out), "--json", *settings]
        seconds = self.launch(ranks, arguments)["seconds"]
        found = [json.loads(path.read_text("utf-8")) for path in clocks.iterdir()]
        shutil.rmtree(out)
        shutil.rmtree(clocks)
        busiest = max(taken for one in found for taken in one["processor"])
        return {"stages": seconds, "clock": max(one["clock"] for one in found), "processor": busiest}

    def parts(self, ranks: int, sizes: Sequence[int]) -> dict[int, dict[str, float]]:
        """Seconds of one sum and of the files of a round, for each k, on so many ranks."""
        measured = self.launch(ranks, [__file__, "--measure", *(str(k) for k in sizes), "--out", str(self.folder)])
        return {int(k): seconds for k, seconds in measured.items()}


def measure(sizes: Sequence[int], folder: Path, repeats: int = 5) -> dict[int, dict[str, float]]:
    """On every rank: medians of the seconds of one sum, of a sketch file a rank, and of the first rank's files."""
    from distqexp.config import EngineConfig
    from distqexp.engines import make_engine
    from distqexp.storage.hdf5 import read_file, write_file

    with make_engine(EngineConfig(), os.environ) as engine:

        def timed(work: Callable[[], object]) -> float:
            found = []
            for _ in range(repeats):
                engine.raise_if_stopped()  # collective: all ranks start together
                started = time.perf_counter()
                work()
                engine.raise_if_stopped()
                found.append(time.perf_counter() - started)
            return statistics.median(found)

        def write(kind: str, name: str, **arrays: np.ndarray) -> None:
            write_file(folder / name, kind=kind, plan_id="scaling", header={}, arrays=arrays, private=kind != "release")

        def root_files(vector: np.ndarray) -> None:
            if engine.is_root:
                write("quadratic", "quadratic.h5", sums=vector)
                read_file(folder / "quadratic.h5", kind="quadratic")
                write("release", "release.h5", noisy_sums=vector, theta=vector.astype(np.float64))

        def parts(vector: np.ndarray) -> dict[str, float]:
            return {
                "sum": timed(lambda: engine.sum(lambda *_: vector, None, range(engine.size))),
                "sketch file": timed(lambda: write("sketch", f"sketch-{engine.rank}.h5", sums=vector)),
                "root files": timed(lambda: root_files(vector)),
            }

        return {k: parts(np.arange(k, dtype=np.int64)) for k in sizes}


def write_task(folder: Path, count: int) -> None:
    """Write ``task.toml`` and so many random records."""
    import h5py

    (folder / "task.toml").write_text(TASK, "utf-8")
    generator = np.random.default_rng(0)
    with h5py.File(folder / "records.h5", "w") as file:
        file["inputs"] = generator.standard_normal((count, INPUTS)).astype(np.float32)
        file["target"] = generator.integers(0, OUTPUTS, count)


def run_cases(bench: Bench, todo: Sequence[Case], repeats: int) -> dict[str, Any]:
    """Every case with its stages' seconds and their split; the sums and files of every k on every number of ranks."""
    write_task(bench.folder, max(case.records for case in todo))
    config = bench.folder / "task.toml"
    sizes = sorted({case.k for case in todo})
    parts = {ranks: bench.parts(ranks, sizes) for ranks in sorted({case.ranks for case in todo})}
    found = []
    for case in todo:
        # Those of the k series look at sums and files alone: once is enough.
        runs = [bench.fit(case.ranks, config, case.overrides) for _ in range(1 if case.series == "k" else repeats)]
        part = parts[case.ranks][case.k]
        stages = {name: statistics.median(run["stages"][name] for run in runs) for name in runs[0]["stages"]}
        split = {
            "compute": max(stages["sketch"] - part["sum"] - part["sketch file"], 0.0),
            "sum": part["sum"],
            "files": part["sketch file"] + part["root files"],
        }
        took = {what: [run[what] for run in runs] for what in ("clock", "processor")}
        found.append({**asdict(case), "stages": stages, "split": split, **took})
        print(f"{case.series}: {case.ranks} ranks, {case.records} records, k = {case.k}: {_words(split)}", flush=True)
    return {"cases": found, "parts": [{"ranks": n, "k": k, **part} for n in parts for k, part in parts[n].items()]}


def speed_ups(bench: Bench, repeats: int) -> dict[str, Any]:
    """Two ranks against one on a transformer and, with DISTQEXP_DATA, on the MNIST task; a Dask cluster against ranks."""
    threads = ["engine.threads=1"]
    encoder = write_encoder(bench.folder)
    found = [speed_up("transformer", bench.fit, encoder, threads, repeats)]
    if "DISTQEXP_DATA" in os.environ:
        # Gradients of untrained weights take as long.
        mnist, overrides = REPOSITORY / "configs" / "mnist-rotated.toml", ["model.pretrain.epochs=0", *threads]
        found.append(speed_up("CNN on MNIST", bench.fit, mnist, overrides, repeats))
    return {"speed_ups": found, "dask": dask_and_mpi(bench.fit, encoder, repeats)}


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Three panels: seconds of the sketch stage by ranks at fixed and at growing work, with 95 % intervals; seconds by k."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for axis, series in zip(axes, ("fixed work", "growing work"), strict=False):
        chosen = [case for case in results["cases"] if case["series"] == series]
        ranks = [case["ranks"] for case in chosen]
        for what, label in (("processor", "processor, busiest rank"), ("clock", "clock")):
            found = [interval(case[what]) for case in chosen]
            means, halves = [one["mean"] for one in found], [one["half_width"] for one in found]
            axis.errorbar(ranks, means, yerr=halves, marker="o", capsize=4, label=label)
        first = interval(chosen[0]["processor"])["mean"]
        ideal = [first * ranks[0] / n if series == "fixed work" else first for n in ranks]
        axis.plot(ranks, ideal, "k:", label="all divided")
        axis.set_xticks(ranks)
        axis.set(title=f"{series}, k = {chosen[0]['k']:,}", xlabel="ranks", ylabel="seconds of the sketch stage")
        axis.legend(fontsize="small")
    for number, ranks in enumerate(sorted({part["ranks"] for part in results["parts"]})):
        style = ("-", "--", ":", "-.")[number % 4]
        chosen = [case for case in results["cases"] if (case["series"], case["ranks"]) == ("k", ranks)]
        computed = [case["split"]["compute"] for case in chosen]
        axes[2].loglog([case["k"] for case in chosen], computed, "C0" + style, label=f"compute, {ranks} ranks")
        parts = [part for part in results["parts"] if part["ranks"] == ranks]
        sizes, files = [part["k"] for part in parts], [part["sketch file"] + part["root files"] for part in parts]
        axes[2].loglog(sizes, [part["sum"] for part in parts], "C1" + style, label=f"sum, {ranks} ranks")
        axes[2].loglog(sizes, files, "C2" + style, label=f"files, {ranks} ranks")
    axes[2].set(title="128 records", xlabel="k", ylabel="seconds")
    axes[2].legend(fontsize="small")
    figure.suptitle(f"distqexp on {results['cores']} cores")
    figure.savefig(path, dpi=120)


def _words(split: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.3g} s" for name, seconds in split.items())


def default_launcher() -> str:
    """The launcher beside this Python, else the path's: more ranks than cores are allowed, also to the administrator."""
    beside = Path(sys.executable).parent / "mpirun"
    return f"{beside if beside.exists() else 'mpirun'} --allow-run-as-root --oversubscribe -n {{ranks}}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for scaling.json and scaling.png")
    parser.add_argument("--ranks", type=int, nargs="+", help="default: 1 2 64, and 1 2 with --quick")
    parser.add_argument("--quick", action="store_true", help="small cases, no speed-ups")
    parser.add_argument("--only", choices=("cases", "speed-ups"), help="one half of the study")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each case, and pairs of each speed-up")
    parser.add_argument("--launcher", default=default_launcher(), help="such as 'srun -n {ranks}'")
    parser.add_argument("--measure", type=int, nargs="+", metavar="K", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.out)), flush=True)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        bench = Bench(Path(folder).resolve(), options.launcher)
        ranks = options.ranks or ([1, 2] if options.quick else [1, 2, 64])
        results: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
        if options.only != "speed-ups":
            results |= run_cases(bench, cases(ranks, options.quick), options.repeats)
        if options.only != "cases" and not options.quick:
            results |= speed_ups(bench, options.repeats)
    (options.out / "scaling.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    if "cases" in results:
        plot(results, options.out / "scaling.png")


if __name__ == "__main__":
    main()
