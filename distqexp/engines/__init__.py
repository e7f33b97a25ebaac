"""Engines run the work in one process, over MPI ranks, or on a Dask cluster, behind the same few verbs."""

from __future__ import annotations

from collections.abc import Mapping

from distqexp.config import EngineConfig
from distqexp.engines.base import Control, Engine
from distqexp.engines.launcher import allocation_warning, check_size, launched_size, may_print
from distqexp.engines.serial import SerialEngine
from distqexp.errors import DistqexpError, EngineError

__all__ = ["Control", "Engine", "SerialEngine", "make_engine"]


def make_engine(config: EngineConfig, environ: Mapping[str, str], *, debug: bool = False) -> Engine:
    """Make the engine that the config asks for. Use it as a context manager.

    ``auto`` is MPI under a launcher and serial otherwise.

    Args:
        config: The section of the config.
        environ: The environment, in which launchers say how many processes they started.
        debug: Whether to print the frames of a traceback when aborting.

    Raises:
        EngineError: The launcher started another number of processes than the engine sees, or a library is missing. It comes before
            anything is read. Under a launcher only the first process is to print it (``reported`` is set on the others).
    """
    try:
        engine = _choose(config, environ)
        check_size(engine.size, environ)
    except DistqexpError as error:
        if not may_print(environ):
            setattr(error, "reported", True)  # noqa: B010
        raise
    engine.debug = debug
    engine.warning = allocation_warning(engine.size, environ)
    return engine


def _choose(config: EngineConfig, environ: Mapping[str, str]) -> Engine:
    launch = launched_size(environ)
    if config.kind == "dask":
        from distqexp.engines.dask import DaskEngine

        return DaskEngine(config.scheduler, config.workers, threads=config.threads)
    if config.kind == "mpi" or (config.kind == "auto" and launch is not None):
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            if config.kind == "auto" and launch is not None and launch[0] == 1:
                return SerialEngine()
            cause = f"the launcher says {launch[0]} processes ({launch[1]})" if launch else "engine.kind is mpi"
            raise EngineError(
                f"{cause}, but MPI can't be loaded ({' '.join(str(error).split())}); install distqexp[mpi] for the "
                "site's own MPI, or distqexp[mpi-bundled] where there is none"
            ) from None
        from distqexp.engines.mpi import MpiEngine

        return MpiEngine(MPI.COMM_WORLD, watch_launcher=launch is not None)
    return SerialEngine()
