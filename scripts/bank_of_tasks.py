"""The bank: tasks that need no download, with nothing set but data, model and budget, beside Opacus with its documented defaults.

    python scripts/bank_of_tasks.py --out runs/bank --workers 2           # every task, epsilon 0.5, 1 and 8, three seeds
    python scripts/bank_of_tasks.py --out runs/bank --tasks wine --seeds 1 --epsilons 8

For every run it says by how much the error (the share of wrong labels, or the squared error relative to the variance of the targets)
fell on the evaluation records, and the standard error of that. Runs are lines of ``runs.jsonl``; the same command goes on
where it stopped, and ``--again`` makes runs of distqexp anew. ``--table FILE`` writes the tables into FILE between its two marks.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from bank.methods import METHODS, errors, started
from bank.tables import Key, Run, counts, with_tables
from bank.tasks import mnist_folder, tasks
from numpy.typing import NDArray


@functools.lru_cache(1)
def task_and_start(name: str) -> tuple[Any, NDArray]:
    """A task, and the error of each evaluation record before anything private was seen."""
    task = tasks()[name]()
    return task, errors(task, started(task))


def run(key: Key) -> Run:
    """One run of a method on a task at an epsilon, with a seed."""
    name, method, epsilon, seed = key
    begun, work = time.monotonic(), time.process_time()
    try:
        task, before = task_and_start(name)
        after = errors(task, METHODS[method](task, name, epsilon, seed))
        gain = before - after
        figures = {
            "units": len(task.private[0]), "before": float(before.mean()), "after": float(after.mean()), "gain": float(gain.mean()),
            "standard_error": float(gain.std() / len(gain) ** 0.5),
        }  # fmt: skip
    except Exception as error:  # noqa: BLE001 - a method that can't run a task is a row of the table
        figures = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    return {"key": list(key), "seconds": time.monotonic() - begun, "cpu_seconds": time.process_time() - work, **figures}


def one_thread() -> None:
    """Each worker keeps to one thread, and to the lines that it is asked for."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def results(keys: Sequence[Key], workers: int) -> Iterator[Run]:
    """Make the runs, and yield each when it is there."""
    if workers <= 1:
        one_thread()
        yield from map(run, keys)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread) as pool:
        for future in as_completed([pool.submit(run, key) for key in keys]):
            yield future.result()


def read(path: Path) -> dict[Key, Run]:
    """The runs that are there; of two with one key the later."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {tuple(found["key"]): found for found in map(json.loads, lines)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bank"))
    parser.add_argument("--tasks", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.5, 1.0, 8.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--workers", type=int, default=1, help="processes, each with one thread")
    parser.add_argument("--again", action="store_true", help="make runs of distqexp that are there once more")
    parser.add_argument("--table", type=Path, help="a page with the marks of the table, such as docs/bank.md")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "runs.jsonl"
    runs = read(path)
    if mnist_folder() is None:
        print("MNIST is left out: DISTQEXP_DATA names no folder with mnist/ in it")
    wanted = [
        (name, method, epsilon, seed)
        for name in tasks() if any(part in name for part in options.tasks)
        for method in options.methods for epsilon in options.epsilons for seed in range(options.seeds)
    ]  # fmt: skip
    missing = [key for key in wanted if key not in runs or (options.again and key[1] == "distqexp")]
    with path.open("a", encoding="utf-8") as file:
        for done in results(missing, options.workers):
            runs[tuple(done["key"])] = done
            file.write(json.dumps(done) + "\n")
            file.flush()
            print(json.dumps(done), flush=True)
    chosen = {key: runs[key] for key in wanted}
    print("\n".join(counts(chosen)))
    if options.table is not None:
        options.table.write_text(with_tables(options.table.read_text("utf-8"), chosen), "utf-8")


if __name__ == "__main__":
    main()
