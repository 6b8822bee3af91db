"""What a holder did, in order: a file of signed lines that can be extended and not changed unnoticed.

==============  =====================================================================================
durable         :meth:`AuditLog.append` returns when the line is on disk; what it records is
                acknowledged to nobody before
ordered         every line carries the root of the RFC 6962 tree (``merkle``) over all leaves up to it,
                signed by the holder (context "audit-checkpoint"): every line is a checkpoint
agreeing        a release, an opening and a close stand in the ledger *and* here (:meth:`AuditLog.follow`),
                and ledger rows name the size and root the log had (``Ledger.open(log_head=...)``)
no person       a leaf holds the fields of :data:`FIELDS` and no others: names of runs, numbers of rounds,
                hashes, codes; nothing of a record, so that a record can be deleted and the log stays whole.
                What was released is named by the hash of its ledger row, which covers a random key: no
                guess can be tried on it
==============  =====================================================================================

What the file alone cannot show is that whole lines were cut off its end: the ledger, and the heads that the
coordinator keeps, show it (``audit``). ``docs/audit-log.md`` describes the format byte by byte.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time as system_time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from assay.privacy.auditentry import FIELDS, Entry, decode, encode, is_whole
from assay.privacy.errors import BadInput, Refused, Tampered, Unavailable
from assay.privacy.files import require_private
from assay.privacy.keys import Identity
from assay.privacy.ledger import RESTORED, Landmark, Ledger
from assay.privacy.ledger_store import create_private
from assay.privacy.merkle import MerkleTree

__all__ = ["FIELDS", "AuditLog", "Entry"]

_MAX_LINE_BYTES = 8192


class AuditLog:
    """One holder's audit log, open. Safe to use from several threads of one process.

    Only one process may hold it for writing; any number may read it meanwhile. Use as a context manager
    or call :meth:`close`.

    Attributes:
        unfinished: what follows the last whole line is an incomplete one: a crash, or an append under way.
        landmarks: ledger rows that have an entry, by their number.
        countersigned: entries that hold heads signed by the coordinator, oldest first.
    """

    def __init__(
        self, name: str, identity: Identity, clock: Callable[[], float], descriptor: int | None
    ) -> None:
        self._name, self._identity, self._clock, self._file = name, identity, clock, descriptor
        self._mutex = threading.RLock()
        self._tree = MerkleTree()
        self._roots = [self._tree.root]  # by size
        self._length = 0  # bytes of the whole lines
        self._broken = False
        self._time = 0.0
        self._known: set[tuple[str, object, object]] = set()
        self._last_row = 0
        self.unfinished = False
        self.landmarks: dict[int, Landmark] = {}
        self.countersigned: list[Entry] = []

    @classmethod
    def open(
        cls,
        path: Path | None,
        identity: Identity,
        clock: Callable[[], float] = system_time.time,
        *,
        read_only: bool = False,
    ) -> Self:
        """Open the log at ``path``, creating it (mode 0600) unless ``read_only``, and verify all of it.

        An incomplete last line, which no answer was waiting for, is taken away unless ``read_only``.

        Args:
            path: the file; None: in memory, for simulations.
            identity: the holder's; signs every line.
            clock: seconds since 1970, UTC.
            read_only: take no lock and change nothing; for looking while the daemon runs.

        Raises:
            BadInput: missing (``read_only``), not a file or readable by others.
            Tampered: names the first entry that is not what the holder wrote.
            Unavailable: another process holds it, or it cannot be read or written.
        """
        if path is None:
            return cls("audit log", identity, clock, None)
        try:
            log = cls(str(path), identity, clock, _open(path, read_only=read_only))
        except OSError as error:
            raise Unavailable(f"{path}: the audit log cannot be opened: {error.strerror}") from None
        try:
            log._load(repair=not read_only)
        except BaseException as error:
            log.close()
            if isinstance(error, OSError):
                raise Unavailable(f"{path}: the audit log cannot be read: {error.strerror}") from None
            raise
        return log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let go of the lock; nothing can be appended afterwards."""
        with self._mutex:
            self._broken = True
            if self._file is not None:
                os.close(self._file)
                self._file = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return len(self._roots) - 1

    @property
    def root(self) -> str:
        """Merkle tree hash of all entries, 64 hexadecimal digits."""
        return self._roots[-1]

    def head(self) -> str:
        """Return ``"size:root"``, what ledger rows name (``Ledger.open(log_head=log.head)``)."""
        size = self.size  # one look: another thread may append
        return f"{size}:{self._roots[size]}"

    def root_at(self, size: int) -> str | None:
        """Return the root the log had when it held ``size`` entries; None if it never held so many."""
        return self._roots[size] if 0 <= size < len(self._roots) else None

    def require_prefix(self, size: int, root: str) -> None:
        """Refuse to go on where the log does not contain the entries that somebody else saw.

        Args:
            size: number of entries seen.
            root: Merkle tree hash of them, 64 hexadecimal digits.

        Raises:
            Refused: code ``"ledger"``.
        """
        if self.root_at(size) != root:
            raise Refused(
                f"the audit log, which ends at entry {self.size}, does not contain the {size} entries that "
                f"the coordinator saw: {RESTORED}",
                code="ledger",
            )

    def require_head(self, head: str, *, by: str) -> None:
        """Check that the log contains what :meth:`head` said once.

        Args:
            head: ``"size:root"``.
            by: where it stands, for the message.

        Raises:
            Tampered: it does not.
        """
        size, _, root = head.partition(":")
        if self.root_at(int(size)) != root:
            raise Tampered(
                f"{self._name} ends at entry {self.size} and does not contain the {size} entries that {by} "
                f"names: {RESTORED}"
            )

    def has(self, kind: str, *, run: str | None = None, round: int | None = None) -> bool:  # noqa: A002
        """Say whether an entry of ``kind`` names this run and round (None: it has no such field)."""
        return (kind, run, round) in self._known

    def append(self, kind: str, **data: str | int) -> None:
        """Write one entry; durable when this returns.

        Args:
            kind: a key of :data:`FIELDS`.
            data: exactly its fields, and those of :data:`~assay.privacy.auditentry.OPTIONAL` that apply.

        Raises:
            BadInput: another kind, field or value.
            Unavailable: it could not be written, or the log is closed; nothing was appended.
        """
        with self._mutex:
            when = max(float(self._clock()), self._time)
            entry = Entry(index=self.size + 1, time=when, kind=kind, data=data)
            row = entry.landmark
            if row is not None and row.seq <= self._last_row:
                raise BadInput("ledger_seq", value=row.seq, allowed=f"a row behind row {self._last_row}")
            grown = self._tree.copy()
            grown.append(entry.leaf)
            self._write(encode(entry, grown, self._identity))
            self._take(entry, row, grown)

    def follow(self, ledger: Ledger) -> None:
        """Append the ``release``, ``open`` and ``closed`` entries of ledger rows that have none yet.

        Called after every ledger write and before anything is answered, for a repeated question too, and
        at the start: what a crash left out is then made good.

        Raises:
            Tampered: ledger and log are not of one age; nothing is written.
            Unavailable: it could not be written.
        """
        with self._mutex:
            self._require_one_age(ledger)
            for row in ledger.landmarks(after=self._last_row):
                named: dict[str, str | int] = {"run": row.run, "ledger_seq": row.seq}
                named["row_sha256"] = row.row_sha256
                if row.kind == "close":
                    self.append("closed", outcome=row.outcome or "", **named)
                else:
                    self.append(row.kind, round=row.round or 0, **named)

    def _require_one_age(self, ledger: Ledger) -> None:
        """Compare the newest of both; ``audit`` compares all."""
        newest, _ = ledger.head()
        for row, log_head in ledger.log_heads(after=newest - 1):
            if log_head is not None:
                self.require_head(log_head, by=f"ledger row {row}")
        if self._last_row:
            known = ledger.landmarks(after=self._last_row - 1)
            if not known or known[0] != self.landmarks[self._last_row]:
                raise Tampered(
                    f"the ledger does not contain row {self._last_row}, which {self._name} names: {RESTORED}"
                )

    def _write(self, line: bytes) -> None:
        """Put ``line`` on disk whole, or leave the file as it was."""
        if self._broken:
            raise Unavailable(f"{self._name}: the audit log is closed; nothing is done")
        if self._file is None:
            return
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._length + written)
            os.fsync(self._file)
        except OSError as error:
            try:
                os.ftruncate(self._file, self._length)
            except OSError:
                self._broken = True  # the next start finds an incomplete line and takes it away
            raise Unavailable(
                f"{self._name}: the audit log cannot be written ({error.strerror}); nothing is done"
            ) from None
        self._length += len(line)

    def _take(self, entry: Entry, row: Landmark | None, tree: MerkleTree) -> None:
        """Make ``entry``, which is on disk, part of what is known."""
        self._tree, self._time = tree, entry.time
        self._roots.append(tree.root)
        self._known.add((entry.kind, entry.data.get("run"), entry.data.get("round")))
        if entry.kind == "countersigned":
            self.countersigned.append(entry)
        if row is not None:
            self.landmarks[row.seq], self._last_row = row, row.seq

    def _load(self, *, repair: bool) -> None:
        """Read and check all lines."""
        if self._file is None:
            return
        with os.fdopen(os.dup(self._file), "rb") as file:
            while (line := file.readline(_MAX_LINE_BYTES)).endswith(b"\n"):
                self._load_line(line)
        if line:
            self._load_end(line, repair=repair)

    def _load_line(self, line: bytes) -> None:
        what = f"{self._name}: entry {self.size + 1}"
        tree = self._tree  # grows in place: a log that does not verify is not used
        entry = decode(line, tree, self._identity.public, what=what)
        row = entry.landmark
        if row is not None and row.seq <= self._last_row:
            raise Tampered(f"{what} names ledger row {row.seq} behind row {self._last_row}")
        self._length += len(line)
        self._take(entry, row, tree)

    def _load_end(self, end: bytes, *, repair: bool) -> None:
        """Look at bytes behind the last line end: the start of a line, which a crash cut off, or damage."""
        if is_whole(end):  # only its line end is missing
            self._load_line(end + b"\n")
            if repair:
                self._length -= 1
                self._write(b"\n")
            return
        if is_whole(end[:-1]) or len(end) == _MAX_LINE_BYTES:
            raise Tampered(f"{self._name}: entry {self.size + 1} does not end where a line does")
        self.unfinished = True
        if repair and self._file is not None:
            os.ftruncate(self._file, self._length)
            os.fsync(self._file)


def _open(path: Path, *, read_only: bool) -> int:
    """Open the file; for writing also create it, and keep every other writer out."""
    if not read_only:
        create_private(path)
    require_private(path)
    if not path.is_file():
        raise BadInput("audit log", value=str(path), allowed="a file")
    if read_only:
        return os.open(path, os.O_RDONLY)
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise Unavailable(f"{path} is held by another process; stop the other daemon first") from None
    return descriptor
