"""The job: two class names. It carries no code, no path and no figure; each machine has distqexp and its own settings."""

from __future__ import annotations

from nvflare.job_config.api import FedJob

from distqexp.adapters.nvflare.controller import CoordinatorController
from distqexp.adapters.nvflare.executor import SiteExecutor
from distqexp.adapters.nvflare.wire import TASKS


def make_job(clients: int, name: str = "distqexp") -> FedJob:
    """Return the job for at least so many clients. ``export_job(FOLDER)`` writes it; ``simulator_run`` tries it out.

    ``set_app_packages`` keeps distqexp's code out of the job, so that no site runs code that a server sent.
    """
    job = FedJob(name, min_clients=clients)
    job.set_app_packages(["distqexp"])
    job.to_server(CoordinatorController())
    job.to_clients(SiteExecutor(), tasks=list(TASKS))
    return job
