"""Compare the plan of a GPT-2 with a plain forward and backward pass over the same probes, in seconds and memory.

    python scripts/planning.py                  # GPT-2 of 124 million parameters: 12 blocks are trained
    python scripts/planning.py --depth 2        # of two blocks

The model has random weights, and the plan is that of a kronecker-pca subspace with a Kronecker precision on 16 probes. The plan is
the command ``distqexp plan`` in a process of its own. The plain pass runs in another: it builds the same model, and takes the
gradient of the loss of the same probes in the micro-batches of the plan, after a pass to warm up. Seconds are those of the
processors, so that other work on the machine counts little; those of the plan have the start of Python in them. Memory is the peak of
the resident set of each process, with all that Python and torch load.
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

from distqexp.config import Config, load_config

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

[engine]
micro_batch = {micro_batch}
threads = {threads}
"""


def measured(command: Sequence[str], threads: int) -> tuple[float, float, str]:
    """Seconds that a command kept processors busy, the MiB of its peak, and what it printed."""
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        printed = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"planning: {' '.join(command[:4])} ended with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, printed


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


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=12, help="blocks of the model")
    parser.add_argument("--probes", type=int, default=16)
    parser.add_argument("--records", type=int, default=32, help="private records, which the plan doesn't read")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a record")
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=64, help="directions of each side of a layer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="plain passes; the fastest counts")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(plain_pass(load_config(options.child), options.repeats)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(CONFIG.format_map(vars(options)), "utf-8")
        again = [sys.executable, *sys.argv, "--child", str(path)]
        _, plain_memory, printed = measured(again, options.threads)
        plain_seconds = json.loads(printed.splitlines()[-1])
        command = [sys.executable, "-c", "from distqexp.cli import main; main()", "plan", str(path)]
        seconds, memory, _ = measured([*command, "--out", str(Path(folder) / "plan.h5")], options.threads)
    print(f"plain pass: {plain_seconds:.2f} s, {plain_memory:.0f} MiB resident")
    print(f"plan: {seconds:.1f} s, {memory:.0f} MiB resident")
    print(
        f"the plan takes {seconds / plain_seconds:.1f} plain passes, and {memory / plain_memory:.2f} times their memory"
    )


if __name__ == "__main__":
    main()
