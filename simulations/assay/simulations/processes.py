"""A federation's processes on this machine: started together, watched, and stopped in order."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from assay.privacy.errors import AssayError
from assay.privacy.files import make_private_dir

__all__ = ["Processes"]

STOP_S = 15.0


class Processes:
    """`assay` commands beside this one. Leaving the ``with`` block stops them, also after Ctrl-C.

    Args:
        logs: directory for one log file per process.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = make_private_dir(logs)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The coordinator was started first and goes last, so that the holders can say goodbye to it.
        first, *others = self._running
        self.stop(*others)
        self.stop(first)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start ``assay ARGUMENTS``; its output goes to ``NAME.log``."""
        command = [sys.executable, "-m", "assay.simulations.main", *arguments]
        with (self._logs / f"{name}.log").open("ab") as sink:
            # A session of its own: Ctrl-C reaches this process only, which then stops the others.
            self._running[name] = subprocess.Popen(  # noqa: S603 - our own command
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
            )
        return self._running[name]

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """Return the process last started under ``name``."""
        return self._running[name]

    def check(self) -> None:
        """Raise if a process has ended by itself.

        Raises:
            AssayError: naming the process, its exit code and the last line of its log.
        """
        for name, process in self._running.items():
            if process.poll() is not None:
                log = self._logs / f"{name}.log"
                last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                raise AssayError(
                    f"{name} ended with exit code {process.returncode}: {''.join(last)} (see {log})"
                )

    def stop(self, *names: str) -> None:
        """Ask processes to stop, wait for all of them, and end by force what does not stop in time."""
        for name in names:
            self._running[name].terminate()
        end = time.monotonic() + STOP_S
        for name in names:
            try:
                self._running[name].wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._running[name].kill()
                self._running[name].wait()
