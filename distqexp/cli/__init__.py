"""The ``distqexp`` command: one stage at a time, so that a site can run ``sketch`` and nothing else.

Importing this package loads nothing heavy: each command imports what it needs when it runs.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import distqexp
from distqexp.cli import consortium, examining, ledger, looking, predicting, stages
from distqexp.cli.options import say
from distqexp.stopping import end

__all__ = ["main", "run"]

_INTERRUPTED = 130
_INTERRUPTION = "distqexp: interrupted from the keyboard\n"

app = typer.Typer(
    name="distqexp",
    help="Fine-tune a pretrained model with differential privacy, stage by stage.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=lambda asked: _tell_version(asked), help="print the version"),
    ] = False,
) -> None:
    """Fine-tune a pretrained model with differential privacy, stage by stage."""


def _tell_version(asked: bool) -> None:
    if asked:
        say(f"distqexp {distqexp.__version__}")
        raise typer.Exit()


# Help lists the commands in this order.
for commands in (stages.commands, predicting.commands, looking.commands, examining.commands):
    app.add_typer(commands)
app.add_typer(ledger.commands, name="ledger")
for name in ("site", "study", "helper", "log"):
    app.add_typer(getattr(consortium, name), name=name)


def main() -> None:
    """Run the command line of this process and exit with its code: the entry point of the ``distqexp`` command."""
    end(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; ``--debug`` adds the places of a traceback to an error."""
    from distqexp.engines.base import exit_code, places, reason

    debug = "--debug" in arguments
    try:
        own = [word for word in arguments if word != "--debug" or arguments[0] == "fit"]  # fit has the option itself
        code = app(args=own, prog_name="distqexp", standalone_mode=False)
        if code == _INTERRUPTED and arguments[0] != "fit":  # which says more
            sys.stderr.write(_INTERRUPTION)
        return int(code or 0)
    except (KeyboardInterrupt, typer.Abort):  # of which versions of the parser make an exit code
        sys.stderr.write(_INTERRUPTION)
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - whatever went wrong, people get one line and a script its exit code
        if hasattr(error, "format_message"):  # the command line parser's own errors, whichever library it comes from
            sys.stderr.write(f"distqexp: {' '.join(error.format_message().split())} See --help.\n")
            return 2
        if not getattr(error, "reported", False):
            sys.stderr.write((places(error) if debug else "") + f"distqexp: {reason(error)}\n")
        return exit_code(error)
