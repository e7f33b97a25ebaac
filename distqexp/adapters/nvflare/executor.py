"""FLARE's executor at a site."""

from __future__ import annotations

from pathlib import Path

from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from distqexp.adapters.nvflare.settings import site_file
from distqexp.adapters.nvflare.site import attempt
from distqexp.adapters.nvflare.wire import TASKS, meaning

EXIT_CODE = "distqexp_exit_code"
"""The header of a reply with the exit code."""

RETURN_CODES = {
    0: ReturnCode.OK,
    2: ReturnCode.BAD_REQUEST_DATA,
    3: ReturnCode.BAD_TASK_DATA,
    4: ReturnCode.EXECUTION_RESULT_ERROR,
    6: ReturnCode.ERROR,
    75: ReturnCode.TASK_ABORTED,
}
"""FLARE's return code of an exit code; of all others EXECUTION_EXCEPTION."""


class SiteExecutor(Executor):
    """Performs distqexp's tasks by the settings in the site's own ``local`` folder, ``distqexp-CLIENT.toml``."""

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Perform a task; the reply has bytes, or an exit code and no text. A sketch that began is not cut off."""
        if task_name not in TASKS:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        if abort_signal.triggered:
            return make_reply(ReturnCode.TASK_ABORTED, {EXIT_CODE: 75})
        local = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_site_config_dir()
        settings = Path(local).absolute() / site_file(fl_ctx.get_identity_name())
        code, payload = attempt(settings, task_name, shareable)
        if code:
            self.log_error(fl_ctx, f"distqexp: {meaning(code)}; see {settings.with_suffix('.log').name}")
        reply = make_reply(RETURN_CODES.get(code, ReturnCode.EXECUTION_EXCEPTION), {EXIT_CODE: code})
        reply.update(payload)
        return reply
