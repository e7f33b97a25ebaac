"""Compare the plan of a GPT-2 with a plain forward and backward pass over the same probes, in seconds and memory.

    python scripts/planning.py                  # GPT-2 of 124 million parameters: 12 blocks are trained
    python scripts/planning.py --depth 2        # of two blocks
    python scripts/planning.py --release        # the whole way by hand: plan, sketch, pool, release, export, verify

The model has random weights, and the plan is that of a kronecker-pca subspace with a Kronecker precision on 16 probes. The plan is
the command ``distqexp plan`` in a process of its own. The plain pass runs in another: it builds the same model, and takes the
gradient of the loss of the same probes in the micro-batches of the plan, after a pass to warm up. Seconds are those of the
processors, so that other work on the machine counts little; those of the plan have the start of Python in them. Memory is the peak of
the resident set of each process, with all that Python and torch load. With ``--release`` each command that a site and a coordinator
give is measured, on records of random tokens, with the size of the file that it writes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from distqexp.config import Config, load_config

DISTQEXP = (sys.executable, "-c", "from distqexp.cli import main; main()")

VOCABULARY = 50257
"""The tokens of a GPT-2."""

CONFIG = """
[model]
factory = "distqexp.problem.huggingface:from_config"
loss = "cross-entropy"
trainable = ["transformer.h.*"]

[model.args]
model = "GPT2ForSequenceClassification"
config = {{ num_labels = 2, n_layer = {depth}, pad_token_id = 50256 }}

[data]
population = "planning"
record_shape = [{tokens}]
private = {{ format = "hdf5", path = "private.h5", columns = {{ features = ["tokens"], tokens = true, target = "label" }} }}

[privacy]
epsilon = 1.0
delta = 1e-5
units = {records}

[subspace]
kind = "kronecker-pca"
k_in = {rank}
k_out = {rank}

[precision]
kind = "kronecker"
source = "probes"
samples = {probes}

[mechanism]
clip = 1.0
rounds = {rounds}

[engine]
micro_batch = {micro_batch}
threads = {threads}
"""


class Measured(NamedTuple):
    """What a command took: seconds of the clock and of the processors, the MiB of its peak, and what it printed."""

    wall: float
    seconds: float
    memory: float
    printed: str


def measured(command: Sequence[str], threads: int, ledger: Path | None = None) -> Measured:
    """Run a command in a process of its own, with a ledger of its own if it needs one."""
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environ |= {} if ledger is None else {"DISTQEXP_LEDGER": str(ledger)}
    started = time.monotonic()
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        printed = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"planning: {' '.join(command[:4])} ended with exit code {process.returncode}")
    return Measured(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, printed)


def plain_pass(config: Config, repeats: int) -> float:
    """Seconds of the fastest plain pass over the probes: the gradient of the summed loss, by torch's own means."""
    import torch

    from distqexp.engines.threads import pin_threads
    from distqexp.gradients.setup import build_network
    from distqexp.problem.losses import get_loss
    from distqexp.problem.sources import ProbeSource, Readers
    from distqexp.stages.plan import fitted_schema

    pin_threads(config.engine.threads)
    network, loss = build_network(config), get_loss(config.model.loss)
    source, size = ProbeSource(config.precision.samples, config.subspace.seed), config.engine.micro_batch
    records = source.open(fitted_schema(config, network, Readers()), 0).read(source.slots.rows)
    seconds = []
    for _ in range(repeats + 1):
        started = time.process_time()
        network.module.zero_grad()
        for some in range(0, len(records), size):
            outputs = network.module(network.prepare(records.inputs[some : some + size]))
            loss.value(outputs, torch.zeros(len(outputs), dtype=torch.int64)).sum().backward()
        seconds.append(time.process_time() - started)
    return min(seconds[1:])


def compare(folder: Path, options: argparse.Namespace) -> None:
    """Print what the plan takes beside a plain pass."""
    path = folder / "config.toml"
    plain = measured([sys.executable, *sys.argv, "--child", str(path)], options.threads)
    plain_seconds = json.loads(plain.printed.splitlines()[-1])
    plan = measured([*DISTQEXP, "plan", str(path), "--out", str(folder / "plan.h5")], options.threads)
    print(f"plain pass: {plain_seconds:.2f} s, {plain.memory:.0f} MiB resident")
    print(f"plan: {plan.seconds:.1f} s, {plan.memory:.0f} MiB resident")
    passes, times = plan.seconds / plain_seconds, plan.memory / plain.memory
    print(f"the plan takes {passes:.1f} plain passes, and {times:.2f} times their memory")


def walk(folder: Path, options: argparse.Namespace) -> None:
    """Print what each command from plan to verify takes, with real noise and a ledger of its own."""
    rng = np.random.default_rng(0)
    with h5py.File(folder / "private.h5", "w") as file:
        file["tokens"] = rng.integers(0, VOCABULARY, size=(options.records, options.tokens))
        file["label"] = rng.integers(0, 2, size=options.records)
    config, plan, model = (str(folder / name) for name in ("config.toml", "plan.h5", "model"))

    def step(command: str, *arguments: str, out: str = "") -> None:
        words = [*DISTQEXP, command, *arguments, *(["--out", out] if out else [])]
        found = measured(words, options.threads, folder / "ledger.sqlite")
        line = (
            f"{command:>8}: {found.wall:6.1f} s, {found.seconds:6.1f} s of processors, {found.memory:5.0f} MiB resident"
        )
        size = f", {Path(out).name} of {Path(out).stat().st_size / 1e6:.1f} MB" if Path(out).is_file() else ""
        print(line + size, flush=True)

    step("plan", config, out=plan)
    releases: list[str] = []
    for number in range(options.rounds):
        sketch, quadratic, release = (
            str(folder / f"{kind}-{number:03d}.h5") for kind in ("sketch", "quadratic", "release")
        )
        earlier = [word for path in releases for word in ("--release", path)]
        step("sketch", plan, "--data", str(folder / "private.h5"), *earlier, out=sketch)
        step("pool", plan, sketch, out=quadratic)
        before = [word for path in releases for word in ("--previous", path)]
        step("release", plan, quadratic, "--config", config, *before, out=release)
        releases.append(release)
    step("export", plan, *releases, "--config", config, out=model)
    step("verify", model, plan, *releases, "--config", config)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=12, help="blocks of the model")
    parser.add_argument("--probes", type=int, default=16)
    parser.add_argument("--records", type=int, default=32, help="private records")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a record")
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=64, help="directions of each side of a layer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="plain passes; the fastest counts")
    parser.add_argument("--release", action="store_true", help="measure every command from plan to verify")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of the plan")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(plain_pass(load_config(options.child), options.repeats)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.toml").write_text(CONFIG.format_map(vars(options)), "utf-8")
        (walk if options.release else compare)(folder, options)


if __name__ == "__main__":
    main()
