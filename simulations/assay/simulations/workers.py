"""Processes that do the tasks of a sweep side by side, one thread each.

They are started as commands of their own, not as copies of this process: a notebook or a script needs no
guard around its main part, and nothing is passed but lines of JSON. Ctrl-C reaches this process only, which
then ends them.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Any

from assay.privacy.errors import AssayError

__all__ = ["Workers", "usable_cores"]

_STOP_S = 10.0
_COMMAND = (sys.executable, "-P", "-m", "assay.simulations.work")
_ENVIRONMENT = {
    # Several processes share the cores: more threads than one each would only wait for each other.
    **dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
    ),
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PYTHONUNBUFFERED": "1",
}


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Worker processes. Leaving the ``with`` block ends them, also after Ctrl-C.

    Args:
        count: how many, 1 or more.
        settings: first line for each, see :mod:`assay.simulations.work`.
    """

    def __init__(self, count: int, settings: dict[str, Any]) -> None:
        self._count, self._settings = count, settings
        self._running: list[_Worker] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Workers:
        try:
            for number in range(self._count):
                worker = _Worker(self._settings)
                self._running.append(worker)
                self._selector.register(worker.output, selectors.EVENT_READ, number)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def idle(self) -> list[int]:
        """Numbers of the workers that wait for a task."""
        return [number for number, worker in enumerate(self._running) if not worker.busy]

    def give(self, number: int, task: dict[str, Any]) -> None:
        """Give a task to an idle worker.

        Raises:
            AssayError: the process has ended by itself.
        """
        self._running[number].tell(task)
        self._running[number].busy = True

    def said(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Wait until workers say something; yield each one's number and what it says.

        Raises:
            AssayError: a process has ended by itself.
        """
        for key, _ in self._selector.select():
            worker = self._running[key.data]
            for message in worker.hear():
                if "step" not in message:
                    worker.busy = False
                yield key.data, message

    def _end(self) -> None:
        for worker in self._running:
            worker.process.terminate()
        for worker in self._running:
            worker.end()
        self._selector.close()


class _Worker:
    """One process; ``output`` is what it says, in lines."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.busy = False
        # What it prints besides is shown only where it ends by itself.
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        self.process = subprocess.Popen(  # noqa: S603 - our own command
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,
        )
        if self.process.stdin is None or self.process.stdout is None:  # for mypy: both are pipes
            raise AssayError("a worker process has no pipes")
        self._input, self.output = self.process.stdin, self.process.stdout
        self._heard = b""
        self.tell(settings)

    def tell(self, value: dict[str, Any]) -> None:
        try:
            self._input.write(json.dumps(value).encode() + b"\n")
            self._input.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def hear(self) -> Iterator[dict[str, Any]]:
        data = os.read(self.output.fileno(), 1 << 16)
        if not data:
            raise self._ended()
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            yield json.loads(line)

    def end(self) -> None:
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self._input, self.output, self._log):
            try:
                pipe.close()
            except BrokenPipeError:  # a task that it never read
                continue

    def _ended(self) -> AssayError:
        code = self.process.wait()
        self._log.seek(0)
        last = self._log.read().decode("utf-8", errors="replace").strip().splitlines()[-1:]
        words = "".join(last) or "it said nothing; the machine may be out of memory"
        return AssayError(f"a worker process of the sweep ended with exit code {code}: {words}")
