"""A process that has imported distqexp and forks for every command: each still runs in a process of its own, but starts at once.

What a process itself brings, from its import to its signals, is tested with the true commands.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from mpi_harness import run_environ

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([{module!r}, os.getcwd(), sys.argv[1:], dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "little")], [0, 1, 2])
    server.sendall(request)
    code = server.recv(1)
if not code:  # the command's process was killed
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(code[0])
"""
"""A command of a server: it passes on its folder, arguments, environment and open files, and ends with the code that comes back."""


MODULES = {"distqexp": "distqexp.cli", "distqexp-fit": "distqexp.fit", "distqexp-script": "script"}


@contextmanager
def command_server(folder: Path) -> Iterator[Path]:
    """A server for the length of the block; its commands are written into ``folder``.

    ``distqexp`` and ``distqexp-fit`` are the commands of these names; ``distqexp-script FILE`` runs a script, as Python itself would.
    """
    address = folder / "server"
    for name, module in MODULES.items():
        text = CLIENT.format(python=sys.executable, address=str(address), module=module)
        (folder / name).write_text(text, "utf-8")
        (folder / name).chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, str(address)], stdout=subprocess.PIPE, env=run_environ())
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield folder
    finally:
        server.kill()
        server.communicate()


_running = ExitStack()


@cache
def commands() -> Path:
    """The folder of the commands of one server that lives as long as this process. Its path is short, as a socket's must be."""
    atexit.register(_running.close)
    folder = Path(_running.enter_context(tempfile.TemporaryDirectory(prefix="commands-", dir="/tmp")))
    return _running.enter_context(command_server(folder))


def serve(address: str) -> None:
    """Answer requests until this process is killed."""
    import torch

    from distqexp import cli, fit

    for name in preloaded():
        importlib.import_module(name)
    torch.set_num_threads(1)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children: they answer themselves
        print("ready", flush=True)
        while True:
            client, _ = listening.accept()
            with client:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    client.sendall(
                        bytes(
                            [_run(client, {"distqexp.cli": cli.main, "distqexp.fit": fit.main, "script": run_script})]
                        )
                    )
                    os._exit(0)


def preloaded() -> list[str]:
    """What commands import when they get there: every module of distqexp but those of other people's frameworks, and what they need."""
    import distqexp

    found = [module.name for module in pkgutil.walk_packages(distqexp.__path__, "distqexp.")]
    own = [name for name in found if not name.startswith(("distqexp.adapters", "distqexp.sklearn"))]
    return [
        *own,
        "torch._dynamo",
        "jinja2",
        "typer",
        "threadpoolctl",
        "cryptography.hazmat.primitives.asymmetric.ed25519",
    ]


def run_script() -> None:
    """Run the script that the first argument names, with the others."""
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _run(client: socket.socket, mains: dict[str, Callable[[], object]]) -> int:
    """The exit code of one command, run with the client's folder, arguments, environment and open files."""
    head, files, _, _ = socket.recv_fds(client, 8, 3)
    with client.makefile("rb") as stream:
        module, folder, arguments, environ = json.loads(stream.read(int.from_bytes(head, "little")))
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["distqexp", *arguments]
    code: object = None
    try:
        code = mains[module]()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - as the interpreter does at the end of a process
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    serve(sys.argv[1])
