"""The same study and the same holders on Flower's own simulation engine, which spreads them over processes.

Every holder is a virtual node of Flower's, whose ClientApp any of Ray's processes may run: two questions to
one holder rarely meet the same process. So nothing of a holder is kept in memory between two questions. Its
key, ledger, audit log, accepted study and sessions are files, opened for one question and closed before its
answer leaves, as after a restart of the daemon. Records alone are kept per process, mapped from a file.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict

from assay.client.app import make_app
from assay.client.daemon import AUDIT_FILE, LEDGER_FILE
from assay.client.holder import Holder
from assay.client.policy import Policy
from assay.client.records import Records
from assay.models.schema import Study
from assay.privacy.auditlog import AuditLog
from assay.privacy.errors import Unavailable
from assay.privacy.files import make_private_dir
from assay.privacy.keys import Identity
from assay.privacy.ledger import Ledger, LedgerSummary
from assay.privacy.ledger_account import Limits
from assay.privacy.names import federation_id
from assay.simulations.flowerengine import START_S, App, FlowerEngine, require_ray
from assay.simulations.recordfile import read_records, write_records

__all__ = ["FlowerHolders", "HolderApp", "Nodes", "StoredLedger"]

_NAME_TYPE = "query.name"  # which holder is behind a node
_MESSAGES = "messages.log"


class FlowerHolders:
    """Simulated holders on Flower's simulation engine, for as long as the context lasts.

    Args:
        study: what will be trained.
        holders: each holder's records, by name.
        policy: what every holder allows.
        coordinator: the coordinator's signing key.
        log: where the holders' log lines go, when the run has ended.
        processes: how many of Ray's processes answer, at most one for each holder; None: one for each core.

    Attributes:
        roster: the holders' public keys by name.
        ledgers: what stands in their ledgers, by name.
        grid: where they are asked.
    """

    def __init__(
        self,
        study: Study,
        holders: Mapping[str, Records],
        policy: Policy,
        *,
        coordinator: Identity,
        log: Callable[[str], None] = lambda _: None,
        processes: int | None = None,
    ) -> None:
        require_ray()
        self._opened = ExitStack()
        self._root = Path(self._opened.enter_context(tempfile.TemporaryDirectory(prefix="assay-")))
        self._log = log
        try:
            self.roster = _write_holders(self._root, holders)
            directories = {name: self._root / str(number) for number, name in enumerate(holders)}
            self.ledgers = {name: StoredLedger(directory) for name, directory in directories.items()}
            app = holder_app(
                self._root,
                federation=federation_id(coordinator.public),
                coordinator_key=coordinator.public,
                policy=policy,
                person=study.person,
            )
            self._engine = FlowerEngine(self._root, app, len(holders), processes)
        except BaseException:
            self._opened.close()
            raise

    def __enter__(self) -> FlowerHolders:
        try:
            self.grid = Nodes(self._engine, len(self.roster))
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        with self._opened:
            self._engine.stop()
            for ledger in self.ledgers.values():
                for line in ledger.messages():
                    self._log(line)


class HolderApp:
    """Answers for the holder whose number Flower gives a node, by that holder's own ClientApp.

    Flower sends it along with every question: it holds no records and no secret.

    Args:
        root: the directory with one directory for each holder, by number.
        federation: identifier of the federation, 64 hexadecimal digits.
        coordinator_key: Ed25519 key of the coordinator, 32 bytes.
        policy: what every holder allows.
        person: column that names the person, or None.
    """

    def __init__(
        self, root: Path, *, federation: str, coordinator_key: bytes, policy: Policy, person: str | None
    ) -> None:
        self._root, self._federation, self._coordinator_key = root, federation, coordinator_key
        self._policy, self._person = policy, person

    def __call__(self, message: Message, context: Context) -> Message:
        """Open the holder's books, answer, close them."""
        directory = self._root / str(context.node_config["partition-id"])
        name = (directory / "name").read_text(encoding="utf-8")
        if message.metadata.message_type == _NAME_TYPE:
            return Message(RecordDict({"assay": ConfigRecord({"name": name})}), reply_to=message)
        with _books(directory) as (identity, ledger, audit):
            holder = Holder(
                name=name,
                identity=identity,
                federation=self._federation,
                coordinator_key=self._coordinator_key,
                policy=self._policy,
                ledger=ledger,
                audit=audit,
                load=lambda _: _records(directory),
                person=self._person,
                directory=directory,
            )
            with (directory / _MESSAGES).open("a", encoding="utf-8") as lines:

                def note(line: str) -> None:
                    lines.write(f"{line}\n")

                app = make_app(
                    holder,
                    identity=identity,
                    federation=self._federation,
                    coordinator_key=self._coordinator_key,
                    log=note,
                )
                return app(message, context)


holder_app: Callable[..., App] = HolderApp  # what is sent to Ray's processes


class StoredLedger:
    """A holder's ledger that is opened only to be read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def summary(self, limits: Limits) -> LedgerSummary:
        """As :meth:`assay.privacy.ledger.Ledger.summary`; ledger and audit log are verified."""
        with _books(self._directory) as (_, ledger, _):
            return ledger.summary(limits)

    def messages(self) -> list[str]:
        """Return the holder's log lines."""
        path = self._directory / _MESSAGES
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@functools.lru_cache(maxsize=256)
def _records(directory: Path) -> Records:
    """Read a holder's records once in a process; its numbers stay in the file, which is mapped."""
    return read_records(directory / "records.arrow")


@contextmanager
def _books(directory: Path) -> Iterator[tuple[Identity, Ledger, AuditLog]]:
    """Open a holder's key, ledger and audit log, verified, and close them."""
    identity = Identity.load(directory / "holder.key")
    with ExitStack() as opened:
        audit = opened.enter_context(AuditLog.open(directory / AUDIT_FILE, identity))
        ledger = opened.enter_context(Ledger.open(directory / LEDGER_FILE, identity, log_head=audit.head))
        yield identity, ledger, audit


def _write_holders(root: Path, holders: Mapping[str, Records]) -> dict[str, bytes]:
    """Write one directory for each holder; return their public keys by name."""
    roster = {}
    for number, (name, records) in enumerate(holders.items()):
        directory, identity = make_private_dir(root / str(number)), Identity.generate()
        identity.save(directory / "holder.key")
        (directory / "name").write_text(name, encoding="utf-8")
        write_records(directory / "records.arrow", records)
        roster[name] = identity.public
    return roster


class Nodes:
    """The holders by name on Flower's grid; a wait ends when the engine does."""

    def __init__(self, engine: FlowerEngine, count: int) -> None:
        """Ask every node which holder it is; the first question also waits for Ray.

        Raises:
            Unavailable: not all have answered in time.
        """
        self._engine, end = engine, time.monotonic() + START_S
        self._grid = engine.grid()
        while len(found := list(self._grid.get_node_ids())) < count and time.monotonic() < end:
            engine.pause()
        replies = self.send_and_receive([Message(RecordDict(), node, _NAME_TYPE) for node in found])
        failed = [reply.error.reason for reply in replies if reply.has_error()]
        if failed or len(replies) != count:
            why = failed[0] if failed else f"time-out of {START_S:g} s"
            raise Unavailable(f"only {len(replies)} of {count} nodes of Flower's engine answer: {why}")
        self._nodes = {reply.content["assay"]["name"]: reply.metadata.src_node_id for reply in replies}

    def nodes(self) -> dict[str, int]:
        """Return the node id of every holder by name."""
        return dict(self._nodes)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str
    ) -> Message:
        """Return a question to one node."""
        return Message(content, dst_node_id, message_type, group_id=group_id)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = START_S
    ) -> list[Message]:
        """Push the questions, and pull replies until all have come or ``timeout`` seconds have passed.

        Raises:
            Unavailable: the engine has ended.
        """
        end = time.monotonic() + (timeout if timeout is not None else float("inf"))
        waiting = set(self._grid.push_messages(messages))
        replies: list[Message] = []
        while waiting and time.monotonic() < end:
            self._engine.pause()
            for reply in self._grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies
