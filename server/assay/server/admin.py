"""Administration of a serving coordinator, over a Unix socket that only its own user can use.

One request and one answer per connection, each one line of JSON::

    {"method": "status", "params": {...}}
    {"result": {...}}    or    {"error": {"class": "Refused", "message": "...", "code": "budget"}}

Nothing of this is reachable from the network. The socket is in the coordinator's directory (0700) with
mode 0600, and both ends ask the kernel who the other one is (Linux).
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from assay.privacy.errors import AssayError, BadData, BadInput, Refused, Tampered, Unavailable
from assay.privacy.files import PRIVATE_FILE, require_private
from assay.privacy.homes import already_in_use

__all__ = ["AdminClient", "AdminServer", "Handler"]

Handler = Callable[[dict[str, Any]], dict[str, Any]]

SOCKET = "admin.sock"
MAX_REQUEST_BYTES = 4 << 20  # a study of 512 KiB, every character of it escaped
MAX_ANSWER_BYTES = 16 << 20
EXCHANGE_S = 5.0
MAX_CONNECTIONS = 16
# sun_path of Linux holds 108 bytes with the closing zero (unix(7)).
_MAX_PATH_BYTES = 107

_log = logging.getLogger(__name__)


class AdminServer:
    """Answers requests in threads of its own, until it is closed.

    A handler takes the parameters of one method and returns the result, both JSON objects. Handlers
    run at the same time. An :class:`AssayError` of theirs is raised again at the caller; anything
    else is logged here and told as a failure without its text.
    """

    def __init__(self, directory: Path, handlers: Mapping[str, Handler]) -> None:
        """Listen in ``directory``; a socket left by a crash is replaced.

        Raises:
            Refused: another process answers there.
            BadInput: others can read the directory, or ``admin.sock`` in it is no socket.
        """
        require_private(directory)
        self._directory, self._handlers = directory, dict(handlers)
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        _clear(directory)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _reachable(directory) as address:
                self._listener.bind(address)
            (directory / SOCKET).chmod(PRIVATE_FILE)
            self._inode = (directory / SOCKET).stat().st_ino
            self._listener.listen(MAX_CONNECTIONS)
        except BaseException:
            self._listener.close()
            raise
        self._thread = threading.Thread(target=self._accept, name="admin", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, finish what is being answered, remove the socket; a second call does nothing.

        A handler that takes longer than five more seconds is not waited for.
        """
        if self._listener.fileno() == -1:
            return
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        deadline = time.monotonic() + EXCHANGE_S
        for _ in range(MAX_CONNECTIONS):
            self._places.acquire(timeout=max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(FileNotFoundError):
            if (self._directory / SOCKET).stat().st_ino == self._inode:
                (self._directory / SOCKET).unlink()

    def __enter__(self) -> AdminServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED):
                    time.sleep(0.1)
                    continue
                return  # closed
            if not self._places.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), name="admin", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            # A caller that is slow, silent or gone gets nothing more.
            with connection, contextlib.suppress(OSError):
                answer = self._answer(connection)
                connection.settimeout(EXCHANGE_S)
                connection.sendall(json.dumps(answer).encode("ascii") + b"\n")
        finally:
            self._places.release()

    def _answer(self, connection: socket.socket) -> dict[str, Any]:
        try:
            _require_same_user(connection)
            line = _read_line(connection, MAX_REQUEST_BYTES, time.monotonic() + EXCHANGE_S)
            method, params = _parse_request(line)
            if method not in self._handlers:
                raise BadInput("method", value=method, allowed=", ".join(sorted(self._handlers)))
            return {"result": self._handle(method, params)}
        except AssayError as error:
            return {"error": _describe(error)}

    def _handle(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        try:
            result = self._handlers[method](params)
            size = len(json.dumps(result, allow_nan=False))
        except AssayError:
            raise
        except Exception as error:
            _log.exception("administration: %s failed", method)
            raise AssayError(f"{method} failed at the coordinator; its log says why") from error
        if size + 64 > MAX_ANSWER_BYTES:
            raise AssayError(f"the answer to {method} is larger than {MAX_ANSWER_BYTES} bytes")
        return result


class AdminClient:
    """The other end, for commands."""

    @staticmethod
    def call(
        directory: Path, method: str, params: Mapping[str, Any] | None = None, timeout_s: float = 30.0
    ) -> dict[str, Any]:
        """Ask the process that serves ``directory``.

        Args:
            directory: a coordinator's directory.
            method: name of a handler.
            params: a JSON object.
            timeout_s: how long the whole exchange may take.

        Raises:
            Unavailable: nobody serves the directory, or no answer came in time.
            Refused: the socket belongs to another user.
            AssayError: what the handler raised, as the same class.
        """
        deadline = time.monotonic() + timeout_s
        request = json.dumps({"method": method, "params": dict(params or {})}, allow_nan=False)
        if len(request) >= MAX_REQUEST_BYTES:
            raise BadInput("request size", value=len(request), allowed=f"less than {MAX_REQUEST_BYTES} bytes")
        with _connected(directory, timeout_s) as connection:
            _require_same_user(connection)
            try:
                connection.sendall(request.encode("ascii") + b"\n")
                line = _read_line(connection, MAX_ANSWER_BYTES, deadline)
            except TimeoutError:
                raise Unavailable(f"{directory}: no answer within {timeout_s:g} s. Try again") from None
            except ConnectionError:
                raise Unavailable(
                    f"{directory}: the coordinator ended before it answered. Try again"
                ) from None
        answer = _parse(line, "answer")
        if "error" in answer:
            raise _rebuild(answer["error"])
        if not isinstance(answer.get("result"), dict):
            raise AssayError(f"{directory}: the answer to {method} is no result")
        return dict(answer["result"])


@contextmanager
def _connected(directory: Path, timeout_s: float) -> Iterator[socket.socket]:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with connection:
        connection.settimeout(timeout_s)
        try:
            with _reachable(directory) as address:
                connection.connect(address)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError, BlockingIOError, TimeoutError):
            raise Unavailable(f"{directory} is not serving; run: assay server serve {directory}") from None
        except PermissionError:
            raise _other_user(f"{directory}") from None
        yield connection


@contextmanager
def _reachable(directory: Path) -> Iterator[str]:
    """Yield a path of the socket that fits into a socket address, however deep the directory lies."""
    plain = str(directory / SOCKET)
    if len(os.fsencode(plain)) <= _MAX_PATH_BYTES:
        yield plain
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


def _clear(directory: Path) -> None:
    """Remove a socket that nobody listens on."""
    path = directory / SOCKET
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise BadInput("file", value=str(path), allowed="a socket", remedy="Move the file away")
    try:
        with _connected(directory, EXCHANGE_S):
            raise already_in_use(directory)
    except Unavailable:
        path.unlink()


def _other_user(what: str) -> Refused:
    return Refused(
        f"{what}: the other end of the socket belongs to another user; allowed: the same user. "
        "Run the command as the user that serves",
        code="user",
    )


def _require_same_user(connection: socket.socket) -> None:
    size = struct.calcsize("3i")  # pid, uid, gid: SO_PEERCRED, unix(7)
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if uid != os.geteuid():
        raise _other_user("administration")


def _read_line(connection: socket.socket, limit: int, deadline: float) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        left = deadline - time.monotonic()
        if not left > 0:
            raise TimeoutError
        connection.settimeout(left)
        chunk = connection.recv(1 << 16)
        if not chunk:
            raise ConnectionResetError
        data += chunk
        if len(data) > limit:
            raise BadInput("size", where="administration", allowed=f"at most {limit} bytes in one line")
    return bytes(data)


def _parse(line: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadInput(what, where="administration", allowed="one JSON object in one line")
    return value


def _parse_request(line: bytes) -> tuple[str, dict[str, Any]]:
    request = _parse(line, "request")
    method, params = request.get("method"), request.get("params")
    if set(request) != {"method", "params"} or not isinstance(method, str) or not isinstance(params, dict):
        raise BadInput("request", where="administration", allowed='{"method": text, "params": object}')
    return method, params


def _describe(error: AssayError) -> dict[str, str]:
    for kind in (Refused, BadInput, Tampered, Unavailable, AssayError):
        if isinstance(error, kind):
            break
    message = error.without_cell() if isinstance(error, BadData) else str(error)
    return {"class": kind.__name__, "message": message, "code": getattr(error, "code", "")}


def _rebuild(described: Any) -> AssayError:
    table = described if isinstance(described, dict) else {}
    name, message, code = (str(table.get(key, "")) for key in ("class", "message", "code"))
    if name == "Refused":
        return Refused(message, code=code)
    if name == "BadInput":
        error = BadInput("request", allowed="what its message says")
        error.args = (message,)  # only the line came over, not the fields
        return error
    return {"Tampered": Tampered, "Unavailable": Unavailable}.get(name, AssayError)(message)
