"""Connections of our own, to real servers that let us in, and to all that do not."""

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import servers
from harness import IS_ROOT, NOBODY, REPOSITORY, free_port, ordinary_python, wait_until
from servers import run

from e2e_runner.model import ServerAddress
from e2e_runner.postgres.connection import (
    CONNECT_TIMEOUT,
    ServerFacts,
    Unreachable,
    connect,
    connected,
    describe,
)

HBA = """\
hostssl all tls_only all trust
host all tls_only all reject
host all with_password all scram-sha-256
"""
ROLES = (
    "CREATE ROLE plain LOGIN",
    "CREATE ROLE creator LOGIN CREATEDB CREATEROLE",
    "CREATE ROLE limited LOGIN CONNECTION LIMIT 2",
    "CREATE ROLE no_login",
    "CREATE ROLE tls_only LOGIN",
    "CREATE ROLE with_password LOGIN PASSWORD 'right'",
)
MAX_CONNECTIONS = 12
RIGHT, WRONG = "right", "guessed"
RESERVED = 3  # for superusers, by default


@pytest.fixture(scope="module", params=servers.VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    # The workers of autovacuum count as sessions.
    settings = {"max_connections": str(MAX_CONNECTIONS), "autovacuum": "off"}
    with servers.running_server(
        servers.binaries(request.param), hba=HBA, settings=settings
    ) as running:
        for statement in ROLES:
            running.sql(statement)
        yield running


one_version = servers.on_one_version("server")


async def facts(address: ServerAddress) -> ServerFacts:
    async with connected(address) as connection:
        return await describe(connection)


def refusal(address: ServerAddress, *, patience: float = CONNECT_TIMEOUT) -> str:
    """Give the words for a server that does not let us in, having checked their form."""
    with pytest.raises(Unreachable) as caught:
        run(connect(address, patience=patience))
    said = str(caught.value)
    assert said.startswith(f"{address}, database {address.database}: ")
    assert "\n" not in said
    assert "Traceback" not in said
    return said.removeprefix(f"{address}, database {address.database}: ")


def sessions(server: servers.Server) -> int:
    """Count the sessions of clients, but for the one that asks."""
    (count,) = server.sql(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    return int(count)


def wait_until_alone(server: servers.Server) -> None:
    wait_until(lambda: sessions(server) == 0, "the end of all sessions")


# --- who we are ----------------------------------------------------------------------------------


def test_a_superuser_is_told_what_it_may(server: servers.Server) -> None:
    wait_until_alone(server)
    version = server.sql("SHOW server_version")[0].split()[0]
    assert run(facts(server.address())) == ServerFacts(
        version=version,
        version_number=int(server.sql("SHOW server_version_num")[0]),
        user="postgres",
        superuser=True,
        may_create_roles=True,
        may_create_databases=True,
        read_only=False,
        pooled=False,
        stores_scram=True,
        free_connections=MAX_CONNECTIONS - 1,
    )


@pytest.mark.parametrize(
    ("user", "may_create", "free"),
    [
        ("plain", False, MAX_CONNECTIONS - RESERVED - 1),
        ("creator", True, MAX_CONNECTIONS - RESERVED - 1),
        ("limited", False, 1),
    ],
)
def test_an_ordinary_user_is_told_what_it_may(
    server: servers.Server, user: str, *, may_create: bool, free: int
) -> None:
    wait_until_alone(server)
    found = run(facts(server.address(user=user)))
    assert (found.user, found.superuser, found.pooled) == (user, False, False)
    assert (found.may_create_roles, found.may_create_databases) == (may_create, may_create)
    assert found.free_connections == free


def test_connections_of_others_are_counted_though_an_ordinary_user_may_not_see_them(
    server: servers.Server,
) -> None:
    async def crowded() -> int:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(connected(server.address()))
            return (await facts(server.address(user="plain"))).free_connections

    wait_until_alone(server)
    assert run(crowded()) == MAX_CONNECTIONS - RESERVED - 4 - 1


def test_a_server_that_only_reads_is_told_apart(server: servers.Server) -> None:
    server.sql("ALTER ROLE plain SET default_transaction_read_only = on")
    try:
        assert run(facts(server.address(user="plain"))).read_only
    finally:
        server.sql("ALTER ROLE plain RESET default_transaction_read_only")


@one_version
def test_a_connection_sets_what_it_likes_and_is_gone_after_the_block(
    server: servers.Server,
) -> None:
    async def work() -> Any:
        async with connected(server.address(), database="template1") as connection:
            await connection.execute("SET statement_timeout = '3s'")
            return await connection.fetchrow(
                "SELECT current_database()::text, current_setting('statement_timeout')"
            )

    assert tuple(run(work())) == ("template1", "3s")
    wait_until_alone(server)


@one_version
def test_a_connection_through_a_unix_socket(server: servers.Server) -> None:
    address = dataclasses.replace(server.address(), host=str(server.sockets))
    assert run(facts(address)).user == "postgres"


def test_a_password_opens_and_is_never_shown(server: servers.Server) -> None:
    address = dataclasses.replace(server.address(user="with_password"), password=RIGHT)
    assert run(facts(address)).user == "with_password"
    wrong = dataclasses.replace(address, password=WRONG)
    assert WRONG not in refusal(wrong)


# --- the environment of the caller ---------------------------------------------------------------

# What leads elsewhere, and what no server could be reached with.
POISON = {
    "PGHOST": "db.invalid",
    "PGPORT": "1",
    "PGUSER": "nobody",
    "PGDATABASE": "production",
    "PGPASSWORD": "of somebody else",
    "PGPASSFILE": "/no/such/file",
    "PGSERVICE": "production",
    "PGSERVICEFILE": "/no/such/file",
    "PGSSLMODE": "verify-full",
    "PGSSLNEGOTIATION": "direct",
    "PGSSLMINPROTOCOLVERSION": "nonsense",
    "PGSSLMAXPROTOCOLVERSION": "nonsense",
    "PGTARGETSESSIONATTRS": "standby",
    "PGKRBSRVNAME": "nonsense",
    "PGGSSLIB": "nonsense",
    "PGOPTIONS": "-c nonsense=on",
}
ASK = """
import asyncio, json, sys
from e2e_runner.model import ServerAddress
from e2e_runner.postgres.connection import Unreachable, connected

async def ask():
    try:
        async with connected(ServerAddress(**json.loads(sys.argv[1]))) as connection:
            return await connection.fetchval("SELECT current_user::text")
    except Unreachable as error:
        return str(error)

print(asyncio.run(ask()))
"""


def asked(
    address: ServerAddress,
    environment: dict[str, str],
    *,
    python: Path | str = sys.executable,
    **more: Any,
) -> str:
    """Give the user as whom a process with that environment gets in, or why it does not.

    `more` is for the process.
    """
    # In the development mode asyncio tells on stderr what was slow, as everything is on a busy machine.
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"}
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [python, "-W", "error", "-c", ASK, json.dumps(dataclasses.asdict(address))],
        env={**ours, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        **more,
    )
    assert done.stderr == ""
    return done.stdout.strip()


def asked_by_a_stranger(address: ServerAddress, home: Path) -> str:
    """Ask as a user who may not look into the home folder, as under a changed uid in a container."""
    home.mkdir(exist_ok=True)
    home.chmod(0)
    if not IS_ROOT:
        return asked(address, {"HOME": str(home)})
    python = ordinary_python()
    if python is None:
        pytest.skip("no interpreter here can be run by an ordinary user")
    paths = [str(REPOSITORY), str(Path(asyncpg.__file__).parent.parent)]
    environment = {"HOME": str(home), "PYTHONPATH": os.pathsep.join(paths)}
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    return asked(address, environment, python=python, cwd="/", **who)


@one_version
def test_an_address_decides_alone_whatever_the_environment_says(
    server: servers.Server, tmp_path: Path
) -> None:
    (tmp_path / ".pgpass").mkdir()  # of which the driver would warn
    poison = {**POISON, "HOME": str(tmp_path)}
    tcp = server.address(user="with_password")
    for address, said in (
        (dataclasses.replace(server.address(), host=str(server.sockets)), "postgres"),
        (server.address(user="plain"), "plain"),
        (dataclasses.replace(tcp, password=RIGHT), "with_password"),
        (
            dataclasses.replace(
                server.address(), host=str(server.sockets), options={"sslmode": "require"}
            ),
            "postgres",
        ),
    ):
        assert asked(address, poison) == said


def test_no_password_of_the_environment_is_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        received: list[bytes] = []

        def serve() -> None:
            client, _ = listener.accept()
            with client, client.makefile("rwb") as stream:
                stream.read(8)
                stream.write(b"N")  # no TLS
                stream.flush()
                stream.read(int.from_bytes(stream.read(4), "big") - 4)  # who wants in where
                stream.write(b"R\x00\x00\x00\x08\x00\x00\x00\x03")  # the password, in clear
                stream.flush()
                stream.read(1)
                received.append(stream.read(int.from_bytes(stream.read(4), "big") - 4))

        thread = threading.Thread(target=serve)
        thread.start()
        asked(some_address("127.0.0.1", listener.getsockname()[1]), {"PGPASSWORD": WRONG})
        thread.join(10)
    assert received == [b"\0"]


@one_version
@pytest.mark.parametrize(
    ("lines", "mode", "is_let_in"),
    [
        (["# a comment", "*:*:postgres:with_password:right"], 0o600, True),
        (["127.0.0.1:{port}:*:with_password:right"], 0o600, True),
        (["*:*:*:with_password:wrong", "*:*:*:*:right"], 0o600, False),
        (["*:1:*:*:wrong", "db:*:*:*:wrong", "nonsense", "*:*:*:*:r\\ight"], 0o600, True),
        (["*:*:*:*:right"], 0o644, False),
    ],
)
@pytest.mark.parametrize("is_named", [True, False])
def test_a_password_file_is_read(
    *,
    server: servers.Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: list[str],
    mode: int,
    is_let_in: bool,
    is_named: bool,
) -> None:
    file = tmp_path / (".pgpass" if not is_named else "passwords")
    file.write_text("\n".join(lines).format(port=server.port))
    file.chmod(mode)
    monkeypatch.setenv("HOME", str(tmp_path))
    options = {"passfile": str(file)} if is_named else {}
    address = dataclasses.replace(server.address(user="with_password"), options=options)
    if is_let_in:
        assert run(facts(address)).user == "with_password"
    else:
        assert "SQLSTATE 28P01" in refusal(address)


@one_version
@pytest.mark.parametrize("sslmode", ["", "disable", "allow", "prefer"])
def test_a_home_that_may_not_be_read_is_none(
    server: servers.Server, tmp_path: Path, sslmode: str
) -> None:
    options = {"sslmode": sslmode} if sslmode else {}
    tcp = dataclasses.replace(server.address(user="with_password"), options=options)
    home = tmp_path / "home"
    right = dataclasses.replace(tcp, password=RIGHT)
    assert asked_by_a_stranger(right, home) == "with_password"
    assert "SQLSTATE 28P01" in asked_by_a_stranger(dataclasses.replace(tcp, password=WRONG), home)
    socket_ = dataclasses.replace(server.address(), host=str(server.sockets), options=options)
    assert asked_by_a_stranger(socket_, home) == "postgres"


@one_version
def test_what_would_be_in_a_home_that_may_not_be_read(
    server: servers.Server, tmp_path: Path
) -> None:
    home = tmp_path / "home"

    def said(**options: str) -> str:
        address = dataclasses.replace(server.address(), options=options)
        return asked_by_a_stranger(address, home).partition(": ")[2]

    assert "rejected SSL upgrade" in said(sslmode="require")
    assert said(sslmode="verify-full") == (
        f"sslmode=verify-full needs an sslrootcert, and the home folder may not be read: {home}"
    )
    assert said(sslmode="prefer", ssl_min_protocol_version="nonsense") == (
        "there is no TLS version nonsense"
    )
    assert "must be one of: disable" in said(sslmode="nonsense")
    assert said(sslcert=str(home / "mine.crt")) == (
        f"its sslcert names {home / 'mine.crt'}, which this user may not read"
    )


# --- who does not let us in ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"user": "with_password", "password": "wrong"},
            'password authentication failed for user "with_password" (SQLSTATE 28P01)',
        ),
        ({"user": "unknown"}, 'role "unknown" does not exist (SQLSTATE 28000)'),
        ({"user": "no_login"}, 'role "no_login" is not permitted to log in (SQLSTATE 28000)'),
        ({"database": 'n"ö'}, 'database "n"ö" does not exist (SQLSTATE 3D000)'),
        (
            {"database": "template0"},
            'database "template0" is not currently accepting connections (SQLSTATE 55000)',
        ),
        (
            {"user": "tls_only"},
            'pg_hba.conf rejects connection for host "127.0.0.1", user "tls_only", database "postgres", no encryption (SQLSTATE 28000)',
        ),
        (
            {"options": {"sslmode": "nonsense"}},
            "`sslmode` parameter must be one of: disable, allow, prefer, require, verify-ca, verify-full",
        ),
    ],
)
def test_a_server_that_refuses_is_quoted(
    server: servers.Server, change: dict[str, Any], said: str
) -> None:
    assert refusal(dataclasses.replace(server.address(), **change)) == said
    wait_until_alone(server)


def test_a_server_without_tls_that_must_have_it(server: servers.Server) -> None:
    address = dataclasses.replace(server.address(), options={"sslmode": "require"})
    assert "rejected SSL upgrade" in refusal(address)


def test_a_server_with_no_connection_left(server: servers.Server) -> None:
    async def fill() -> str:
        address = server.address(user="plain")
        async with contextlib.AsyncExitStack() as stack:
            with pytest.raises(Unreachable) as caught:  # noqa: PT012 - which one fails is the server's
                for _ in range(MAX_CONNECTIONS):
                    await stack.enter_async_context(connected(address))
            assert (await facts(server.address())).free_connections == RESERVED - 1
        return str(caught.value)

    wait_until_alone(server)
    said = run(fill())
    assert "remaining connection slots are reserved for" in said
    assert said.endswith("(SQLSTATE 53300)")
    wait_until_alone(server)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_nothing_listens(host: str) -> None:
    with socket.socket() as silent:  # bound but not listening: nobody else gets the port
        silent.bind(("127.0.0.1", 0))
        address = some_address(host, silent.getsockname()[1])
        assert refusal(address) == "nothing listens there (connection refused)"


def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    assert refusal(some_address(str(tmp_path), 5432)) == "there is no such socket"


def test_a_name_that_does_not_resolve() -> None:
    said = refusal(some_address("postgres.invalid", 5432))  # a domain that never exists (RFC 2606)
    assert "name" in said.lower()


@pytest.mark.parametrize("sslmode", ["prefer", "disable"])
def test_a_silent_listener_is_left_when_patience_ends(sslmode: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = some_address("127.0.0.1", silent.getsockname()[1], sslmode=sslmode)
        begin = time.monotonic()
        assert refusal(address, patience=0.2) == "no answer within 0.2 s"
        assert 0.2 <= time.monotonic() - begin < 5


def test_a_silent_unix_socket_is_left_too() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,  # tmp_path may be too long for a socket
        socket.socket(socket.AF_UNIX) as silent,
    ):
        silent.bind(str(Path(folder, ".s.PGSQL.5432")))
        silent.listen()
        assert refusal(some_address(folder, 5432), patience=0.2) == "no answer within 0.2 s"


@pytest.mark.parametrize("sslmode", ["prefer", "disable"])
@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"-ERR\r\n"]
)
def test_what_is_no_postgresql_is_no_traceback(answer: bytes, sslmode: str) -> None:
    async def ask() -> str:
        async with other_service(answer) as port:
            with pytest.raises(Unreachable) as caught:
                await connect(some_address("127.0.0.1", port, sslmode=sslmode), patience=5)
            return str(caught.value)

    said = run(ask())
    assert "\n" not in said
    assert len(said) > len("app@127.0.0.1:65535, database shop: ")


def some_address(host: str, port: int, **options: str) -> ServerAddress:
    return ServerAddress(
        host=host, port=port, user="app", password=None, database="shop", options=options
    )


@contextlib.asynccontextmanager
async def other_service(answer: bytes) -> AsyncIterator[int]:
    """Serve what answers everything with the same bytes, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read(8)
            writer.write(answer)
            await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1]


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate() -> Iterator[Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        servers.missing("openssl")
    folder = Path(tempfile.mkdtemp(prefix="e2e-test-tls-"))
    try:
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-subj", "/CN=localhost", "-out", "server.crt", "-keyout", "server.key"),
            ],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        (folder / "server.key").chmod(0o600)
        for each in (folder, *folder.iterdir()):
            servers.hand_over(each)
        yield folder
    finally:
        shutil.rmtree(folder)


def test_a_server_that_insists_on_tls(certificate: Path) -> None:
    settings = {
        "ssl": "on",
        "ssl_cert_file": str(certificate / "server.crt"),
        "ssl_key_file": str(certificate / "server.key"),
    }
    hba = "hostssl all all all trust\nhost all plain all reject"
    with servers.running_server(servers.binaries("system"), settings=settings, hba=hba) as server:
        server.sql("CREATE ROLE plain LOGIN")
        address = server.address(user="plain")
        assert run(facts(address)).user == "plain"  # TLS is tried first
        assert run(facts(dataclasses.replace(address, options={"sslmode": "require"}))).user
        plain = dataclasses.replace(address, options={"sslmode": "disable"})
        assert refusal(plain) == (
            'pg_hba.conf rejects connection for host "127.0.0.1", user "plain",'
            ' database "postgres", no encryption (SQLSTATE 28000)'
        )


def test_tls_with_a_home_that_may_not_be_read(certificate: Path, tmp_path: Path) -> None:
    settings = {
        "ssl": "on",
        "ssl_cert_file": str(certificate / "server.crt"),
        "ssl_key_file": str(certificate / "server.key"),
    }
    hba = (
        "hostnossl all no_tls all trust\nhost all no_tls all reject\n"
        "hostssl all all all trust\nhost all plain all reject"
    )
    root = certificate / "server.crt"
    with servers.running_server(servers.binaries("system"), settings=settings, hba=hba) as server:
        server.sql("CREATE ROLE plain LOGIN")
        server.sql("CREATE ROLE no_tls LOGIN")

        def said(user: str, **options: str) -> str:
            address = dataclasses.replace(
                server.address(user=user), host="localhost", options=options
            )
            return asked_by_a_stranger(address, tmp_path / "home")

        for mode in ("allow", "prefer", "require"):
            assert said("plain", sslmode=mode) == "plain"
        for mode in ("verify-ca", "verify-full"):
            assert said("plain", sslmode=mode, sslrootcert=str(root)) == "plain"
        for mode in ("allow", "prefer", "disable"):
            assert said("no_tls", sslmode=mode) == "no_tls"
        assert "no encryption (SQLSTATE 28000)" in said("plain", sslmode="disable")
        assert "SSL encryption (SQLSTATE 28000)" in said("no_tls", sslmode="require")


# --- servers that come and go --------------------------------------------------------------------


def test_a_server_that_shuts_down() -> None:
    with servers.running_server(servers.binaries("system")) as server:

        async def ask() -> str:
            async with connected(server.address()):  # which a smart shutdown waits for
                os.kill(server.pid, signal.SIGTERM)
                for _ in range(3000):
                    try:
                        async with connected(server.address()):
                            await asyncio.sleep(0.01)
                    except Unreachable as error:
                        return str(error)
                raise AssertionError("it went on letting us in")

        assert run(ask()).endswith("the database system is shutting down (SQLSTATE 57P03)")


def test_a_server_that_starts() -> None:
    with (
        servers.running_server(servers.binaries("system")) as other,
        starting_server(other) as address,
    ):
        said: list[str] = []

        def answers() -> bool:
            said.append(refusal(address))
            return not said[-1].startswith("nothing listens")

        wait_until(answers, "a listener")
        assert said[-1] == "the database system is starting up (SQLSTATE 57P03)"


@contextlib.contextmanager
def starting_server(other: servers.Server) -> Iterator[ServerAddress]:
    """Hold a server in its start: it recovers from an archive that does not answer."""
    other.sql("CHECKPOINT")
    folder = Path(tempfile.mkdtemp(prefix="e2e-test-starting-"))
    try:
        servers.hand_over(folder)
        data = folder / "data"
        subprocess.run(["cp", "-a", other.data, data], check=True)
        (data / "postmaster.pid").unlink()
        (data / "recovery.signal").touch()
        port = free_port()
        archive = {"restore_command": "exec sleep 600"}
        with servers.started(other.binaries, data, port, archive):
            yield dataclasses.replace(other.address(), port=port)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@one_version
def test_a_backend_that_hangs_does_not_hold_us(server: servers.Server) -> None:
    async def leave() -> None:
        with contextlib.ExitStack() as stack:
            # The patience is that of getting in, too, which takes no more than a moment.
            async with connected(server.address(), patience=3) as connection:
                stack.enter_context(servers.stopped(connection.get_server_pid()))

    begin = time.monotonic()
    run(leave())
    assert time.monotonic() - begin < 20
    wait_until_alone(server)


def test_a_server_that_dies_meanwhile_does_not_hide_what_happened(
    server: servers.Server,
) -> None:
    async def work() -> None:
        async with connected(server.address()) as connection:
            other = f"SELECT pg_terminate_backend({connection.get_server_pid()})"
            async with connected(server.address()) as killer:
                await killer.execute(other)
            await connection.execute("SELECT 1")

    # The last is how asyncpg takes a farewell that comes while it asks.
    words = r"terminating connection|connection (is|was) closed|cannot switch to state"
    with pytest.raises(Exception, match=words):
        run(work())
    wait_until_alone(server)


@one_version
def test_a_connect_that_is_cancelled_leaves_nothing(server: servers.Server) -> None:
    async def cancel() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            task = asyncio.create_task(connect(some_address("127.0.0.1", silent.getsockname()[1])))
            loop = asyncio.get_running_loop()
            silent.setblocking(False)
            client, _ = await loop.sock_accept(silent)
            with client:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    run(cancel())
    wait_until_alone(server)
