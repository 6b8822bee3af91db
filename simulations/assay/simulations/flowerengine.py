"""Flower's simulation engine with Ray, started for one run and gone without a trace after it.

==========================  =============================================================================
telemetry, update checks,   off, Flower's and Ray's; the dashboard too
installation at run time
network                     Ray listens on the loopback interface, behind a word that only this process
                            and its children know; nothing needs the internet
files                       under the directory it is given
a Ray process that dies     the holder it worked for gives no answer, as a live one that fails
a run that ends, Ctrl-C     ends all of Ray's processes
==========================  =============================================================================
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from assay.privacy.errors import Unavailable

__all__ = ["App", "FlowerEngine", "require_ray"]

START_S = 180.0  # Ray starts, and its processes import PyTorch
END_S = 20.0
POLL_S = 0.01
_STORE_BYTES = 128 << 20  # Ray's shared memory; a message is smaller than 1 MB
_LONGEST_HOME = 30  # Ray puts sockets below its directory, and a socket's path has at most 107 bytes

App = Callable[[Message, Context], Message]


def require_ray() -> None:
    """Refuse where Ray is not installed.

    Raises:
        Unavailable: with the command that installs it.
    """
    if importlib.util.find_spec("ray") is None:
        raise Unavailable("--engine flower needs ray: pip install 'assay[flower]'")


class FlowerEngine:
    """Flower's simulation in a thread of its own, whose ServerApp hands its grid over and waits.

    Args:
        root: a directory for what Flower and Ray write.
        app: answers for every node; sent to Ray's processes with every question.
        nodes: how many nodes.
        processes: how many of Ray's processes answer for them, at most one for each; None: one for each core.
    """

    def __init__(self, root: Path, app: App, nodes: int, processes: int | None = None) -> None:
        self._grids: queue.SimpleQueue[Grid] = queue.SimpleQueue()
        self._over, self._error = threading.Event(), ""
        settings = _settings(root, min(processes or _cores(), nodes))
        self._thread = threading.Thread(
            target=self._run, args=(root, app, nodes, settings), name="flower", daemon=True
        )
        self._thread.start()

    def _run(self, root: Path, app: App, nodes: int, settings: dict[str, Any]) -> None:
        server = ServerApp()

        @server.main()  # type: ignore[untyped-decorator]
        def main(grid: Grid, context: Context) -> None:
            self._grids.put(grid)
            self._over.wait()

        try:
            with _quiet(root):
                from flwr.simulation import run_simulation

                run_simulation(server, app, nodes, backend_config=settings)
        except Exception as error:  # noqa: BLE001 - said to whoever waits for the grid or for an answer
            self._error = str(error.__cause__.__cause__ or error.__cause__) if error.__cause__ else str(error)
        finally:
            self._over.set()

    def grid(self) -> Grid:
        """Return the grid of the simulation, once it is there.

        Raises:
            Unavailable: it does not come in time, or the engine has ended.
        """
        end = time.monotonic() + START_S
        while self._grids.empty():
            if time.monotonic() > end:
                raise Unavailable(f"Flower's simulation engine does not start within {START_S:g} s")
            self.pause()
        return self._grids.get()

    def pause(self) -> None:
        """Wait a moment.

        Raises:
            Unavailable: the engine has ended.
        """
        if self._over.wait(POLL_S):
            raise Unavailable(f"Flower's simulation engine has ended: {self._error or 'it was stopped'}")

    def stop(self) -> None:
        """End the simulation and Ray, and wait for them."""
        self._over.set()
        self._thread.join(END_S)
        if self._thread.is_alive():
            import ray

            ray.shutdown()  # a process that still computes is not waited for any longer
            self._thread.join(END_S)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _settings(root: Path, processes: int) -> dict[str, dict[str, Any]]:
    """Return the settings of Flower's Ray backend: one machine, one process for each core, nothing shown."""
    start: dict[str, Any] = {
        "address": "local",  # never a cluster that the environment names
        "num_cpus": processes,
        "num_gpus": 0,
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        "logging_level": "critical",
        "log_to_driver": False,
    }
    if len(str(root)) <= _LONGEST_HOME:
        start["_temp_dir"] = str(root / "ray")
    return {"init_args": start, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}


@functools.cache
def _word() -> str:
    """Return the word that Ray asks of whoever connects; Ray reads it once in a process."""
    return secrets.token_hex(32)


@contextmanager
def _quiet(root: Path) -> Iterator[None]:
    """Set what Flower and Ray read from the environment, and put everything back.

    Raises:
        Unavailable: Ray runs in this process already; its owner would lose it at the end.
    """
    settings = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_HOME": str(root / "flwr"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _word(),
        # Whatever its name says: off, Ray keeps to the loopback address on every system.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),  # Flower changes it
    }
    before = {name: os.environ.get(name) for name in settings}
    logger = logging.getLogger("flwr")
    level = logger.level
    os.environ.update(settings)
    logger.setLevel(logging.CRITICAL)
    try:
        import flwr.supercore.telemetry
        import ray

        # Read when it was imported, which may have been before this module.
        flwr.supercore.telemetry.FLWR_TELEMETRY_ENABLED = "0"
        if ray.is_initialized():
            raise Unavailable("Ray runs in this process already; call ray.shutdown() first")
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
