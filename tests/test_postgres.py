"""PostgreSQL against a real server: read-only, bounded in time, and no password in any message."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from assay.client.sources import DataSource, open_source
from assay.privacy.errors import AssayError, BadData, BadInput, Unavailable

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
pytestmark = pytest.mark.slow

PASSWORD = "hunter2-hunter2"
TABLES = """
create role reader login password 'hunter2-hunter2';
create schema bank;
create table bank.accounts (
    id uuid, amount numeric, count integer, kind text, opened date, good boolean, tags text[], blob bytea
);
insert into bank.accounts
    select md5(i::text)::uuid, i + 0.5, i, case when i % 2 = 0 then 'é' end, '2024-02-29', i % 3 = 0, '{x}',
        'x'
    from generate_series(1, 25000) i;
create sequence bank.numbers;
create table bank.odd (amount numeric);
insert into bank.odd values (1), ('NaN');
grant all on schema bank to reader;
grant all on all sequences in schema bank to reader;
grant all on all tables in schema bank to reader;
"""


@dataclass(frozen=True)
class Server:
    host: str
    port: int

    def url(self, password: str = PASSWORD, *, host: str | None = None, port: int | None = None) -> str:
        return f"postgresql://reader:{password}@{host or '127.0.0.1'}:{port or self.port}/postgres"


def binary(name: str) -> str:
    found = shutil.which(name) or next(
        map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None
    )
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def unprivileged() -> tuple[list[str], int, int]:
    """Return the command prefix, user and group under which the server may run: it refuses to be root."""
    if os.geteuid() != 0:
        return [], os.geteuid(), os.getegid()
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        setpriv = shutil.which("setpriv")
        if setpriv:
            ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            return [setpriv, *ids], user.pw_uid, user.pw_gid
    return pytest.skip("root cannot start PostgreSQL and there is no other user to start it as")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    initdb, pg_ctl = binary("initdb"), binary("pg_ctl")
    prefix, uid, gid = unprivileged()
    # Not below pytest's own directory, which another user may not enter; short, for the socket's name.
    home = Path(tempfile.mkdtemp(prefix="assay-pg-"))
    os.chown(home, uid, gid)
    data, port = home / "data", free_port()
    options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off"

    def run(*command: str) -> None:
        subprocess.run(
            [*prefix, *command],
            check=True,
            cwd=home,
            capture_output=True,
            timeout=120,
            env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        )

    try:
        run(initdb, "-D", str(data), "-U", "owner", "--auth-local=trust", "--auth-host=scram-sha-256")
        run(pg_ctl, "-D", str(data), "-o", options, "-l", str(home / "log"), "-w", "start")
        try:
            with psycopg.connect(host=str(home), port=port, user="owner", dbname="postgres") as connection:
                connection.execute(TABLES.encode())
            yield Server(host=str(home), port=port)
        finally:
            run(pg_ctl, "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def source(server: Server, directory: Path, **settings: object) -> DataSource:
    chosen = {"url": server.url(), **settings}
    return DataSource(directory=directory, kind="postgres", **chosen)  # type: ignore[arg-type]


def refuse(settings: DataSource, wanted: dict[str, str], kind: type[AssayError]) -> str:
    """Return the refusal, having checked that neither it nor its traceback holds the password."""
    with pytest.raises(kind) as caught, open_source(settings) as opened:
        opened.read(wanted)
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(settings)
    assert PASSWORD not in told
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_table_is_read_with_its_types(server: Server, tmp_path: Path) -> None:
    wanted = {"amount": "number", "count": "integer", "kind": "text", "good": "label", "id": "text"}
    with open_source(source(server, tmp_path, table="bank.accounts")) as opened:
        assert opened.columns[:3] == ("id", "amount", "count")
        assert PASSWORD not in opened.where
        found = opened.read(wanted)
    rows = np.arange(1, 25_001)
    order = np.argsort(found["count"])
    np.testing.assert_array_equal(found["amount"][order], rows + 0.5)
    np.testing.assert_array_equal(found["good"][order], rows % 3 == 0)
    assert found["kind"][order][:2].tolist() == [None, "é"]
    assert len(set(found["id"])) == 25_000


def test_a_query_from_an_environment_variable_is_read(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSAY_PG_URL", server.url())
    query = (
        "with a as (select count * 2 as double, '%' as sign from bank.accounts) "
        "select * from a where double > 49998;"
    )
    settings = source(server, tmp_path, url=None, url_env="ASSAY_PG_URL", query=query)
    with open_source(settings) as opened:
        assert opened.read({"double": "integer", "sign": "text"})["double"].tolist() == [50_000.0]


@pytest.mark.parametrize("hostile", ["'\"X1\"', 'NaN', 0.5", "'null', '1.50', null", "'true', 'none', 1e300"])
def test_one_record_changes_no_other(hostile: str, server: Server, tmp_path: Path) -> None:
    with psycopg.connect(server.url()) as connection:
        connection.execute("drop table if exists bank.mixed")
        # A document column gives Python values of several types, cell by cell.
        connection.execute("create table bank.mixed (id json, house text, amount numeric, good boolean)")
        connection.execute(
            "insert into bank.mixed "
            "select (case when i % 2 = 0 then '5' else '5.0' end)::json, '1.50', i, null "
            "from generate_series(1, 15000) i"
        )
    wanted = {"id": "text", "house": "text", "amount": "number", "good": "number"}

    def others() -> dict[str, list[object]]:
        with open_source(source(server, tmp_path, table="bank.mixed")) as opened:
            return {name: cells[:15_000].tolist() for name, cells in opened.read(wanted).items()}

    without = others()
    assert set(without["id"]) == {"5"}
    with psycopg.connect(server.url()) as connection:
        connection.execute(f"insert into bank.mixed values ({hostile}, true)".encode())
    assert repr(others()) == repr(without)  # NaN equals itself as text


@pytest.mark.parametrize(
    "query",
    [
        "with gone as (delete from bank.accounts returning count) select count from gone",
        "select count from bank.accounts for update",
        "select nextval('bank.numbers') as count",
    ],
)
def test_a_query_cannot_write(query: str, server: Server, tmp_path: Path) -> None:
    refuse(source(server, tmp_path, query=query), {"count": "integer"}, BadData)
    with open_source(source(server, tmp_path, query="select count from bank.accounts")) as opened:
        assert len(opened.read({"count": "integer"})["count"]) == 25_000


def test_a_function_that_writes_is_refused_by_the_server(server: Server, tmp_path: Path) -> None:
    with psycopg.connect(server.url()) as connection:
        connection.execute(
            "create or replace function bank.purge() returns integer language sql as "
            "'delete from bank.odd; select 1'"
        )
    refuse(source(server, tmp_path, query="select bank.purge() as count"), {"count": "integer"}, BadData)


def test_two_statements_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="single SELECT"):
        DataSource(
            directory=tmp_path, kind="postgres", url="postgresql://h/d", query="select 1; drop table x"
        )


def test_a_slow_query_ends_at_its_time_out(server: Server, tmp_path: Path) -> None:
    settings = source(server, tmp_path, query="select 1 as count, pg_sleep(60)", query_timeout_s=0.5)
    assert "within 0.5 s" in refuse(settings, {"count": "integer"}, Unavailable)


@pytest.mark.parametrize(
    ("table", "column", "words"),
    [
        ("bank.acounts", "count", "data.table"),
        ("bank.accounts", "cuont", "'count'"),
        ("bank.accounts", "tags", "column 'tags'"),
        ("bank.accounts", "blob", "column 'blob'"),
        ("bank.accounts", "opened", "column 'opened'"),
        ("bank.odd", "amount", "column 'amount'"),
        ('bank.odd"; drop table bank.odd; --', "amount", "data.table"),
    ],
)
def test_what_cannot_be_read_is_named(
    table: str, column: str, words: str, server: Server, tmp_path: Path
) -> None:
    assert words in refuse(source(server, tmp_path, table=table), {column: "number"}, BadData)


def test_duplicate_columns_are_refused(server: Server, tmp_path: Path) -> None:
    query = "select count, amount as count from bank.accounts"
    assert "each column" in refuse(source(server, tmp_path, query=query), {"count": "number"}, BadData)


def test_a_cell_in_a_message_of_the_server_is_shown_only_as_value(server: Server, tmp_path: Path) -> None:
    settings = source(
        server, tmp_path, query="select ('secret' || kind)::integer as count from bank.accounts"
    )
    with pytest.raises(BadData) as caught, open_source(settings) as opened:
        opened.read({"count": "integer"})
    assert "secret" in str(caught.value)
    assert "secret" not in caught.value.without_cell()


def test_text_that_is_not_utf8_is_refused(server: Server, tmp_path: Path) -> None:
    with psycopg.connect(server.url(), client_encoding="sql_ascii") as connection:
        connection.execute(b"create table bank.latin as select '\xe9'::text as kind")
    refuse(source(server, tmp_path, table="bank.latin"), {"kind": "text"}, BadData)


def test_a_wrong_password_is_not_repeated(server: Server, tmp_path: Path) -> None:
    settings = source(server, tmp_path, url=server.url("wrong-pass-word"), table="bank.accounts")
    message = refuse(settings, {"count": "integer"}, Unavailable)
    assert "authentication failed" in message
    assert "wrong-pass-word" not in message


def test_a_server_that_is_not_there_is_named_without_the_password(server: Server, tmp_path: Path) -> None:
    settings = source(server, tmp_path, url=server.url(port=free_port()), table="bank.accounts")
    assert "postgresql://reader@127.0.0.1/postgres" in refuse(settings, {"count": "integer"}, Unavailable)


@pytest.mark.parametrize(
    "password", ["p@hunter2", "p/hunter2", "p?hunter2", "p%hunter2", "p@hunter2:5/x", "1/2@hunter2"]
)
def test_a_password_with_special_characters_does_not_leak_into_a_message(
    password: str, server: Server, tmp_path: Path
) -> None:
    settings = source(server, tmp_path, url=server.url(password), table="bank.accounts")
    with pytest.raises(AssayError) as caught, open_source(settings):
        pass
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_without_psycopg_the_message_says_what_to_install(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    message = refuse(source(server, tmp_path, table="bank.accounts"), {"count": "integer"}, BadInput)
    assert "pip install 'assay[postgres]'" in message


def test_no_connection_is_left_open(server: Server, tmp_path: Path) -> None:
    for table in ("bank.accounts", "bank.none"):
        try:
            with open_source(source(server, tmp_path, table=table)) as opened:
                opened.read({"count": "integer"})
        except BadData:
            pass
    with psycopg.connect(host=server.host, port=server.port, user="owner", dbname="postgres") as connection:
        query = "select count(*) from pg_stat_activity where application_name = 'assay' and state <> 'idle'"
        assert connection.execute(query).fetchone() == (0,)
