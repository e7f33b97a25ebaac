"""The plot of an audited run: what its scores tell, beside what the claim allows them to tell."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from distqexp.arrays import FloatArray
from distqexp.audit.membership import allowed_rate
from distqexp.storage.atomic import write_atomic


def write_plot(path: Path, plot: Callable[[], bytes]) -> None:
    """Write the PNG that ``plot`` makes. Where matplotlib is missing, say so on standard error and leave it out."""
    try:
        content = plot()
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        sys.stderr.write(
            f"distqexp: audit: no {path.name}: matplotlib is not installed; install distqexp[plots] and run the same command again\n"
        )
        return
    write_atomic(path, content)


def plot_attacks(scores: Mapping[str, tuple[FloatArray, FloatArray]], epsilon: float, delta: float) -> bytes:
    """Plot the ROC curve of each score beside the bound of the claim.

    Args:
        scores: By the name of a score, the scores of members and those of others.
        epsilon: The claimed epsilon.
        delta: Its delta.

    Returns:
        The bytes of a PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 5), layout="constrained")
    rates = np.linspace(0, 1, 501)
    bound = [allowed_rate(float(rate), epsilon, delta) for rate in rates]
    axis.plot(rates, bound, color="black", label=f"allowed on average: epsilon {epsilon:.3g}, delta {delta:.3g}")
    axis.plot(rates, rates, color="grey", linestyle=":", label="guessing")
    for name, (members, others) in scores.items():
        values = np.r_[np.inf, np.unique(np.r_[members, others])[::-1]]
        false, true = ((side[:, None] >= values).mean(axis=0) for side in (others, members))
        axis.step(false, true, where="post", label=name)
    axis.set(xlabel="false positives", ylabel="true positives", xlim=(0, 1), ylim=(0, 1))
    axis.set_title("one run; the verdict is in audit-run.json", fontsize="small")
    axis.legend(fontsize="small", loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()
