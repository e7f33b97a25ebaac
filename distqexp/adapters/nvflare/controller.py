"""FLARE's controller at the coordinator."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from distqexp.adapters.nvflare.coordinator import Coordinator
from distqexp.adapters.nvflare.executor import EXIT_CODE
from distqexp.adapters.nvflare.settings import COORDINATOR_FILE, CoordinatorSettings, read_settings
from distqexp.adapters.nvflare.study import StudyCoordinator
from distqexp.adapters.nvflare.wire import Answer, Payload
from distqexp.engines.base import reason
from distqexp.errors import EngineError, StoppedError

_PERIOD = 0.1
"""Seconds between two looks whether tasks are done."""


class CoordinatorController(Controller):
    """Runs a plan's rounds by the settings in the server's own ``local`` folder, ``distqexp-coordinator.toml``."""

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing: the settings are read when the run starts."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing: every artefact is whole on the disk at any time."""

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Drop a result that comes too late."""
        self.log_warning(fl_ctx, f"distqexp: a late result of {task_name} from {client.name}; it is in no sum")

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run all rounds and export; a failure ends the job with one line."""
        local = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_site_config_dir())
        try:
            settings = read_settings(CoordinatorSettings, local.absolute() / COORDINATOR_FILE)

            def ask(name: str, payloads: Mapping[str, Payload]) -> Mapping[str, Answer]:
                return self._ask(name, payloads, settings.timeout, abort_signal, fl_ctx)

            certificate = (Coordinator if settings.exchange is None else StudyCoordinator)(settings).run(ask)
            self.log_info(fl_ctx, f"distqexp: {certificate['statement']}")
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the job ends with one line that holds nothing private
            self.system_panic(f"distqexp: {reason(error)}", fl_ctx)

    def _ask(
        self, name: str, payloads: Mapping[str, Payload], timeout: int, abort_signal: Signal, fl_ctx: FLContext
    ) -> Mapping[str, Answer]:
        """Send each client its task, all at once, and wait until each is answered or over."""
        answers: dict[str, Answer] = {}

        def receive(client_task: ClientTask, fl_ctx: FLContext) -> None:
            answers[client_task.client.name] = _answer_of(client_task.result)
            client_task.result = None

        tasks = []
        for client, payload in payloads.items():
            task = Task(name, Shareable(dict(payload)), timeout=timeout, result_received_cb=receive)
            try:
                self.send(task, fl_ctx, targets=[client])
            except ValueError:
                raise EngineError(f"client {client}: not connected; expected all clients of the settings") from None
            tasks.append(task)
        while any(task.completion_status is None for task in tasks):
            if abort_signal.triggered:
                raise StoppedError("the job was stopped: run it again, released rounds stay")
            time.sleep(_PERIOD)
        return answers


def _answer_of(result: Shareable) -> Answer:
    """Return what a reply says; a reply without an exit code of its own is a failure of FLARE's."""
    code = result.get_header(EXIT_CODE)
    if result.get_return_code() == ReturnCode.OK and code == 0:
        return Answer(0, result)
    return Answer(code if isinstance(code, int) and code else EngineError.exit_code, {})
