"""Compare one private pass with a plain forward and backward pass, Opacus and torch.func, in seconds and memory.

    python scripts/speed.py --out runs/speed                # every model: a JSON file and a plot
    python scripts/speed.py --out runs/speed --models cnn --repeats 5

Every way runs the same module on the same batch of noise, on one thread. A distqexp pass whitens, clips, sums and rounds
to integers, as the round's sketcher (``distqexp.sketching.choice``) does in a run; Opacus clips, sums and steps. No pass
reads records or draws noise. Seconds are measured with all ways in one process, in turn, after a warm-up; ratios are
medians over the rounds of the ratio within a round. Memory is measured with each way in a process of its own, after a
warm-up: it is the peak of the resident set during a pass less what was resident before it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ALONE = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Makes glibc give freed memory back at once, so that what is resident before a pass is what is in use."""


def measure_seconds(
    passes: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every way, one figure a round; in a round each way has its turn."""
    seconds: dict[str, list[float]] = {way: [] for way in passes}
    for run in passes.values():
        run()
    for _ in range(repeats):
        for way, run in passes.items():
            started = clock()
            run()
            seconds[way].append(clock() - started)
    return seconds


def measure_memory(run: Callable[[], object]) -> dict[str, float]:
    """MiB resident before a pass and at its peak, after one to warm up."""
    run()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak starts again from here
    run()
    return {"before": before, "peak": _status("VmHWM")}


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over rounds of one way's seconds by another's."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def summary(name: str, batch: int, threads: int, found: Mapping[str, Any], memory: Mapping[str, Any]) -> dict[str, Any]:
    """One model's figures: raw ones, ratios to a plain pass, and Opacus' by those of distqexp."""
    from benchmarks.passes import GEOMETRIES, HOOKS, PLAIN

    seconds = found["seconds"]
    result: dict[str, Any] = {"model": name, "batch": batch, "threads": threads, **found}
    if PLAIN in seconds:
        result["plain_passes"] = {way: paired_ratio(seconds[way], seconds[PLAIN]) for way in seconds}
    if HOOKS in seconds:
        result["faster_than_opacus_hooks"] = {
            way: paired_ratio(seconds[HOOKS], seconds[way]) for way in GEOMETRIES if way in seconds
        }
    if memory:
        result["memory_mib"] = memory
        own = {way: max(sizes["peak"] - sizes["before"], 0.0) for way, sizes in memory.items()}
        result["pass_memory_mib"] = own
        if own.get(PLAIN):
            result["plain_memories"] = {way: size / own[PLAIN] for way, size in own.items()}
            peak = memory[PLAIN]["peak"]
            result["plain_process_peaks"] = {way: sizes["peak"] / peak for way, sizes in memory.items()}
    return result


def _child(options: argparse.Namespace, folder: Path, model: str, ways: Sequence[str], what: str) -> dict[str, Any]:
    command = [
        sys.executable, __file__, "--child", what, "--out", str(folder), "--models", model, "--ways", *ways,
        "--repeats", str(options.repeats), "--batch", str(options.batch or 0), "--threads", str(options.threads),
        *(["--processor"] if options.processor else []),
    ]  # fmt: skip
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environ = {**os.environ, **threads, **(ALONE if what == "memory" else {})}
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"speed: {what} of {model} ({', '.join(ways)}) ended with exit code {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def child(options: argparse.Namespace) -> dict[str, Any]:
    """The work of a process of its own: write the plans, or measure the seconds or the memory of some ways."""
    for message in ("Full backward hook is firing", "There is a performance drop"):
        warnings.filterwarnings("ignore", message=message)
    from benchmarks.passes import CASES, GEOMETRIES, PCA, Prepared, make_pass

    from distqexp.engines.threads import pin_threads

    pin_threads(options.threads)
    case = CASES[options.models[0]]
    prepared = Prepared(case, options.batch or case.batch, options.out, options.threads)
    if options.child == "prepare":
        # The records of the other ways come from the first plan.
        made = [way for way in GEOMETRIES if way in {PCA, *options.ways}]
        prepared.write(made)
        plans = {way: prepared.plan(way) for way in made}
        return {"parameters": next(iter(plans.values())).d, "k": {way: plan.k for way, plan in plans.items()}}
    passes = {way: make_pass(way, prepared) for way in options.ways}
    if options.child == "memory":
        return measure_memory(passes[options.ways[0]])
    clock = time.process_time if options.processor else time.perf_counter
    return {"seconds": measure_seconds(passes, options.repeats, clock)}


def run_model(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Everything about one model."""
    from benchmarks.passes import CASES

    ways = list(options.ways)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        found = _child(options, folder, name, ways, "prepare")
        found |= _child(options, folder, name, ways, "seconds")
        memory = {} if options.no_memory else {way: _child(options, folder, name, [way], "memory") for way in ways}
    result = summary(name, options.batch or CASES[name].batch, options.threads, found, memory)
    print(f"{name}: {result['parameters']:,} parameters, batch {result['batch']}")
    for way in ways:
        words = [f"{statistics.median(result['seconds'][way]) * 1e3:9.1f} ms"]
        words += [f"{result['plain_passes'][way]:7.2f} plain passes"] if "plain_passes" in result else []
        words += [f"{result['pass_memory_mib'][way]:8.1f} MiB"] if memory else []
        words += [f"{result['plain_memories'][way]:6.2f} times a plain pass'"] if "plain_memories" in result else []
        print(f"  {way:26s}" + "".join(words), flush=True)
    return result


def plot(models: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plain passes and memory of every way, a panel each, a group of bars a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [("plain_passes", "seconds / plain pass"), ("plain_memories", "memory / plain pass")]
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    for axis, (key, label) in zip(axes, panels, strict=True):
        shown = [model for model in models if key in model]
        ways = list(shown[0][key]) if shown else []
        for number, way in enumerate(ways):
            places = [place + 0.8 * number / len(ways) for place in range(len(shown))]
            axis.bar(places, [model[key][way] for model in shown], width=0.8 / len(ways), label=way)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_xticks(
            [place + 0.4 for place in range(len(shown))], [f"{m['model']}, batch {m['batch']}" for m in shown]
        )
        axis.set(ylabel=label, yscale="log")
    if models:
        axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Entry point."""
    from benchmarks.passes import CASES, GHOST, HOOKS, WAYS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="folder for speed.json and speed.png")
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="what is compared")
    parser.add_argument("--repeats", type=int, default=15, help="rounds; ratios are medians over them")
    parser.add_argument("--batch", type=int, help="records a pass; the model's own number when left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--processor", action="store_true", help="seconds of the processor, for a busy machine; one thread"
    )
    parser.add_argument("--no-memory", action="store_true", help="seconds alone")
    parser.add_argument("--child", choices=("prepare", "seconds", "memory"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if {HOOKS, GHOST} & set(options.ways) and importlib.util.find_spec("opacus") is None:
        sys.exit("speed: opacus is not installed; install the extra bench, or leave its ways out with --ways")
    if options.child:
        print(json.dumps(child(options)), flush=True)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    models = [run_model(options, name) for name in options.models]
    results = {"cores": len(os.sched_getaffinity(0)), "versions": versions(), "models": models}
    (options.out / "speed.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    plot(models, options.out / "speed.png")


def versions() -> dict[str, str]:
    """Of what is measured."""
    import importlib.metadata as metadata

    names = [name for name in ("torch", "opacus", "numpy") if importlib.util.find_spec(name)]
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


if __name__ == "__main__":
    main()
