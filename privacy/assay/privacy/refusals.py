"""The log of refusals: what was asked for at this command line and refused by a policy pack.

One JSON object a line, for an auditor::

    {"time": "2026-12-01T08:00:00Z", "command": "assay model score", "code": "D03", "article": "...",
     "subject": "purpose 'microloan' for a model made for 'consumer_credit'", "pack": "eu-2026-11-20"}

guarantee                 how
no personal data          the six fields above; ``subject`` is an argument or a name in a study, never a cell
whole lines               one writer at a time, appended and synced before the command ends; what a full disk
                          cuts off is taken back, what a crash cuts off does not swallow the next line
owner only                directory 0700, file 0600
not for ever              :func:`prune` drops what is older than its pack keeps refusals

It is not tamper-evident: who owns the file can edit it. A holder's daemon writes its refusals into its audit
log, which is.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from assay.privacy.errors import Refused
from assay.privacy.files import PRIVATE_FILE, make_private_dir, write_durably
from assay.privacy.packfile import load_pack, pack_names
from assay.privacy.policypack import CODES

__all__ = ["RefusalLog", "by_policy", "log_file", "prune", "read", "record"]

MAX_SUBJECT = 200  # characters of what was asked for; it is an argument and may be of any length
_FIELDS = ("time", "command", "code", "article", "subject", "pack")
_LOCK_TRIES, _LOCK_WAIT_S = 100, 0.05


@dataclass(frozen=True, kw_only=True)
class RefusalLog:
    """What is in the log.

    Attributes:
        entries: oldest first, each with the fields of the module's example.
        unreadable: lines that are no entries, such as one that a crash cut off; they are kept.
    """

    entries: tuple[dict[str, str], ...]
    unreadable: int


def by_policy(error: Refused) -> bool:
    """Say whether a refusal belongs in the log: one of a policy pack, not of a budget or a run's state."""
    return error.code in CODES or error.code == "purpose"


def log_file() -> Path:
    """Return where the log is: ``$ASSAY_STATE``, ``$XDG_STATE_HOME/assay`` or ``~/.local/state/assay``.

    Raises:
        OSError: none of the three says a directory.
    """
    if named := os.environ.get("ASSAY_STATE"):
        return Path(named) / "refusals.jsonl"
    base = os.environ.get("XDG_STATE_HOME", "")
    if base.startswith("/"):  # the XDG specification: a relative path is to be ignored
        return Path(base) / "assay" / "refusals.jsonl"
    try:
        return Path.home() / ".local" / "state" / "assay" / "refusals.jsonl"
    except RuntimeError:
        raise OSError(errno.ENOENT, "no home directory; set ASSAY_STATE to a directory") from None


def record(error: Refused, command: str, clock: Callable[[], float] = time.time) -> None:
    """Append a refusal, durably.

    Args:
        error: the refusal.
        command: which command it ended, without its arguments.
        clock: seconds since 1970.

    Raises:
        OSError: it could not be written; the log is as before.
    """
    entry = {
        "time": datetime.fromtimestamp(int(clock()), UTC).isoformat().replace("+00:00", "Z"),
        "command": command,
        "code": error.code,
        "article": error.article,
        "subject": error.subject[:MAX_SUBJECT],
        "pack": error.pack,
    }
    path = log_file()
    make_private_dir(path.parent)
    with _locked(path.parent) as directory:
        _append(path, json.dumps(entry).encode() + b"\n")
        os.fsync(directory)


def read() -> RefusalLog:
    """Return the log; an absent one is empty.

    Raises:
        OSError: it cannot be read.
    """
    entries = [_entry(line) for line in _lines(log_file())]
    return RefusalLog(
        entries=tuple(entry for entry in entries if entry is not None), unreadable=entries.count(None)
    )


def prune(clock: Callable[[], float] = time.time) -> int:
    """Drop the entries older than their pack keeps refusals, and return how many.

    An entry of a pack that is not there any more is kept as long as the pack that keeps longest.

    Raises:
        OSError: the log cannot be read or written; it is then as before.
    """
    path = log_file()
    if not path.exists():
        return 0
    with _locked(path.parent):
        lines = _lines(path)
        kept = [line for line in lines if not _too_old(_entry(line), clock())]
        if len(kept) < len(lines):
            write_durably(path, b"".join(line + b"\n" for line in kept), mode=PRIVATE_FILE)
    return len(lines) - len(kept)


def _too_old(entry: dict[str, str] | None, now: float) -> bool:
    if entry is None:
        return False
    packs = (entry["pack"],) if entry["pack"] in pack_names() else pack_names()
    days = max(load_pack(name).retention["refusals"].days for name in packs)
    return now - datetime.fromisoformat(entry["time"]).timestamp() > days * 86_400


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []


def _entry(line: bytes) -> dict[str, str] | None:
    """Return the entry of a line, or None if it is none."""
    try:
        entry = json.loads(line)
        if tuple(entry) != _FIELDS or not all(isinstance(value, str) for value in entry.values()):
            return None
        datetime.fromisoformat(entry["time"]).timestamp()
    except (AttributeError, OverflowError, RecursionError, TypeError, ValueError):
        return None
    return dict(entry)


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        os.fchmod(descriptor, PRIVATE_FILE)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        try:
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """Be the only one that writes; a command waits for another one for 5 seconds at most."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for left in reversed(range(_LOCK_TRIES)):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    raise
                time.sleep(_LOCK_WAIT_S)
        yield descriptor
    finally:
        os.close(descriptor)
