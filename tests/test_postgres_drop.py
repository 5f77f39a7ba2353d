"""Dropping on real servers: every way in which a server refuses, hangs or goes away."""

import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
import servers
from harness import wait_until
from servers import run

from e2e_runner.postgres.connection import Connection, connected
from e2e_runner.postgres.drop import DropOutcome, DropResult, drop_database, drop_role
from e2e_runner.postgres.survey import survey


@pytest.fixture(scope="module", params=servers.VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    with servers.running_server(servers.binaries(request.param)) as running:
        running.sql("CREATE ROLE plain LOGIN")
        yield running


one_version = servers.on_one_version("server")


def drop(
    server: servers.Server,
    name: str,
    *,
    force: bool = False,
    user: str = "postgres",
    database: str = "postgres",
    patience: float = 10.0,
) -> DropResult:
    async def do() -> DropResult:
        async with connected(server.address(user=user, database=database)) as connection:
            return await drop_database(connection, name, force=force, patience=patience)

    return run(do())


def test_a_database_is_dropped(server: servers.Server) -> None:
    server.sql("CREATE DATABASE leaked")
    result = drop(server, "leaked")
    assert (result.outcome, result.reason) == (DropOutcome.DROPPED, "")
    assert 0 < result.seconds < 10
    assert "leaked" not in server.databases()


def test_one_that_is_gone_is_no_failure(server: servers.Server) -> None:
    assert drop(server, "never_was").outcome is DropOutcome.GONE


@one_version
@pytest.mark.parametrize(
    "name", ['a"b', "line\nfeed", "snow ☃ man", "x'; DROP DATABASE postgres; --", "\u202etxt", "%s"]
)
def test_any_name_is_dropped_and_no_other(server: servers.Server, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    before = server.databases()
    server.sql(f"CREATE DATABASE {quoted}")
    assert drop(server, name).outcome is DropOutcome.DROPPED
    assert server.databases() == before


@one_version
@pytest.mark.parametrize("name", ["", "a\0b", "caf\udce9"])
def test_a_name_that_cannot_be_sent(server: servers.Server, name: str) -> None:
    result = drop(server, name)
    assert result.outcome is DropOutcome.FAILED
    assert result.reason.startswith("its name cannot be sent: ")


@one_version
def test_sessions_keep_a_database_unless_forced(server: servers.Server) -> None:
    server.sql("CREATE DATABASE occupied")

    async def do() -> tuple[DropResult, DropResult]:
        async with (
            connected(server.address(database="occupied")),
            connected(server.address()) as connection,
        ):
            return (
                await drop_database(connection, "occupied", force=False),
                await drop_database(connection, "occupied", force=True),
            )

    kept, dropped = run(do())
    assert kept.outcome is DropOutcome.FAILED
    assert kept.reason == (
        'it is in use: database "occupied" is being accessed by other users '
        "(There is 1 other session using the database)"
    )
    assert dropped.outcome is DropOutcome.DROPPED


@pytest.mark.parametrize("force", [False, True])
def test_a_template_and_the_current_database(server: servers.Server, *, force: bool) -> None:
    refused = drop(server, "template1", force=force)
    assert refused.outcome is DropOutcome.FAILED
    assert refused.reason == "it is marked as a template: cannot drop a template database"
    own = drop(server, "postgres", force=force)
    assert own.reason == "it is in use: cannot drop the currently open database"


def test_an_active_slot_keeps_a_database_even_by_force(server: servers.Server) -> None:
    program = server.binaries / "pg_recvlogical"
    if not program.exists():
        servers.missing("pg_recvlogical")
    server.sql("CREATE DATABASE slotted")
    server.sql(
        "SELECT pg_create_logical_replication_slot('busy', 'test_decoding')", database="slotted"
    )
    words = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres", "-d", "slotted"]
    with subprocess.Popen([program, *words, "--slot=busy", "--start", "-f", "-"]) as reader:
        try:
            wait_until(
                lambda: server.sql("SELECT active FROM pg_replication_slots") == ["t"],
                "the slot is read",
            )
            result = drop(server, "slotted", force=True)
        finally:
            reader.terminate()
    assert result.outcome is DropOutcome.FAILED
    assert result.reason.startswith("it is in use: ")
    assert "slot" in result.reason
    wait_until(
        lambda: server.sql("SELECT active FROM pg_replication_slots") == ["f"], "the slot is free"
    )
    # This is why a survey looks for slots: an inactive one goes with its database.
    assert drop(server, "slotted").outcome is DropOutcome.DROPPED
    assert server.sql("SELECT slot_name FROM pg_replication_slots") == []


def test_a_subscription_and_a_prepared_transaction(server: servers.Server) -> None:
    for name in ("subscribed", "prepared"):
        server.sql(f"CREATE DATABASE {name}")
    server.sql(
        "CREATE SUBSCRIPTION sub CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false)",
        database="subscribed",
    )
    server.sql("BEGIN; CREATE TABLE t (); PREPARE TRANSACTION 'waiting'", database="prepared")
    subscribed = drop(server, "subscribed", force=True)
    assert subscribed.reason.startswith("it is in use: ")
    assert "subscription" in subscribed.reason
    prepared = drop(server, "prepared", force=True)
    assert prepared.reason.startswith("it is in use: ")
    assert "prepared transaction" in prepared.reason
    server.sql("ROLLBACK PREPARED 'waiting'", database="prepared")
    server.sql("ALTER SUBSCRIPTION sub SET (slot_name = NONE)", database="subscribed")
    server.sql("DROP SUBSCRIPTION sub", database="subscribed")
    assert drop(server, "subscribed").outcome is DropOutcome.DROPPED
    assert drop(server, "prepared").outcome is DropOutcome.DROPPED


def test_without_the_right(server: servers.Server) -> None:
    server.sql("CREATE DATABASE foreign_one")
    result = drop(server, "foreign_one", user="plain")
    assert result.reason == "not allowed: must be owner of database foreign_one"
    assert drop(server, "foreign_one").outcome is DropOutcome.DROPPED


def test_a_read_only_server_and_a_transaction(server: servers.Server) -> None:
    server.sql("CREATE DATABASE leaked")

    async def do() -> tuple[DropResult, DropResult]:
        async with connected(server.address()) as connection:
            async with connection.transaction():
                inside = await drop_database(connection, "leaked", force=False)
            await connection.execute("SET default_transaction_read_only = on")
            return inside, await drop_database(connection, "leaked", force=False)

    inside, read_only = run(do())
    assert inside.reason.startswith("not possible inside a transaction: ")
    assert read_only.reason.startswith("the server is read-only: ")
    assert drop(server, "leaked").outcome is DropOutcome.DROPPED


def test_a_half_dropped_database_is_dropped(server: servers.Server) -> None:
    server.sql("CREATE DATABASE halfway")
    server.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'halfway'")
    assert drop(server, "halfway").outcome is DropOutcome.DROPPED


@pytest.mark.parametrize("where", ["victim", "postgres"])
def test_a_hung_backend_is_survived(server: servers.Server, where: str) -> None:
    """A session that cannot be ended, in the database itself or anywhere else on the server."""
    server.sql("CREATE DATABASE victim")

    async def do() -> tuple[DropResult, bool, DropResult]:
        async with connected(server.address()) as connection:
            async with servers.hung_session(server, database=where):
                stuck = await drop_database(connection, "victim", force=True, patience=1.0)
                state = await survey(connection)
                halfway = next(each for each in state.databases if each.name == "victim")
            later = await drop_database(connection, "victim", force=True)
            return stuck, halfway.half_dropped, later

    stuck, half_dropped, later = run(do())
    assert stuck.outcome is DropOutcome.FAILED
    assert stuck.timed_out
    assert stuck.reason == (
        "no answer within 1 s, 2 times: a process of the server may be stopped or hung"
    )
    assert 2 <= stuck.seconds < 20
    assert half_dropped is (where == "postgres")
    assert later.outcome is DropOutcome.DROPPED
    assert "victim" not in server.databases()


@one_version
def test_a_retry_succeeds_once_the_server_answers(
    server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.sql("CREATE DATABASE victim")
    patience = 3.0  # runs out for the first try; the second one succeeds
    tries: list[str] = []

    async def do() -> DropResult:
        async with (
            connected(server.address()) as connection,
            servers.hung_session(server) as pid,
        ):
            really = asyncpg.Connection.execute

            async def execute(self: Connection, query: str, *args: Any, **more: Any) -> str:
                tries.append(query)
                if len(tries) == 2:
                    os.kill(pid, signal.SIGCONT)
                return await really(self, query, *args, **more)

            monkeypatch.setattr(asyncpg.Connection, "execute", execute)
            return await drop_database(connection, "victim", force=False, patience=patience)

    result = run(do())
    assert (result.outcome, result.reason) == (DropOutcome.DROPPED, "")
    assert len(tries) == 2
    assert result.seconds >= patience
    assert "victim" not in server.databases()


@one_version
def test_a_retry_leaves_a_database_that_has_got_the_name_meanwhile(server: servers.Server) -> None:
    server.sql("CREATE DATABASE victim")

    async def do() -> DropResult:
        async with connected(server.address()) as connection, servers.hung_session(server):
            oid = await connection.fetchval("SELECT max(oid)::int8 FROM pg_database")
            # It runs out for the first try; that the name is another's is seen within it.
            return await drop_database(connection, "victim", force=False, oid=oid + 1, patience=2.0)

    result = run(do())
    assert (result.outcome, result.reason) == (DropOutcome.DROPPED, "")
    assert "victim" in server.databases()
    server.sql("DROP DATABASE victim")


@one_version
def test_a_connection_that_the_server_ends_is_a_failure(server: servers.Server) -> None:
    server.sql("CREATE DATABASE leaked")

    async def do() -> tuple[DropResult, DropResult]:
        async with (
            connected(server.address()) as killer,
            connected(server.address()) as connection,
        ):
            await killer.execute(f"SELECT pg_terminate_backend({connection.get_server_pid()})")
            return (
                await drop_database(connection, "leaked", force=False),
                await drop_database(connection, "leaked", force=False),
            )

    first, second = run(do())
    assert first.outcome is second.outcome is DropOutcome.FAILED
    assert "terminating connection" in first.reason or "was lost" in first.reason
    assert "the connection to the server was lost" in second.reason
    assert drop(server, "leaked").outcome is DropOutcome.DROPPED


def test_roles(server: servers.Server) -> None:
    server.sql("CREATE ROLE owner_of_something CREATEDB")
    server.sql("CREATE DATABASE owned OWNER owner_of_something")

    async def do(user: str = "postgres") -> DropResult:
        async with connected(server.address(user=user)) as connection:
            return await drop_role(connection, "owner_of_something")

    owns = run(do())
    assert owns.outcome is DropOutcome.FAILED
    assert owns.still_owns
    assert owns.reason.startswith("something still depends on it: ")
    assert "owner of database owned" in owns.reason
    assert drop(server, "owned").outcome is DropOutcome.DROPPED
    refused = run(do("plain"))
    assert refused.reason.startswith("not allowed: ")
    assert not refused.still_owns
    assert run(do()).outcome is DropOutcome.DROPPED
    assert run(do()).outcome is DropOutcome.GONE
