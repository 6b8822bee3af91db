"""The holder's daemon: its directory opened, the ClientApp built, Flower's fleet served until stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from assay.client.config import CONFIG_FILE, HolderConfig
from assay.client.enrol import CA_CERTIFICATE, CLIENT_CERTIFICATE, TRANSPORT_KEY, load_join, load_keys
from assay.client.records import Records, load_records
from assay.client.sources import open_source
from assay.models.schema import Study
from assay.privacy.auditlog import AuditLog
from assay.privacy.errors import BadInput
from assay.privacy.keys import Identity
from assay.privacy.ledger import Ledger

__all__ = [
    "AUDIT_FILE",
    "LEDGER_FILE",
    "STATUS_FILE",
    "daemon_books",
    "read_status",
    "records_for",
    "run_daemon",
]

LEDGER_FILE = "ledger.sqlite"
AUDIT_FILE = "audit.log"
STATUS_FILE = "status.json"
JOURNAL_DIR = "journal"


def records_for(config: HolderConfig, study: Study) -> Records:
    """Read and check what ``study`` needs from the holder's source.

    Raises:
        BadInput: ``[data]`` is missing, or the source is not what the study says.
    """
    with open_source(config.require_data()) as source:
        return load_records(source, study)


def run_daemon(directory: Path, stop: threading.Event, log: Callable[[str], None]) -> None:
    """Serve the coordinator's questions until ``stop`` is set.

    Args:
        directory: a holder's directory that has joined a federation.
        stop: set from a signal handler; the daemon returns within seconds. An answer that is being computed
            then goes on until the process ends, which should be at once.
        log: where lines for the operator go. They hold nothing computed from records.

    Raises:
        AssayError: the directory, keys, ledger or data settings are not in order, or the coordinator
            refuses this holder for good.
    """
    config, keys, joined = HolderConfig.load(directory), load_keys(directory), load_join(directory)
    config.require_data()  # said before connecting
    if config.name != joined.holder:
        raise BadInput(
            "holder.name",
            where=directory / CONFIG_FILE,
            value=config.name,
            allowed=f"{joined.holder}, the name that was admitted",
        )
    # Heavy imports only now: a wrong setting is reported at once.
    from assay.client.app import make_app
    from assay.client.fleet import FleetLink, serve
    from assay.client.holder import Holder

    status, in_use = _Status(directory / STATUS_FILE, log), threading.Event()
    with daemon_books(directory, keys.identity, in_use) as (ledger, audit):
        holder = Holder(
            name=config.name,
            identity=keys.identity,
            federation=joined.federation_id,
            coordinator_key=joined.coordinator_public,
            policy=config.policy,
            ledger=ledger,
            audit=audit,
            load=lambda study: records_for(config, study),
            person=config.person,
            directory=directory,
        )
        app = make_app(
            holder,
            identity=keys.identity,
            federation=joined.federation_id,
            coordinator_key=joined.coordinator_public,
            log=status.say,
        )
        link = FleetLink(
            address=joined.address,
            ca=directory / CA_CERTIFICATE,
            certificate=directory / CLIENT_CERTIFICATE,
            key=directory / TRANSPORT_KEY,
        )
        status.say(f"{config.name}: connecting to {joined.federation} at {joined.address}")
        try:
            if serve(app, link=link, journal_dir=directory / JOURNAL_DIR, stop=stop, log=status.say):
                in_use.set()
        finally:
            status.say("stopped", running=False)


@contextlib.contextmanager
def daemon_books(
    directory: Path, identity: Identity, in_use: threading.Event
) -> Iterator[tuple[Ledger, AuditLog]]:
    """Open the ledger and the audit log for as long as the daemon runs, and log that it does.

    Args:
        directory: the holder's.
        identity: the holder's; signs both.
        in_use: set at the end: a thread still works with the books. They are then left to the end of the
            process, which neither of them minds; closed under that thread, they would look tampered with.

    Raises:
        AssayError: one of them does not verify, is held by another daemon or cannot be written.
    """
    policy = hashlib.sha256((directory / CONFIG_FILE).read_bytes()).hexdigest()
    with contextlib.ExitStack() as opened:
        audit = opened.enter_context(AuditLog.open(directory / AUDIT_FILE, identity))
        ledger = opened.enter_context(Ledger.open(directory / LEDGER_FILE, identity, log_head=audit.head))
        audit.follow(ledger)  # nothing is added to books that are not of one age
        audit.append("start", version=version("assay"))
        audit.append("policy", sha256=policy)
        try:
            yield ledger, audit
        finally:
            if in_use.is_set():
                opened.pop_all()  # first: the next line may fail
            audit.append("stop")


class _Status:
    """Logs lines and keeps the last one where ``assay client status`` finds it.

    Safe to use from several threads. A disk that takes no line does not stop what the line is about.
    """

    def __init__(self, path: Path, log: Callable[[str], None]) -> None:
        self._path, self._log, self._lock = path, log, threading.Lock()

    def say(self, line: str, *, running: bool = True) -> None:
        """Log ``line`` and remember it."""
        with contextlib.suppress(OSError):
            self._log(line)
        state = {"running": running, "pid": os.getpid(), "time": time.time(), "last": line}
        # For people who look now: whole or absent, but not worth a disk flush in every round.
        temporary = self._path.with_suffix(".tmp")
        with self._lock, contextlib.suppress(OSError):
            temporary.write_text(json.dumps(state), encoding="utf-8")
            temporary.chmod(0o600)
            temporary.replace(self._path)


def read_status(directory: Path) -> dict[str, Any]:
    """Return what the daemon last said, and whether its process still lives."""
    path = directory / STATUS_FILE
    if not path.exists():
        return {"running": False, "pid": None, "time": None, "last": "never started"}
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    try:
        os.kill(int(state["pid"]), 0)
    except (ProcessLookupError, PermissionError):
        state["running"] = False
    return state
