"""The holder's daemon: takes questions from the coordinator, runs the installed app, sends the answers.

Speaks Flower's Fleet protocol over :class:`~assay.client.link.Connection`. It runs the one app it was
started with: it never asks for an application bundle and starts no process.

What a failure leads to:

===============================  =======================================================================
connection lost, coordinator     the same bytes again after a jittered pause of at most 30 s, for ever
down, 408, 429, 5xx
coordinator restarted            its own key activates it again; a question of before is dropped
killed before the app ran        the journalled question is put to the app again
killed after the app ran         the journalled answer is sent, byte for byte
journal damaged                  it is dropped, with a line in the log; the question comes again
journal's disk full              the question comes again, at the latest every 30 s while it is open
the app raises Unavailable       no answer; the journalled question is put to the app again after a pause;
                                 where that does not help within a minute, it is dropped and comes again, at
                                 the latest every 30 s while it is open
the app raises anything else     a fixed error is sent; what it was stays in this holder's log
the app takes hours              heartbeats go on, from a thread of their own
question withdrawn, run over     the answer is dropped, with a line in the log
stop                             the wait or pause ends at once; a running app is left to its journal, and if
                                 it fails then, the question is taken up at the next start
===============================  =======================================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

# Nothing used here reports, installs or asks for updates; these make sure of it.
os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
)
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import (
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from assay.client.link import FleetLink, Rejected
from assay.client.session import FIRST_PAUSE_S, LONGEST_PAUSE_S, Replaced, Session, Stopped
from assay.privacy.errors import AssayError, BadData, Refused, Unavailable
from assay.privacy.files import PRIVATE_FILE, make_private_dir, write_durably

__all__ = ["App", "FleetLink", "serve"]

# A flwr.clientapp.ClientApp is one.
App: TypeAlias = Callable[[Message, Context], Message]
MAX_OBJECTS = 64
UPLOAD_S = 60.0


class _Garbled(Exception):
    """A question that is not what the protocol says."""


def serve(
    app: App, *, link: FleetLink, journal_dir: Path, stop: threading.Event, log: Callable[[str], None]
) -> bool:
    """Answer the coordinator's questions with ``app`` until ``stop`` is set, then return within 2 s.

    An app that is running then is not waited for: it is left in a daemon thread, and the journal puts the
    question to the app again at the next start. The caller should end the process, and until then leave
    open what the app uses.

    Args:
        app: called with a message and a fresh context; must give the same answer when asked twice.
        link: the coordinator and this holder's certificate.
        journal_dir: directory of this holder for the question and answer in hand; one daemon at a time.
        stop: set by a signal handler.
        log: takes one line at a time; it never gets a value from records.

    Returns:
        Whether an app was left running.

    Raises:
        BadInput: the certificate files do not fit, or are expired.
        Tampered: the certificate is not of the authority.
        Refused: at the first contact, the coordinator does not know this holder or is not trusted, or
            another daemon has the journal.
    """
    link.check()
    make_private_dir(journal_dir)
    lock = _hold(journal_dir)
    left_running = False
    try:
        left_running = _Daemon(app, link, journal_dir, stop, log).run()
        return left_running
    finally:
        if not left_running:
            os.close(lock)


def _hold(journal_dir: Path) -> int:
    lock = os.open(journal_dir / "lock", os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Refused(f"another daemon uses {journal_dir}; stop it first", code="running") from None
    return lock


class _Daemon:
    def __init__(
        self, app: App, link: FleetLink, journal_dir: Path, stop: threading.Event, log: Callable[[str], None]
    ) -> None:
        self._app, self._stop, self._log = app, stop, log
        self._question, self._reply = journal_dir / "question", journal_dir / "reply"
        self._session = Session(link, stop, log)
        self._app_runs = False
        self._failure: BaseException | None = None

    def run(self) -> bool:
        """Work until stopped; return whether the app was left running."""
        threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._work, "answers"), (self._session.beat, "heartbeat"))
        ]
        for thread in threads:
            thread.start()
        while threads[0].is_alive() and not self._stop.wait(0.1):
            pass
        self._stop.set()
        deadline = time.monotonic() + 1.0
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
            self._session.abort()
            threads[0].join(0.05)
            if self._app_runs:
                break
        self._session.leave()
        if self._failure is not None:
            raise self._failure
        left_running = threads[0].is_alive()
        self._log("stopped" + "; the question in hand is taken up at the next start" * left_running)
        return left_running

    def _work(self) -> None:
        try:
            self._session.join()
            pause = FIRST_PAUSE_S
            while True:
                try:
                    self._recover()
                    self._next()
                    pause = FIRST_PAUSE_S
                except Replaced:
                    continue
                except (_Garbled, Rejected) as error:
                    self._clear()
                    pause = self._session.pause(f"question dropped: {error}", pause)
                except Unavailable as error:
                    if pause >= LONGEST_PAUSE_S:
                        with contextlib.suppress(OSError):
                            self._clear()  # it may be withdrawn, and others must not wait for it for ever
                    pause = self._session.pause(f"question not answered: {error}", pause)
                except OSError as error:
                    # The journal's disk is full or gone: nothing is answered that could not be repeated.
                    pause = self._session.pause(f"journal: {error.strerror}", pause)
        except Stopped:
            return
        except BaseException as error:  # noqa: BLE001 - raised again by run()
            self._failure = error

    def _next(self) -> None:
        """Wait for a question and answer it."""
        answer = self._session.call(
            "pull-messages", lambda node: PullMessagesRequest(node=node), PullMessagesResponse
        )
        if not answer.messages_list:
            # A stock SuperLink answers at once when there is nothing; ours holds the request.
            if self._stop.wait(0.05):
                raise Stopped
            return
        tree = answer.message_object_trees[0] if answer.message_object_trees else ObjectTree()
        question = self._whole(answer.messages_list[0], tree)
        write_durably(self._question, message_to_proto(question).SerializeToString(), mode=PRIVATE_FILE)
        self._answer(question)

    def _recover(self) -> None:
        """Finish what an earlier process began."""
        if self._reply.exists():
            reply, _ = _journalled(self._reply)
            self._log("sending an answer that was ready before")
            self._send(reply)
        elif self._question.exists():
            _, question = _journalled(self._question)
            if question.metadata.dst_node_id != self._session.node:
                raise _Garbled("the coordinator has restarted and will ask again")
            self._log("taking up a question that was not answered before")
            self._answer(question)

    def _answer(self, question: Message) -> None:
        reply = self._run_app(question)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        proto = message_to_proto(reply)
        write_durably(self._reply, proto.SerializeToString(), mode=PRIVATE_FILE)
        self._send(proto)

    def _run_app(self, question: Message) -> Message:
        """Return the app's reply, or an error in its place.

        Raises:
            Unavailable: the app cannot answer now.
            Stopped: it failed after the stop, perhaps for want of what the stop has closed.
        """
        about = question.metadata
        context = Context(
            run_id=about.run_id, node_id=about.dst_node_id, node_config={}, state=RecordDict(), run_config={}
        )
        try:
            self._app_runs = True
            reply = self._app(question, context)
            if not isinstance(reply, Message) or reply.metadata.reply_to_message_id != about.message_id:
                raise TypeError("the application returned something else than a reply")
        except Unavailable:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - no app error may stop the daemon
            if self._stop.is_set():
                raise Stopped from None
            self._log(f"application failed: {_without_values(error)}")
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "failed"), reply_to=question)
        finally:
            self._app_runs = False
        return reply

    def _send(self, reply: Any) -> None:
        """Upload a reply; sending the same one twice is harmless."""
        if reply.metadata.src_node_id != self._session.node:
            raise _Garbled("the coordinator has restarted and will ask again")
        message = message_from_proto(reply)
        tree = get_object_tree(message)
        try:
            accepted = self._session.call(
                "push-messages",
                lambda node: PushMessagesRequest(
                    node=node, messages_list=[reply], message_object_trees=[tree]
                ),
                PushMessagesResponse,
            )
            if accepted.objects_to_push:
                self._push_objects(message, accepted)
        except Rejected as rejected:
            self._log(f"answer dropped: the run is over or the question withdrawn ({rejected})")
        self._clear()

    def _clear(self) -> None:
        # In this order: a reply without its question is complete, the reverse would be asked again.
        self._question.unlink(missing_ok=True)
        self._reply.unlink(missing_ok=True)

    # A stock SuperLink moves contents apart from messages, as objects named by their SHA-256.

    def _whole(self, proto: Any, tree: Any) -> Message:
        """Return the question with its content, checked against its id."""
        ids = [node.object_id for node in iterate_object_tree(tree)]
        if len(ids) > MAX_OBJECTS:
            raise _Garbled("too many objects")
        apart = len(ids) > 1 and not proto.content.items
        found = {each: self._pull_object(proto.metadata.run_id, each) for each in ids} if apart else None
        wanted = proto.metadata.message_id
        try:
            message = inflate_object_from_contents(wanted, found) if found else _inline(proto)
            genuine = message.object_id == wanted and message.metadata.dst_node_id == self._session.node
        except Exception:  # noqa: BLE001 - whatever flwr makes of bytes that a coordinator made up
            genuine = False
        if not genuine:
            raise _Garbled("it is not what its id says")
        message.metadata.__dict__["_message_id"] = wanted
        return message

    def _pull_object(self, run_id: int, object_id: str) -> bytes:
        """Fetch one object; the message may be there before its objects are."""
        end = time.monotonic() + UPLOAD_S
        while True:
            answer = self._session.call(
                "pull-object",
                lambda node: PullObjectRequest(node=node, run_id=run_id, object_id=object_id),
                PullObjectResponse,
            )
            if answer.object_available or not answer.object_found or time.monotonic() > end:
                return bytes(answer.object_content)
            if self._stop.wait(0.1):
                raise Stopped

    def _push_objects(self, message: Message, accepted: Any) -> None:
        contents = get_all_nested_objects(message)
        for object_id in accepted.objects_to_push:
            request = PushObjectRequest(
                run_id=message.metadata.run_id,
                object_id=object_id,
                object_content=contents[object_id].deflate() if object_id in contents else b"",
                session_id=accepted.session_id,
            )
            self._session.call("push-object", functools.partial(_with_node, request), PushObjectResponse)


def _with_node(request: Any, node: Any) -> Any:
    request.node.CopyFrom(node)
    return request


def _inline(proto: Any) -> Message:
    """Read a question that carries its content: one value, checked before Flower makes objects of it."""
    records = proto.content.items
    if len(records) != 1 or len(records[0].config_record.items) != 1:
        raise _Garbled("more than one value")
    return message_from_proto(proto)


def _journalled(path: Path) -> tuple[ProtoMessage, Message]:
    """Read a message that an earlier process wrote down.

    Raises:
        _Garbled: the file holds something else, or nothing.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    try:
        proto = ProtoMessage.FromString(data)
        return proto, message_from_proto(proto)
    except Exception:  # noqa: BLE001 - whatever flwr makes of a damaged file; it must not stop every start
        raise _Garbled("the journal is not readable") from None


def _without_values(error: BaseException) -> str:
    """Say what failed and where; the text of a foreign error may quote a record."""
    if isinstance(error, AssayError):
        return error.without_cell() if isinstance(error, BadData) else str(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}{place}"
