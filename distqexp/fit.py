"""The main job: ``python -m distqexp.fit [CONFIG]`` walks from plan to export in one process group.

The module can be called, too: ``distqexp.fit(model, private, epsilon=..., delta=...)`` is ``distqexp.live.fit``, for scripts and
notebooks that have a live module and their own records.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from distqexp.config import load_config
from distqexp.consortium.pins import refuse_pinned
from distqexp.engines import make_engine
from distqexp.engines.base import exit_code, places, reason
from distqexp.engines.launcher import may_print
from distqexp.errors import UsageError
from distqexp.report.progress import Progress
from distqexp.stages.room import make_room, require_run
from distqexp.stages.rounds import run
from distqexp.stopping import end

_USUAL = Path("config.toml")
"""What init calls a config."""


def main(arguments: Sequence[str] | None = None, *, program: str = "python -m distqexp.fit") -> int:
    """Run the main job with these arguments, those of the process when None, and return the exit code."""
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    try:
        options = argument_parser(program).parse_args(arguments)
        if options.resume and options.overwrite:
            raise UsageError(
                "--overwrite: found with --resume; expected one of them: resume goes on, overwrite begins anew"
            )
        if options.config is None and _USUAL.exists():
            raise UsageError(
                f"CONFIG: not given, and {_USUAL} lies here; expected its name: {program} {_USUAL}   (without one this is the embedded "
                "digits task, which charges the ledger: run it in another folder)"
            )
        config = load_config(options.config, options.overrides)
        out = options.out or Path("runs") / (options.config.stem if options.config else "digits")
        engine = make_engine(config.engine, os.environ, debug=debug)
        rounds, public = config.mechanism.rounds, config.privacy.adjacency.counts_public
        with engine, Progress(out, rounds=rounds, counts_public=public, silent=not engine.is_root) as progress:
            if options.resume:
                engine.on_root(lambda: require_run(out))
                engine.on_root(lambda: refuse_pinned(out / "plan.h5"))
            else:
                engine.on_root(lambda: make_room(out, overwrite=options.overwrite))
            if options.config is None:
                progress.say("no config given: the embedded digits task")
            result = run(config, out, engine, progress, resume=options.resume, noise_seed=options.insecure_noise_seed)
    except KeyboardInterrupt:
        sys.stderr.write("distqexp: interrupted from the keyboard; run the same command with --resume\n")
        return 130
    except Exception as error:  # noqa: BLE001 - whatever went wrong, people get one line and a launcher its exit code
        if not getattr(error, "reported", False) and may_print(os.environ):
            sys.stderr.write((places(error) if debug else "") + f"distqexp: {reason(error)}\n")
        return exit_code(error)
    if result is not None and options.json:
        sys.stdout.write(json.dumps(result.summary(), sort_keys=True) + "\n")
        sys.stdout.flush()
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def argument_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of the main job's arguments; ``program`` is what it is called by."""
    parser = _Parser(
        prog=program,
        description="Fine-tune a pretrained model with differential privacy: plan, sketch, pool, release, export.",
        epilog="example: mpirun -n 2 python -m distqexp.fit configs/digits.toml --out runs/digits --json",
    )
    parser.add_argument("config", nargs="?", type=Path, help="TOML config; the embedded digits task when absent")
    parser.add_argument("--out", type=Path, help="folder of the run; runs/NAME of the config when absent")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="override a config key",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out after a kill or a stop")
    parser.add_argument(
        "--overwrite", action="store_true", help="throw away the unfinished work in --out, where nothing was spent"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line of standard output")
    parser.add_argument("--debug", action="store_true", help="print the places of a traceback with an error")
    parser.add_argument(
        "--insecure-noise-seed", type=int, metavar="N", help="noise from a seed, for tests: the result is NOT PRIVATE"
    )
    return parser


class _CallableModule(ModuleType):
    """This module, as a function as well."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Fit a live module, see ``distqexp.live.fit``."""
        from distqexp.live import fit

        if len(args) > 2:
            raise TypeError(
                f"distqexp.fit: found {len(args)} arguments by position; expected the records as one: fit(model, (X, y), epsilon=..., "
                "delta=...)"
            )
        return fit(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """The arguments of the function, for help and notebooks."""
        from distqexp.live import fit

        return inspect.signature(fit)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    end(main())
