"""The administration socket: one request, one answer, for nobody but the user who serves."""

import contextlib
import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from federation_support import STUDY
from typer.testing import CliRunner

from assay.privacy.errors import AssayError, BadData, BadInput, Refused, Tampered, Unavailable
from assay.server import admin
from assay.server.admin import AdminClient, AdminServer
from assay.server.cli import app as server_app
from assay.server.cli import follow, progress_line

call = AdminClient.call


def fail(error):
    def handler(params):
        raise error

    return handler


@pytest.fixture
def home(tmp_path):
    directory = tmp_path / "north"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def serving(home):
    with AdminServer(home, {"echo": lambda params: {"got": params}}) as server:
        yield server


def raw(home, data, timeout=5.0):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(home / "admin.sock"))
        connection.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(65536):
                answer += chunk
    return answer


def test_a_request_is_answered(home, serving):
    assert call(home, "echo", {"study": "ü\n\0"}) == {"got": {"study": "ü\n\0"}}
    assert call(home, "echo") == {"got": {}}


def test_a_directory_that_nobody_serves_says_what_to_run(home):
    for directory in (home, home / "missing"):
        with pytest.raises(Unavailable, match=f"assay server serve {directory}"):
            call(directory, "echo")


def test_a_closed_server_leaves_no_socket(home):
    server = AdminServer(home, {})
    server.close()
    server.close()
    assert os.listdir(home) == []
    with pytest.raises(Unavailable, match="not serving"):
        call(home, "echo")


@pytest.mark.parametrize(
    "error",
    [
        Refused("no budget; allowed: 1.0. Wait", code="budget"),
        BadInput("epsilon", value=-1, allowed="> 0", remedy="Change it", where="study.toml"),
        Tampered("roster line 3: the signature does not verify"),
        Unavailable("holders: 0 of 2 online"),
        AssayError("run 7: no way from done to running"),
    ],
)
def test_an_error_of_a_handler_is_raised_at_the_caller_as_it_was(home, error):
    with AdminServer(home, {"train": fail(error)}), pytest.raises(type(error)) as caught:
        call(home, "train")
    assert str(caught.value) == str(error)
    assert caught.value.exit_code == error.exit_code
    assert getattr(caught.value, "code", None) == getattr(error, "code", None)


def test_the_cell_of_a_record_does_not_travel(home):
    secret = BadData("row 3, column AGE", value="41337", allowed="a number")
    with AdminServer(home, {"check": fail(secret)}), pytest.raises(BadInput, match="row 3") as caught:
        call(home, "check")
    assert "41337" not in str(caught.value)


def test_a_defect_of_a_handler_tells_nothing_and_is_logged(home, caplog):
    handlers = {"train": fail(ZeroDivisionError("secret")), "nan": lambda params: {"loss": float("nan")}}
    with caplog.at_level(logging.ERROR), AdminServer(home, handlers):
        for method in handlers:
            with pytest.raises(AssayError, match="its log says why") as caught:
                call(home, method)
            assert caught.value.exit_code == 1
            assert "secret" not in str(caught.value)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        b'{"method": 1, "params": {}}\n',
        b'{"method": "echo", "params": []}\n',
        b'{"method": "echo", "params": {}, "more": 1}\n',
        b'{"method": "no", "params": {}}\n',
    ],
)
def test_what_is_no_request_is_refused_and_the_next_one_served(home, serving, data):
    assert json.loads(raw(home, data))["error"]["class"] == "BadInput"
    assert call(home, "echo") == {"got": {}}


def test_an_oversized_request_is_cut_off(home, serving, monkeypatch):
    monkeypatch.setattr(admin, "MAX_REQUEST_BYTES", 1000)
    with contextlib.suppress(BrokenPipeError):
        assert b'"got"' not in raw(home, b" " * 200_000)
    with pytest.raises(BadInput, match="request size"):
        call(home, "echo", {"text": "x" * 2000})
    assert call(home, "echo") == {"got": {}}


def test_an_oversized_answer_is_an_error(home, serving, monkeypatch):
    monkeypatch.setattr(admin, "MAX_ANSWER_BYTES", 1000)
    with pytest.raises(AssayError, match="larger than"):
        call(home, "echo", {"text": "x" * 2000})


def test_a_caller_that_says_nothing_is_let_go(home, serving, monkeypatch):
    monkeypatch.setattr(admin, "EXCHANGE_S", 0.2)
    start = time.monotonic()
    assert raw(home, b'{"method": "ec') == b""
    assert time.monotonic() - start < 3


def test_a_caller_that_drips_is_let_go_too(home, serving, monkeypatch):
    monkeypatch.setattr(admin, "EXCHANGE_S", 0.4)
    start = time.monotonic()
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(ConnectionError):
        connection.connect(str(home / "admin.sock"))
        while time.monotonic() - start < 5:
            connection.sendall(b" ")
            time.sleep(0.05)
    assert time.monotonic() - start < 3


def test_silent_callers_do_not_shut_out_the_operator_for_long(home, serving, monkeypatch):
    monkeypatch.setattr(admin, "EXCHANGE_S", 0.3)
    silent = [socket.socket(socket.AF_UNIX) for _ in range(admin.MAX_CONNECTIONS + 4)]
    try:
        for connection in silent:
            connection.connect(str(home / "admin.sock"))
        time.sleep(1.0)
        assert call(home, "echo") == {"got": {}}
    finally:
        for connection in silent:
            connection.close()


def test_a_slow_handler_ends_the_wait_and_not_the_server(home):
    free = threading.Event()
    handlers = {"slow": lambda params: {"freed": free.wait(10)}, "echo": lambda params: params}
    with AdminServer(home, handlers):
        with pytest.raises(Unavailable, match=r"within 0\.2 s"):
            call(home, "slow", timeout_s=0.2)
        assert call(home, "echo", {"a": 1}) == {"a": 1}
        free.set()


def test_closing_finishes_the_answer_that_is_being_made(home):
    begun, answers = threading.Event(), []

    def slow(params):
        begun.set()
        time.sleep(0.3)
        return {"finished": True}

    with AdminServer(home, {"slow": slow}):
        caller = threading.Thread(target=lambda: answers.append(call(home, "slow")))
        caller.start()
        begun.wait(5)
    caller.join()
    assert answers == [{"finished": True}]


def test_many_callers_are_served_at_once(home, serving):
    answers = []
    threads = [
        threading.Thread(target=lambda number=number: answers.append(call(home, "echo", {"number": number})))
        for number in range(admin.MAX_CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer["got"]["number"] for answer in answers) == list(range(admin.MAX_CONNECTIONS))


# The socket -----------------------------------------------------------------------------------------


def test_the_socket_is_private(home, serving):
    assert stat.S_IMODE((home / "admin.sock").stat().st_mode) == 0o600


def test_a_directory_that_others_can_enter_is_refused(home):
    home.chmod(0o755)
    with pytest.raises(BadInput, match="chmod 700"):
        AdminServer(home, {})


def test_a_second_server_is_refused_and_the_first_goes_on(home, serving):
    with pytest.raises(AssayError, match="already serving"):
        AdminServer(home, {})
    assert call(home, "echo") == {"got": {}}


def test_a_file_in_the_place_of_the_socket_is_not_deleted(home):
    (home / "admin.sock").write_text("mine")
    with pytest.raises(BadInput, match="a socket"):
        AdminServer(home, {})
    assert (home / "admin.sock").read_text() == "mine"


def test_the_socket_of_a_killed_server_is_replaced(home):
    code = (
        "import sys, time; from pathlib import Path; from assay.server.admin import AdminServer\n"
        "AdminServer(Path(sys.argv[1]), {}); print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"up\n"
        with pytest.raises(AssayError, match="already serving"):
            AdminServer(home, {})
        other.send_signal(signal.SIGKILL)
    assert (home / "admin.sock").exists()
    with pytest.raises(Unavailable, match="not serving"):
        call(home, "echo")
    with AdminServer(home, {"echo": lambda params: {"back": True}}):
        assert call(home, "echo") == {"back": True}


def test_a_directory_too_deep_for_a_socket_address_works(home):
    deep = home / ("x" * 90) / ("y" * 90)
    deep.mkdir(parents=True)
    deep.chmod(0o700)
    before = set(os.listdir("/proc/self/fd"))
    with AdminServer(deep, {"echo": lambda params: params}):
        assert call(deep, "echo", {"a": 1}) == {"a": 1}
        with pytest.raises(AssayError, match="already serving"):
            AdminServer(deep, {})
    assert not (deep / "admin.sock").exists()
    assert set(os.listdir("/proc/self/fd")) == before


OTHER_USER = """
import os, sys
from pathlib import Path
from assay.server.admin import AdminClient
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    AdminClient.call(Path(sys.argv[1]), "echo", timeout_s=5)
except Exception as error:
    print(type(error).__name__, error)
else:
    print("answered")
"""


def as_nobody(home: Path, before: str = "") -> str:
    command = [sys.executable, "-c", before + OTHER_USER.lstrip(), str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_kept_out_by_the_file_modes(home, serving):
    assert as_nobody(home).startswith("Refused")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_kept_out_by_the_kernels_word_even_where_modes_are_loose():
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        with AdminServer(home, {"echo": lambda params: {"got": params}}):
            home.chmod(0o755)
            (home / "admin.sock").chmod(0o666)
            assert as_nobody(home).startswith("Refused administration")
            # A caller that does not look at the other end is refused by the server too.
            blind = "import assay.server.admin as a; a._require_same_user = id; "
            assert as_nobody(home, blind).startswith(("Refused administration", "Unavailable"))


# Following a run ------------------------------------------------------------------------------------


def test_what_a_finished_run_says_is_about_the_run_and_not_about_one_holder(home):
    step = {"round": 4, "rounds": 4, "holders": ["a", "b", "c"], "epsilon": 1.0, "detail": ""}
    loud = step | {"seq": 2, "kind": "ledger", "holders": ["c"], "detail": "LEDGER ROLLED BACK OR CLONED"}
    events = [step | {"seq": 1, "kind": "round"}, loud]
    answer = {"state": "done", "message": "models/x.bundle", "events": events}
    told = []
    with AdminServer(home, {"events": lambda params: answer}):
        result = follow(
            home, "00" * 16, timeout=5.0, on_event=lambda event: told.append(progress_line(event))
        )
    assert (result["holders"], result["epsilon"], result["rounds"]) == (["a", "b", "c"], 1.0, 4)
    assert told[1].startswith("ledger    c (LEDGER ROLLED BACK")
    assert result["held"] == []


def test_every_kind_of_step_is_a_line():
    step = {"round": 5, "rounds": 4, "holders": ["a", "b"], "epsilon": 0.5, "detail": ""}
    lines = [
        progress_line({**step, "kind": kind, "round": number})
        for kind, number in (("counts", 0), ("round", 4), ("calibration", 5), ("audit", 6))
    ]
    assert [line.split()[:3] for line in lines] == [
        ["round", "counts", "2"],
        ["round", "4/4", "2"],
        ["round", "calibration", "2"],
        ["round", "audit", "2"],
    ]
    assert all(line.endswith("2 holders  epsilon spent 0.5000") for line in lines)


HELD = ["fairness: SEX f: n too small"]


@pytest.mark.parametrize("held", [[], HELD])
def test_train_wait_says_with_its_exit_code_that_a_gate_holds_the_model(home, tmp_path, held):
    study = tmp_path / "study.toml"
    study.write_text(STUDY, encoding="utf-8")
    step = {"seq": 1, "kind": "audit", "round": 42, "rounds": 40, "holders": ["a"], "epsilon": 1.0}
    answer = {"state": "done", "message": "models/x.bundle", "held": held, "events": [{**step, "detail": ""}]}
    with AdminServer(home, {"train": lambda params: {"run": "00" * 16}, "events": lambda params: answer}):
        done = CliRunner().invoke(server_app, ["train", str(home), str(study), "--wait", "--json"])
    assert done.exit_code == (3 if held else 0)
    result = json.loads(done.stdout)
    assert (result["state"], result["held"], result["rounds"]) == ("done", held, 40)
    last = done.stderr.splitlines()[-1]
    if held:
        assert last.startswith(
            "assay: the model is held back and must not be used: fairness: SEX f: n too small."
        )
        assert str(home / "models/x.bundle") in last
    else:
        assert last.startswith("round audit")
