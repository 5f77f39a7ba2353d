"""PgBouncer in front of a server: what works through it, and what it takes away."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
import servers
from harness import wait_gone, wait_until
from pgbouncer import PgBouncer, pgbouncer_program, running_pgbouncer
from servers import run

from e2e_runner.dbnames import lease_key
from e2e_runner.postgres.connection import ServerFacts, Unreachable, connect, connected, describe

TESTS = Path(__file__).parent
KEY = lease_key("20261121_094345_0a1b2c")


@pytest.fixture(scope="module")
def server() -> Iterator[servers.Server]:
    if pgbouncer_program() is None:
        servers.missing("PgBouncer")
    with servers.running_server(servers.some_binaries()) as running:
        running.sql("CREATE ROLE plain LOGIN")
        yield running


@pytest.fixture(scope="module", params=["transaction", "session"])
def pooler(server: servers.Server, request: pytest.FixtureRequest) -> Iterator[PgBouncer]:
    with running_pgbouncer(server, mode=request.param) as running:
        yield running


@pytest.fixture(scope="module")
def narrow(server: servers.Server) -> Iterator[PgBouncer]:
    """Transaction mode, and two connections for everybody."""
    with running_pgbouncer(server, settings={"default_pool_size": "2"}) as running:
        yield running


def holders(server: servers.Server) -> int:
    (count,) = server.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted")
    return int(count)


# --- our own connections -------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["plain", "postgres"])
def test_a_pooler_is_told_apart_without_rights(
    server: servers.Server, pooler: PgBouncer, user: str
) -> None:
    async def ask() -> tuple[ServerFacts, ServerFacts]:
        async with (
            connected(pooler.address(user=user)) as through,
            connected(server.address(user=user)) as directly,
        ):
            return await describe(through), await describe(directly)

    through, directly = run(ask())
    assert (through.pooled, directly.pooled) == (True, False)
    assert (through.user, through.version) == (directly.user, directly.version)
    assert through.superuser == (user == "postgres")


def test_settings_and_statements_go_through(pooler: PgBouncer) -> None:
    async def work() -> list[Any]:
        async with connected(pooler.address(user="plain")) as connection:
            await connection.execute("SET statement_timeout = '30s'")
            await connection.execute("SET application_name = 'e2e-run'")
            answers = [await connection.fetchval("SELECT $1::int + 1", n) for n in range(5)]
            async with connection.transaction():
                await connection.execute("SET LOCAL lock_timeout = '2s'")
                answers.append(await connection.fetchval("SHOW lock_timeout"))
            await connection.execute("RESET ALL")
            return answers

    assert run(work()) == [1, 2, 3, 4, 5, "2s"]


def test_many_clients_share_two_connections_and_none_gets_the_answer_of_another(
    narrow: PgBouncer,
) -> None:
    async def client(number: int) -> list[int]:
        async with connected(narrow.address(user="plain")) as connection:
            base = number * 1000
            return [await connection.fetchval(f"SELECT $1::int + {base}", n) for n in range(50)]

    async def work() -> list[list[int]]:
        return await asyncio.gather(*(client(number) for number in range(8)))

    assert run(work()) == [[number * 1000 + n for n in range(50)] for number in range(8)]


def test_databases_are_created_and_dropped_through_it(
    server: servers.Server, pooler: PgBouncer
) -> None:
    async def work() -> None:
        async with connected(pooler.address()) as connection:
            await connection.execute('CREATE DATABASE "through ""it"')
            assert 'through "it' in server.databases()
            async with connected(pooler.address(database='through "it')) as inside:
                await inside.execute("CREATE TABLE t ()")
            await connection.execute('DROP DATABASE "through ""it" (FORCE)')

    run(work())
    assert 'through "it' not in server.databases()


@pytest.mark.parametrize(
    ("user", "database", "said"),
    [
        ("unknown", "postgres", "no such user (SQLSTATE 08P01)"),
        ("postgres", "unknown", 'database "unknown" does not exist (SQLSTATE 08P01)'),
    ],
)
def test_its_own_refusals_are_quoted(
    pooler: PgBouncer, user: str, database: str, said: str
) -> None:
    address = pooler.address(user=user, database=database)
    with pytest.raises(Unreachable) as caught:
        run(connect(address))
    text = str(caught.value)
    assert text.startswith(f"{address}, database {database}: ")
    # Newer ones let an unknown user wait for the server's refusal.
    assert text.endswith((said, 'role "unknown" does not exist (SQLSTATE 28000)'))
    assert "\n" not in text


def test_a_server_that_is_away_is_waited_for_no_longer_than_patience(
    server: servers.Server,
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        away = dataclasses.replace(server, port=silent.getsockname()[1])
        with running_pgbouncer(away) as pooler, pytest.raises(Unreachable) as caught:
            run(connect(pooler.address(), patience=0.3))
    assert "postgres@127.0.0.1" in str(caught.value)


# --- what it takes away --------------------------------------------------------------------------


def test_settings_of_the_start_are_refused_by_it(pooler: PgBouncer) -> None:
    async def ask() -> None:
        await asyncpg.connect(
            pooler.url(), server_settings={"statement_timeout": "1s"}, statement_cache_size=0
        )

    with pytest.raises(asyncpg.ProtocolViolationError, match="unsupported startup parameter"):
        run(ask())


def test_a_lease_outlives_its_client_in_transaction_mode(server: servers.Server) -> None:
    async def lock(pooler: PgBouncer) -> None:
        async with connected(pooler.address()) as connection:
            await connection.execute(f"SELECT pg_advisory_lock({KEY})")

    with running_pgbouncer(server) as pooler:
        run(lock(pooler))
        log = pooler.log
        wait_until(lambda: "client close request" in log.read_text(), "it saw the client leave")
        assert holders(server) == 1
    wait_until(lambda: holders(server) == 0, "the lock was gone with the pooler")


@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_lease_lasts_as_long_as_its_client_in_session_mode(
    server: servers.Server, end: str
) -> None:
    # `pooled` is true here as well: nothing that an ordinary user may see tells the modes apart,
    # and a server_reset_query that was emptied would make a lease outlive its client even so.
    holder = (
        "import asyncio, sys, asyncpg\n"
        "async def main():\n"
        "    connection = await asyncpg.connect(sys.argv[1], statement_cache_size=0)\n"
        f"    await connection.execute('SELECT pg_advisory_lock({KEY})')\n"
        "    print('held', flush=True)\n"
        "    await asyncio.to_thread(sys.stdin.read)\n"
        "    await connection.close()\n"
        "asyncio.run(main())\n"
    )
    with (
        running_pgbouncer(server, mode="session") as pooler,
        subprocess.Popen(
            [sys.executable, "-c", holder, pooler.url()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as client,
    ):
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == b"held\n"
        assert holders(server) == 1
        if end == "kill":
            client.kill()
        client.stdin.close()
        client.wait(timeout=30)
        wait_until(lambda: holders(server) == 0, "the lock was gone with its client")


def test_default_asyncpg_fails_where_connections_are_shared(narrow: PgBouncer) -> None:
    """The failure whose advice `rules.toml` has, as long as PgBouncer knows no statements."""

    async def work() -> None:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await asyncpg.connect(narrow.url(user="plain")) for _ in range(4)]
            for client in clients:
                stack.push_async_callback(client.close, timeout=10)
            for n in range(10):
                await asyncio.gather(*(each.fetchval("SELECT $1::int", n) for each in clients))

    version = subprocess.run(
        [str(pgbouncer_program()), "--version"], check=True, capture_output=True, text=True
    ).stdout.split()[1]
    if tuple(int(part) for part in version.split(".")[:2]) >= (1, 21):
        run(work())  # max_prepared_statements, which is on since 1.24
        return
    with pytest.raises(asyncpg.PostgresError) as caught:
        run(work())
    assert caught.value.sqlstate in {"26000", "42P05"}
    assert 'prepared statement "__asyncpg_' in str(caught.value)


# --- no PgBouncer survives its test --------------------------------------------------------------


@pytest.mark.parametrize("harm", [None, signal.SIGSTOP, signal.SIGKILL])
def test_it_is_gone_after_its_block_whatever_was_done_to_it(
    server: servers.Server, harm: signal.Signals | None
) -> None:
    with running_pgbouncer(server) as pooler:
        process = psutil.Process(pooler.pid)
        assert process.username() != "root"
        if harm is not None:
            os.kill(pooler.pid, harm)
    assert not psutil.pid_exists(pooler.pid)
    assert not pooler.log.parent.exists()
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", pooler.port)) != 0


@pytest.mark.skipif(sys.platform != "linux", reason="PDEATHSIG is Linux's")
def test_it_dies_with_tests_that_are_killed(server: servers.Server) -> None:
    program = (
        "import pathlib, sys, time, pgbouncer, servers\n"
        "nowhere = pathlib.Path('/')\n"
        "server = servers.Server(\n"
        f"    binaries=nowhere, data=nowhere, port={server.port}, sockets=nowhere, pid=0)\n"
        "with pgbouncer.running_pgbouncer(server) as running:\n"
        "    print(running.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with contextlib.ExitStack() as stack:
        # tmp_path is closed to the user that it drops to
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        Path(folder).chmod(0o755)
        tests = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", program],
                env={**os.environ, "PYTHONPATH": str(TESTS), "TMPDIR": folder},
                stdout=subprocess.PIPE,
            )
        )
        assert tests.stdout is not None
        pooler = psutil.Process(int(tests.stdout.readline()))
        tests.kill()
        wait_gone([pooler])
