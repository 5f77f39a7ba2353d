"""Templates of a run, and the making of databases and roles, on a server that others use too."""

import asyncio
import contextlib
import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from servers import Server, binaries, dropped_beyond, log_of, real_fill, run, running_server

from e2e_runner.dbnames import quote_identifier
from e2e_runner.model import DatabaseDefinition, ServerAddress
from e2e_runner.postgres.connection import Connection, Unreachable, connected, describe
from e2e_runner.postgres.making import Making, NotGiven
from e2e_runner.postgres.pool import Connections
from e2e_runner.postgres.templates import Fill, Template, Templates

PREFIX = "test_e2e_20261121_094345_0a1b2c_r0_t"
BARS = DatabaseDefinition(name="bars", command=("true",))


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with running_server(binaries("system")) as server:
        server.sql("CREATE ROLE maker LOGIN CREATEDB")
        server.sql("CREATE ROLE creator LOGIN CREATEDB CREATEROLE")
        yield server


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """Give the server, and take from it whatever a test left there."""
    before = running.databases()
    yield running
    dropped_beyond(running, before)
    for role in running.sql("SELECT rolname FROM pg_roles WHERE rolname LIKE 'test_e2e_%'"):
        running.sql(f"DROP ROLE {quote_identifier(role)}")


@contextlib.asynccontextmanager
async def making_on(
    address: ServerAddress, *, most: int = 2, kind: type[Making] = Making
) -> AsyncIterator[Making]:
    connections = Connections(address, most=most)
    async with connected(address) as connection:
        facts = await describe(connection)
    try:
        yield kind(connections, facts)
    finally:
        await connections.close()


async def template_of(
    making: Making,
    fill: Fill,
    address: ServerAddress,
    definition: DatabaseDefinition = BARS,
    *,
    has_roles: bool = True,
) -> Template | None:
    templates = Templates(making, fill, address=address, prefix=PREFIX, has_roles=has_roles)
    return await templates.get(definition)


# --- what fills a template may do ----------------------------------------------------------------


@pytest.mark.parametrize("user", ["postgres", "creator"])
def test_what_fills_a_template_owns_it_and_may_do_nothing_else(server: Server, user: str) -> None:
    rights: list[Any] = []

    async def look(address: ServerAddress, _: DatabaseDefinition) -> None:
        async with connected(address) as connection:
            rights.extend(
                await connection.fetchrow(
                    "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls,"
                    " pg_get_userbyid(datdba) = current_user"
                    " FROM pg_roles, pg_database"
                    " WHERE rolname = current_user AND datname = current_database()"
                )
                or ()
            )

    async def go() -> None:
        address = server.address(user=user)
        async with making_on(address) as making:
            await template_of(making, look, address)

    run(go())
    assert rights == [False, False, False, False, False, True]


@pytest.mark.parametrize(
    "command",
    [
        ("dropdb", "app_live"),
        ("psql", "-c", "DROP DATABASE app_live"),
        ("createdb", "one_more"),
        ("createuser", "one_more"),
    ],
)
def test_a_command_reaches_no_other_database_of_a_superusers_server(
    server: Server, tmp_path: Path, command: tuple[str, ...]
) -> None:
    server.sql("CREATE DATABASE app_live")

    async def go() -> None:
        address = server.address()
        definition = DatabaseDefinition(name="bars", command=command)
        async with making_on(address) as making:
            with pytest.raises(NotGiven, match=r"must be owner|permission denied"):
                await template_of(making, real_fill(server, tmp_path), address, definition)

    before = server.databases()
    run(go())
    assert server.databases() == before
    assert server.sql("SELECT rolname FROM pg_roles WHERE rolname ~ '^test_e2e|one_more'") == []


def test_a_dump_made_to_replace_its_database_does_not(server: Server, tmp_path: Path) -> None:
    server.sql("CREATE DATABASE app")
    dump = tmp_path / "app.sql"
    subprocess.run(
        [server.binaries / "pg_dump", "-C", "-c", "-f", dump, "-d", server.url(database="app")],
        check=True,
    )
    server.sql("CREATE TABLE precious (i int)", database="app")

    async def go() -> None:
        address = server.address()
        definition = DatabaseDefinition(name="bars", template=(dump,))
        async with making_on(address) as making:
            with pytest.raises(
                NotGiven, match=r"app.sql of database 'bars': line \d+: DROP DATABASE"
            ):
                await template_of(making, real_fill(server, tmp_path), address, definition)

    run(go())
    assert server.sql("SELECT to_regclass('precious')", database="app") == ["precious"]


def test_without_a_role_of_its_own_a_database_that_vanishes_is_said_loudly(
    server: Server, tmp_path: Path
) -> None:
    address = server.address(user="maker")
    server.sql("CREATE DATABASE app_live OWNER maker")
    definition = DatabaseDefinition(name="bars", command=("dropdb", "app_live"))

    async def go() -> str:
        async with making_on(address) as making:
            with pytest.raises(NotGiven) as met:
                await template_of(
                    making, real_fill(server, tmp_path), address, definition, has_roles=False
                )
        return str(met.value)

    assert run(go()) == (
        "while the template of database 'bars' was filled, 'app_live' vanished from the server, "
        "which cannot be undone: see whether its command or its files drop what user maker owns, "
        "and give a user who may create roles"
    )
    assert not [each for each in server.databases() if each.startswith(PREFIX)]


def test_without_a_role_of_its_own_what_scripts_make_and_drop_is_no_matter(server: Server) -> None:
    address = server.address(user="maker")
    server.sql("CREATE DATABASE test_e2e_20261121_094345_0a1b2c_r7 OWNER maker")

    async def ends(_: ServerAddress, definition: DatabaseDefinition) -> None:
        if definition is BARS:
            await asyncio.to_thread(server.sql, "CREATE DATABASE of_a_script OWNER maker")
            await asyncio.to_thread(server.sql, "DROP DATABASE test_e2e_20261121_094345_0a1b2c_r7")
        else:
            await asyncio.to_thread(server.sql, "DROP DATABASE of_a_script")

    async def go() -> None:
        async with making_on(address) as making:
            templates = Templates(making, ends, address=address, prefix=PREFIX, has_roles=False)
            assert await templates.get(BARS) == Template(name=f"{PREFIX}1", role=None)
            second = replace(BARS, command=("false",))
            assert await templates.get(second) == Template(name=f"{PREFIX}2", role=None)

    run(go())


# --- a template that is there ---------------------------------------------------------------------


async def nothing(_: ServerAddress, __: DatabaseDefinition) -> None:
    """Fill with nothing."""


def test_nobody_gets_into_a_template_so_that_it_can_be_cloned(server: Server) -> None:
    held: list[Connection] = []

    async def visited(address: ServerAddress, _: DatabaseDefinition) -> None:
        stack = contextlib.AsyncExitStack()
        held.append(
            await stack.enter_async_context(connected(server.address(), database=address.database))
        )

    async def go() -> None:
        async with making_on(server.address()) as making:
            template = await template_of(making, visited, server.address())
            assert template is not None
            assert held[0].is_closed()
            with pytest.raises(Unreachable, match="not currently accepting connections"):
                async with connected(server.address(), database=template.name):
                    pass
            await making.run(
                lambda connection: making.make_database(
                    connection, "a_clone", owner="postgres", template=template.name
                )
            )
            async with connected(server.address(), database="a_clone"):
                pass

    run(go())


class Interrupted(Making):
    """Loses its connection once, between a role and its database."""

    lost = False

    async def make_database(
        self, connection: Connection, name: str, *, owner: str, template: str | None = None
    ) -> None:
        await super().make_database(connection, name, owner=owner, template=template)
        if not self.lost:
            self.lost = True
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.mark.parametrize("user", ["postgres", "creator"])
def test_a_template_is_begun_anew_where_the_connection_breaks(server: Server, user: str) -> None:
    async def go() -> None:
        address = server.address(user=user)
        async with making_on(address, most=1, kind=Interrupted) as making:
            template = await template_of(making, nothing, address)
            assert template == Template(name=f"{PREFIX}1", role=f"{PREFIX}1")

    run(go())
    assert f"{PREFIX}1" in server.databases()


# --- making -----------------------------------------------------------------------------------------


def test_a_session_in_template1_is_passed_by_and_told_of_once(server: Server) -> None:
    user = "creator"
    address = server.address(user=user)
    server.sql(f"ALTER ROLE {user} SET log_statement = 'ddl'")

    async def go() -> tuple[list[str], int]:
        async with (
            connected(server.address(), database="template1") as visitor,
            making_on(address) as making,
        ):
            await visitor.execute("SET application_name = 'pgAdmin 4'")
            await asyncio.gather(
                *(
                    making.run(partial(making.make_database, name=f"new_{number}", owner=user))
                    for number in (1, 2)
                )
            )
            await making.run(partial(making.make_database, name="new_3", owner=user))
            return making.notes, visitor.get_server_pid()

    try:
        notes, pid = run(go())
    finally:
        server.sql(f"ALTER ROLE {user} RESET log_statement")
    assert notes == [
        (
            f"template1 is in use by postgres (pgAdmin 4, pid {pid}): new databases are clones of "
            "template0 instead, without what was put into template1; end sessions there before a run"
        )
    ]
    assert {"new_1", "new_2", "new_3"} <= server.databases()
    # Not from template1 first: the server would wait for 5 s for the session there to go.
    tried = re.findall(r'CREATE DATABASE "new_3".*', log_of(server.data).read_text())
    assert [statement.endswith("TEMPLATE template0") for statement in tried] == [True]


def test_template0_is_told_to_be_as_template1(server: Server) -> None:
    address = server.address()
    server.sql("ALTER DATABASE template1 IS_TEMPLATE false")
    server.sql("DROP DATABASE template1")
    server.sql("CREATE DATABASE template1 TEMPLATE template0 ENCODING 'SQL_ASCII' IS_TEMPLATE true")

    async def go() -> None:
        async with connected(address, database="template1"), making_on(address) as making:
            await making.run(partial(making.make_database, name="new_1", owner="postgres"))

    try:
        run(go())
        encoding = "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'new_1'"
        assert server.sql(encoding) == ["SQL_ASCII"]
    finally:
        server.sql("ALTER DATABASE template1 IS_TEMPLATE false")
        server.sql("DROP DATABASE template1")
        server.sql("CREATE DATABASE template1 TEMPLATE template0 IS_TEMPLATE true")


@pytest.mark.parametrize("most", [1, 2])
def test_work_that_asks_for_a_second_connection_is_a_mistake(server: Server, most: int) -> None:
    async def go() -> None:
        async with making_on(server.address(), most=most) as making:

            async def nested(_: Connection) -> None:
                await asyncio.wait_for(making.run(ask), 10)

            with pytest.raises(AssertionError, match="asks for a second one"):
                await making.run(nested)
            assert await making.run(ask) == 1
            async with making_on(server.address(), most=most) as other:
                assert await making.run(lambda _: other.run(ask)) == 1

    ask: Callable[[Connection], Awaitable[Any]] = lambda connection: connection.fetchval("SELECT 1")  # noqa: E731
    run(go())
