"""One configured server, which the run shares with others."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pgbouncer import running_pgbouncer
from servers import (
    VERSIONS,
    Server,
    binaries,
    locked_catalog,
    on_one_version,
    real_fill,
    run,
    running_server,
)

from e2e_runner.dbnames import quote_identifier
from e2e_runner.model import DatabaseDefinition, LeakedDatabase, ServerAddress
from e2e_runner.postgres.connection import Connection, Unreachable, connect, connected
from e2e_runner.postgres.fill import FillFailed
from e2e_runner.postgres.making import Making
from e2e_runner.postgres.shared import (
    Given,
    NotGiven,
    NotKnown,
    NotUsable,
    SharedServer,
    _some,
)

_numbers = itertools.count(1)
APP, MAKER, GUEST, READER, HEIR = "app", "maker", "guest", "reader", "no_heir"
USERS = (APP, MAKER, GUEST, READER, HEIR, "other")


def new_token() -> str:
    return f"20261121_094345_{os.getpid() % 4096:03x}{next(_numbers):03x}"


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with running_server(binaries(request.param), hba=HBA) as running:
        set_up(running)
        yield running


one_version = on_one_version("server")


# A new role is let in with its password alone; the others need none.
HBA = f"""\
host all postgres,{",".join(USERS)} 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
"""


def set_up(server: Server) -> None:
    for user, rights in {
        APP: "CREATEDB CREATEROLE",
        MAKER: "CREATEDB",
        GUEST: "",
        READER: "CREATEDB",
        HEIR: "CREATEDB CREATEROLE NOINHERIT",
        "other": "CREATEDB",
    }.items():
        server.sql(f"CREATE ROLE {user} LOGIN {rights}")
    server.sql(f"ALTER ROLE {READER} SET default_transaction_read_only = on")


@pytest.fixture
def unchanged(server: Server) -> Iterator[None]:
    """Assert that a test leaves the databases and roles of the server as they were."""
    before = server.databases(), server.roles()
    yield
    assert (server.databases(), server.roles()) == before


async def no_fill(address: ServerAddress, definition: DatabaseDefinition) -> None:
    raise AssertionError(f"nothing to fill: {address} {definition}")


@contextlib.asynccontextmanager
async def opened(
    server: Server,
    *,
    user: str = APP,
    token: str | None = None,
    address: ServerAddress | None = None,
    fill: Callable[[ServerAddress, DatabaseDefinition], Awaitable[None]] = no_fill,
    patterns: tuple[str, ...] = (),
    protect: tuple[str, ...] = (),
    admin: ServerAddress | None = None,
    notes: list[str] | None = None,
) -> AsyncIterator[SharedServer]:
    async with SharedServer.open(
        address or server.address(user=user),
        admin=admin,
        token=token or new_token(),
        patterns=patterns,
        protect=protect,
        fill=fill,
        warn=([] if notes is None else notes).append,
    ) as shared:
        yield shared


async def script(given: Given, *statements: str, database: str | None = None) -> None:
    """Do what a script would do with what it was given."""
    async with connected(given.address, database=database) as connection:
        for statement in statements:
            await connection.execute(statement)


async def until(fact: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not fact():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        await asyncio.sleep(0.01)


# --- a role for each attempt ---------------------------------------------------------------------


@pytest.mark.parametrize("user", ["postgres", APP, MAKER])
@pytest.mark.usefixtures("unchanged")
def test_an_attempt_gets_a_database_of_its_own(server: Server, user: str) -> None:
    async def go() -> None:
        token = new_token()
        notes: list[str] = []
        async with opened(server, user=user, token=token, notes=notes) as shared:
            assert notes == []
            assert shared.exact is (user != MAKER)
            given = await shared.give(1, [])
            assert given.address.database == f"test_e2e_{token}_r1"
            assert given.names == {}
            assert given.address.user == (given.address.database if shared.exact else MAKER)
            await script(given, "CREATE TABLE t (i int)", "CREATE SCHEMA s")
            assert await shared.left_behind(given) == ()
            assert await shared.take_back(given, keep=False) == ()
            assert given.address.database not in server.databases()

    run(go())


@pytest.mark.parametrize("user", ["postgres", APP])
@pytest.mark.usefixtures("unchanged")
def test_what_two_attempts_leave_at_the_same_time_is_told_apart(server: Server, user: str) -> None:
    odd = 'we"ird\n; DROP TABLE -- é😀'

    async def go() -> None:
        async with opened(server, user=user) as shared:
            one, other = await asyncio.gather(shared.give(1, []), shared.give(2, []))
            quoted = odd.replace('"', '""')
            await asyncio.gather(
                script(one, f'CREATE DATABASE "{quoted}"'),
                script(other, "CREATE DATABASE leak_of_2", "CREATE DATABASE leak_of_2b"),
            )
            found = await asyncio.gather(shared.left_behind(other), shared.left_behind(one))
            named = [[(each.name, each.owner, each.doubt, each.kept) for each in f] for f in found]
            assert named == [
                [(name, other.base, "", "") for name in ("leak_of_2", "leak_of_2b")],
                [(odd, one.base, "", "")],
            ]
            assert not {odd, "leak_of_2", "leak_of_2b"} & server.databases()
            for given in (one, other):
                assert await shared.take_back(given, keep=False) == ()
                assert given.base not in server.roles()

    run(go())


@one_version
@pytest.mark.usefixtures("unchanged")
def test_sessions_that_are_still_there_do_not_keep_anything(server: Server) -> None:
    async def go() -> None:
        async with opened(server) as shared:
            given = await shared.give(1, [])
            await script(given, "CREATE DATABASE leak_with_session")
            held = [
                await connect(given.address, database=name) for name in (given.base, "postgres")
            ]
            held.append(await connect(given.address, database="leak_with_session"))
            for connection in held:
                await connection.execute("BEGIN")
                await connection.execute("CREATE TEMPORARY TABLE t (i int)")
            asleep = asyncio.create_task(held[1].execute("SELECT pg_sleep(1000)"))
            assert [each.name for each in await shared.left_behind(given)] == ["leak_with_session"]
            assert await shared.take_back(given, keep=False) == ()
            with pytest.raises(asyncpg.PostgresError):
                await asleep
            for connection in held:
                connection.terminate()

    run(go())


@pytest.mark.usefixtures("unchanged")
def test_what_a_script_does_to_its_own_database_is_no_leak(server: Server) -> None:
    async def go() -> None:
        async with opened(server, user="postgres") as shared:
            given = [await shared.give(number, []) for number in range(1, 5)]
            renamed, recreated, template = (quote_identifier(each.base) for each in given[:3])
            await script(
                given[0], f"ALTER DATABASE {renamed} RENAME TO elsewhere", database="postgres"
            )
            await script(
                given[1],
                f"DROP DATABASE {recreated}",
                f"CREATE DATABASE {recreated}",
                database="postgres",
            )
            await script(given[2], f"ALTER DATABASE {template} IS_TEMPLATE true")
            await script(
                given[3], "BEGIN", "CREATE TABLE t (i int)", "PREPARE TRANSACTION 'it''s mine'"
            )
            for each in given:
                assert await shared.left_behind(each) == ()
                assert await shared.take_back(each, keep=False) == ()

    run(go())


@one_version
def test_a_leak_that_is_a_template_is_kept_and_with_it_its_role(server: Server) -> None:
    token = new_token()

    async def go() -> tuple[tuple[LeakedDatabase, ...], tuple[str, ...]]:
        async with opened(server, token=token) as shared:
            given = await shared.give(1, [])
            await script(given, "CREATE DATABASE made_a_template IS_TEMPLATE true")
            await script(given, "CREATE DATABASE leak_protected")
            return await shared.left_behind(given), await shared.take_back(given, keep=False)

    role = f"test_e2e_{token}_r1"
    try:
        leaked, problems = run(go())
        assert {each.name: each.kept for each in leaked} == {
            "made_a_template": "it is marked as a template",
            "leak_protected": "",
        }
        assert len(problems) == 1
        assert problems[0].startswith(f"role {role} stays: something still depends on it")
        assert "made_a_template" in server.databases()
        assert server.sql(f"SELECT rolcanlogin FROM pg_roles WHERE rolname = '{role}'") == ["f"]
    finally:
        server.sql("ALTER DATABASE made_a_template IS_TEMPLATE false")
        server.sql("DROP DATABASE made_a_template")
        server.sql(f"DROP ROLE {role}")


def test_a_leak_with_a_replication_slot_or_under_protection_is_kept(server: Server) -> None:
    token = new_token()

    async def go() -> tuple[LeakedDatabase, ...]:
        async with opened(server, token=token, protect=("shop_*",)) as shared:
            given = await shared.give(1, [])
            await script(given, "CREATE DATABASE with_slot", "CREATE DATABASE shop_production")
            server.sql(
                "SELECT pg_create_logical_replication_slot('s', 'pgoutput')", database="with_slot"
            )
            leaked = await shared.left_behind(given)
            await shared.take_back(given, keep=False)
            return leaked

    try:
        assert {each.name: each.kept for each in run(go())} == {
            "with_slot": "a replication slot needs it: s",
            "shop_production": "postgres.protect names shop_*",
        }
        assert {"with_slot", "shop_production"} <= server.databases()
    finally:
        server.sql("SELECT pg_drop_replication_slot('s')")
        server.sql("DROP DATABASE with_slot")
        server.sql("DROP DATABASE shop_production")
        server.sql(f"DROP ROLE test_e2e_{token}_r1")


@one_version
def test_databases_of_others_survive(server: Server) -> None:
    async def go() -> None:
        async with opened(server) as shared, opened(server, user="other") as unrelated:
            given, theirs = await shared.give(1, []), await unrelated.give(1, [])
            server.sql("CREATE DATABASE foreign_1")
            server.sql("CREATE DATABASE foreign_2", user="other")
            await script(given, "CREATE DATABASE leak")
            assert [each.name for each in await shared.left_behind(given)] == ["leak"]
            assert await shared.take_back(given, keep=False) == ()
            await script(theirs, "SELECT 1")
            left = await unrelated.left_behind(theirs)
            assert [(each.name, each.kept) for each in left] == [
                ("foreign_2", "its name matches none of postgres.patterns")
            ]

    try:
        run(go())
        assert {"foreign_1", "foreign_2"} <= server.databases()
    finally:
        server.sql("DROP DATABASE foreign_1")
        server.sql("DROP DATABASE foreign_2")


@one_version
@pytest.mark.usefixtures("unchanged")
def test_two_runs_at_once_do_not_see_each_other(server: Server) -> None:
    async def go() -> None:
        async with opened(server) as one, opened(server) as other:
            first, second = await asyncio.gather(one.give(1, []), other.give(1, []))
            await asyncio.gather(
                script(first, "CREATE DATABASE leak_one"),
                script(second, "CREATE DATABASE leak_other"),
            )
            notes: list[str] = []
            async with opened(server, notes=notes):  # which looks for what dead runs left
                assert notes == []
            assert [each.name for each in await one.left_behind(first)] == ["leak_one"]
            assert [each.name for each in await other.left_behind(second)] == ["leak_other"]

    run(go())


@one_version
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.usefixtures("unchanged")
def test_leaving_in_the_middle_of_everything_leaves_nothing(server: Server, seed: int) -> None:
    wanted = [DatabaseDefinition(name="orm"), DatabaseDefinition(name="bars", command=("fill",))]
    logged: list[dict[str, object]] = []

    async def attempt(shared: SharedServer, number: int) -> None:
        given = await shared.give(number, wanted if number % 2 else [])
        await script(given, f"CREATE DATABASE leak_{number}")
        await shared.left_behind(given)
        await shared.take_back(given, keep=False)

    async def go() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
        cleaning = asyncio.get_running_loop().create_future()

        async def use() -> None:
            async with opened(server, fill=write_a_table) as shared:
                async with asyncio.TaskGroup() as group:
                    for number in range(1, 5):
                        group.create_task(attempt(shared, number))
                cleaning.set_result(None)

        running = asyncio.create_task(use())
        # Wherever it is by then: that it is anywhere is the point. Whoever breaks off the cleaning
        # itself leaves the rest to the next run.
        moment = random.Random(seed).uniform(0, 0.4)  # noqa: S311 - no secret
        await asyncio.wait([running, cleaning], timeout=moment, return_when=asyncio.FIRST_COMPLETED)
        if not cleaning.done():
            running.cancel()
        await asyncio.wait([running])
        assert running.cancelled() or running.exception() is None

    run(go())
    assert logged == []


async def write_a_table(address: ServerAddress, _: DatabaseDefinition) -> None:
    async with connected(address) as connection:
        await connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i")


@one_version
def test_kept_databases_outlive_the_run_and_the_next_one(server: Server) -> None:
    before = server.databases(), server.roles()

    async def go() -> Given:
        async with opened(server) as shared:
            given = await shared.give(1, [DatabaseDefinition(name="orm")])
            await script(given, "CREATE TABLE evidence (i int)")
            assert await shared.take_back(given, keep=True) == ()
        notes: list[str] = []
        async with opened(server, notes=notes):
            assert notes == []
        await script(given, "INSERT INTO evidence VALUES (1)")
        return given

    given = run(go())
    server.sql(f"DROP DATABASE {given.base}")
    server.sql(f"DROP ROLE {given.base}")
    assert (server.databases(), server.roles()) == before


# --- runs that died ------------------------------------------------------------------------------

RUN = """
import asyncio, sys
from e2e_runner.model import DatabaseDefinition, ServerAddress
from e2e_runner.postgres.connection import connected
from e2e_runner.postgres.shared import SharedServer

async def fill(address, definition):
    async with connected(address) as connection:
        await connection.execute("CREATE TABLE t (i int)")

async def main():
    address = ServerAddress(
        host="127.0.0.1", port=int(sys.argv[1]), user=sys.argv[2], password=None, database="postgres"
    )
    async with SharedServer.open(
        address, admin=None, token=sys.argv[3], patterns=(), protect=(), fill=fill, warn=print
    ) as shared:
        given = await shared.give(1, [DatabaseDefinition(name="a", command=("fill",))])
        async with connected(given.address) as connection:
            await connection.execute('CREATE DATABASE "left by the dead"')
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.usefixtures("unchanged")
def test_what_a_killed_run_left_is_dropped_by_the_next_and_not_before(server: Server) -> None:
    token = new_token()
    argv = [sys.executable, "-c", RUN, str(server.port), APP, token]

    async def look() -> list[str]:
        notes: list[str] = []
        async with opened(server, notes=notes):
            return notes

    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as dying:
        try:
            assert dying.stdout is not None
            assert dying.stdout.readline() == "ready\n"
            made = {name for name in server.databases() if token in name} | {"left by the dead"}
            assert len(made) == 3  # its template, its database and its leak
            assert run(look()) == []
            assert made <= server.databases()
        finally:
            dying.kill()
    (note,) = run(look())
    assert note.endswith(", which a run that died had left")
    listed = note.removeprefix("dropped ").removesuffix(", which a run that died had left")
    assert set(listed.split(", ")) == made
    assert not made & server.databases()


@one_version
@pytest.mark.usefixtures("unchanged")
def test_only_what_runs_made_is_dropped_when_one_begins(server: Server) -> None:
    dead = new_token()
    me = "postgres"  # who could drop all of them
    ours = {f"test_e2e_{dead}_r1": me, f"test_test_e2e_{dead}_r1_x": me}
    foreign = {
        f"shop_e2e_{dead}_r3_for_bug_4711": me,  # a copy that somebody made for later
        f"test_e2e_{dead}_r2": "other",
        f"e2e_{dead}_r1": me,
        f"test_e2e_{dead}_r1x": me,
    }
    lookalikes = {f"my_e2e_{dead}_r1", f"e2e_{dead}_r1"}
    for name, owner in {**ours, **foreign}.items():
        server.sql(f"CREATE DATABASE {name} OWNER {owner}")
    for role in (*lookalikes, f"test_e2e_{dead}_r1"):
        server.sql(f"CREATE ROLE {role}")

    async def go() -> list[str]:
        notes: list[str] = []
        async with opened(server, user=me, notes=notes):
            return notes

    try:
        (note,) = run(go())
        assert note.startswith("dropped ")
        assert set(note.removeprefix("dropped ").split(", ")[:2]) == ours.keys()
        assert foreign.keys() <= server.databases()
        assert not ours.keys() & server.databases()
        assert lookalikes == {name for name in server.roles() if dead in name}
    finally:
        for name in foreign:
            server.sql(f"DROP DATABASE {name}")
        for role in lookalikes:
            server.sql(f"DROP ROLE {role}")


@one_version
@pytest.mark.usefixtures("unchanged")
def test_sessions_tell_that_a_run_lives_which_lost_its_lease(server: Server) -> None:
    role = f"test_e2e_{new_token()}_r1"
    server.sql(f"CREATE ROLE {role} LOGIN SUPERUSER")
    server.sql(f"CREATE DATABASE {role} OWNER {role}")
    server.sql(f"CREATE DATABASE its_leak OWNER {role}")
    address = replace(server.address(user="postgres"), database="postgres")

    async def go() -> None:
        async with connected(address) as connection:
            await connection.execute(f"SET SESSION AUTHORIZATION {role}")
            async with connected(server.address(database=role)):
                async with opened(server, user="postgres"):
                    pass
                assert {role, "its_leak"} <= server.databases()
                assert role in server.roles()
        notes: list[str] = []
        async with opened(server, user="postgres", notes=notes):
            assert len(notes) == 1
            assert "its_leak" in notes[0]

    run(go())


def test_many_names_are_counted() -> None:
    assert _some(["a", "b"]) == "a, b"
    assert _some(list("abcdefg")) == "a, b, c, d, e and 2 more"


# --- connections that break, and a server that does not answer -----------------------------------


@one_version
@pytest.mark.usefixtures("unchanged")
def test_making_again_needs_no_second_connection(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2e_runner.postgres.shared._MOST_CONNECTIONS", 1)
    monkeypatch.setattr(Making, "make_role", breaking_once(Making.make_role))

    async def go() -> None:
        async with asyncio.timeout(30), opened(server) as shared:
            assert shared.exact  # though the connection broke when that was tried
            monkeypatch.setattr(Making, "make_database", breaking_once(Making.make_database))
            given = await shared.give(1, [])
            await script(given, "SELECT 1")

    run(go())


def breaking_once(method: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Make a method whose connection the server ends after it has done its work for the first time."""
    broken = False

    async def wrapped(making: Making, connection: Connection, *args: Any, **more: Any) -> None:
        nonlocal broken
        await method(making, connection, *args, **more)
        if not broken:
            broken = True
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    return wrapped


@one_version
@pytest.mark.usefixtures("unchanged")
def test_what_cannot_be_looked_for_is_not_taken_for_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        async with opened(server) as shared:
            given = await shared.give(1, [])
            await script(given, "CREATE DATABASE leak")
            async with locked_catalog(server):
                with monkeypatch.context() as patched:
                    patched.setattr("e2e_runner.postgres.survey.SURVEY_PATIENCE", 0.3)
                    with pytest.raises(NotKnown, match="could not be read within"):
                        await shared.left_behind(given)
            assert [each.name for each in await shared.left_behind(given)] == ["leak"]

    run(go())


@one_version
def test_what_stays_is_told_once_and_with_the_remedy(server: Server) -> None:
    notes: list[str] = []

    async def go() -> str:
        async with opened(server, notes=notes) as shared:
            given = await shared.give(1, [])
            server.sql(f"CREATE SCHEMA of_an_attempt AUTHORIZATION {given.base}")
            assert await shared.take_back(given, keep=False) == ()
            assert len(notes) == 1
            return given.base

    role = run(go())
    (note,) = notes
    assert note.startswith(f"role {role} stays: something still depends on it: ")
    assert note.endswith("; to drop it later: e2e-run sweep-dbs")
    server.sql("DROP SCHEMA of_an_attempt")
    server.sql(f"DROP ROLE {role}")


@pytest.mark.usefixtures("unchanged")
def test_what_a_script_makes_for_the_role_of_a_template_is_found(server: Server) -> None:
    wanted = [DatabaseDefinition(name="bars", command=("fill",))]
    notes: list[str] = []

    async def go() -> None:
        async with opened(server, fill=write_a_table, notes=notes) as shared:
            alone = await shared.give(1, wanted)
            (role,) = alone.templates
            await script(alone, f"CREATE DATABASE sly OWNER {role}")
            assert [(each.name, each.doubt) for each in await shared.left_behind(alone)] == [
                ("sly", "")
            ]
            one, other = await shared.give(2, wanted), await shared.give(3, wanted)
            await script(one, f"CREATE DATABASE slyer OWNER {role}")
            assert await shared.left_behind(one) == ()
            late = await shared.give(4, wanted)
            for each in (other, late):
                assert await shared.left_behind(each) == ()
            assert notes == []
        assert [note.split(",")[0] for note in notes] == ["dropped slyer"]

    run(go())


# --- without roles -------------------------------------------------------------------------------


def names_and_kept(leaked: Sequence[LeakedDatabase]) -> dict[str, str]:
    return {each.name: each.kept for each in leaked}


def test_without_roles_what_appeared_is_dropped_only_where_a_pattern_says_so(
    server: Server,
) -> None:
    before = server.databases(), server.roles()

    async def go() -> None:
        async with opened(
            server, user=MAKER, patterns=("tmp_*", "shop_"), protect=("shop_live",)
        ) as shared:
            server.sql("CREATE DATABASE tmp_before", user=MAKER)
            given = await shared.give(1, [])
            await script(
                given,
                "CREATE DATABASE tmp_1",
                "CREATE DATABASE mine",
                "CREATE DATABASE shop_live",
                "CREATE DATABASE tmp_busy",
                f'CREATE DATABASE "test_{given.base}"',  # as Django does
            )
            server.sql("CREATE DATABASE tmp_of_other", user="other")
            async with connected(server.address(user="other", database="tmp_busy")):
                leaked = await shared.left_behind(given)
            assert names_and_kept(leaked) == {
                "tmp_1": "",
                "mine": "its name matches none of postgres.patterns",
                "shop_live": "postgres.protect names shop_live",
                "tmp_busy": "it has 1 session",
                f"test_{given.base}": "",
            }
            sure = {each.name for each in leaked if not each.doubt}
            assert sure == {f"test_{given.base}"}
            assert await shared.take_back(given, keep=False) == ()

    run(go())
    kept = {"tmp_before", "mine", "shop_live", "tmp_busy", "tmp_of_other"}
    assert server.databases() - before[0] == kept
    for name in kept:
        server.sql(f"DROP DATABASE {name}")
    assert (server.databases(), server.roles()) == before


@one_version
@pytest.mark.usefixtures("unchanged")
def test_without_roles_nothing_is_dropped_that_another_example_may_be_using(server: Server) -> None:
    async def go() -> None:
        async with opened(server, user=MAKER, patterns=("tmp_*",)) as shared:
            one, other = await shared.give(1, []), await shared.give(2, [])
            await script(one, "CREATE DATABASE tmp_of_either")
            late = await shared.give(3, [])
            assert names_and_kept(await shared.left_behind(one)) == {
                "tmp_of_either": "another example that is still running may have made it"
            }
            assert "tmp_of_either" in server.databases()
            (leaked,) = await shared.left_behind(other)
            assert (leaked.name, leaked.kept) == ("tmp_of_either", "")
            assert leaked.doubt
            assert await shared.left_behind(late) == ()

    run(go())


@one_version
@pytest.mark.usefixtures("unchanged")
def test_without_roles_nothing_of_another_run_is_dropped(server: Server) -> None:
    async def go() -> None:
        patterns = ("test_", "tmp_")
        async with opened(server, user=MAKER, patterns=patterns) as one:
            first = await one.give(1, [])
            async with opened(server, user=MAKER, patterns=patterns) as other:
                second = await other.give(1, [])
                theirs = f"test_{second.base}"
                await script(second, f"CREATE DATABASE {theirs}", "CREATE DATABASE tmp_of_either")
                assert names_and_kept(await one.left_behind(first)) == {
                    "tmp_of_either": "another run may have made it"
                }
                assert {theirs, second.base, "tmp_of_either"} <= server.databases()
                await script(second, "SELECT 1")
            assert names_and_kept(await one.left_behind(first)) == {"tmp_of_either": ""}

    run(go())


@one_version
@pytest.mark.usefixtures("unchanged")
def test_a_script_that_ends_our_sessions_does_not_end_the_run(server: Server) -> None:
    async def go() -> None:
        notes: list[str] = []
        async with opened(server, user=MAKER, notes=notes) as shared:
            given = await shared.give(1, [])
            await script(
                given,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE usename = current_user AND pid <> pg_backend_pid()",
            )
            await until(lambda: len(notes) == 1, "the lease was taken again")
            assert "was lost, and taken again" in notes[0]
            again = await shared.give(2, [])
            for each in (given, again):
                assert await shared.left_behind(each) == ()
                assert await shared.take_back(each, keep=False) == ()

    run(go())


@pytest.mark.usefixtures("unchanged")
def test_a_user_who_inherits_nothing_shares_its_own_role(server: Server) -> None:
    async def go() -> None:
        async with opened(server, user=HEIR) as shared:
            # A grant itself says what is inherited, from then on.
            assert shared.exact is (shared.facts.version_number >= 160000)
            given = await shared.give(1, [])
            assert given.address.user == (given.base if shared.exact else HEIR)
            await script(given, "CREATE SCHEMA s", "CREATE TABLE s.t (i int)")
            assert await shared.take_back(given, keep=False) == ()

    run(go())


@pytest.mark.usefixtures("unchanged")
def test_another_user_makes_databases_for_the_scripts_user(server: Server) -> None:
    async def go() -> None:
        admin = server.address(user=MAKER)
        with pytest.raises(NotUsable, match="may not make databases for guest") as met:
            async with opened(server, user=GUEST, admin=admin):
                raise AssertionError("it was opened")
        assert met.value.advice == ('As a superuser: GRANT "guest" TO "maker"',)
        server.sql(f"GRANT {GUEST} TO {MAKER}")
        try:
            async with opened(server, user=GUEST, admin=admin) as shared:
                given = await shared.give(1, [])
                assert given.address.user == GUEST
                await script(given, "CREATE TABLE t (i int)")
                assert await shared.left_behind(given) == ()
                assert await shared.take_back(given, keep=False) == ()
        finally:
            server.sql(f"REVOKE {GUEST} FROM {MAKER}")

    run(go())


@one_version
@pytest.mark.usefixtures("unchanged")
def test_a_template1_that_is_in_use_is_told_of_at_once(server: Server) -> None:
    async def go() -> None:
        notes: list[str] = []
        async with opened(server, notes=notes) as shared:
            async with connected(server.address(database="template1")):
                await shared.give(1, [])
            (note,) = notes
            assert note.startswith("template1 is in use by postgres (")

    run(go())


# --- servers that cannot be used -----------------------------------------------------------------


async def refusal(server: Server, user: str, **changes: object) -> Exception:
    try:
        address = replace(server.address(user=user), **changes)  # type: ignore[arg-type]
        async with opened(server, address=address):
            raise AssertionError("it was opened")
    except (NotUsable, Unreachable) as error:
        return error


@one_version
@pytest.mark.usefixtures("unchanged")
def test_a_server_that_cannot_be_used_is_refused_with_a_remedy(server: Server) -> None:
    error = run(refusal(server, GUEST))
    assert isinstance(error, NotUsable)
    where = f"127.0.0.1:{server.port}"
    assert str(error) == f"user guest may not create databases on guest@{where}"
    assert error.advice[0] == 'As a superuser: ALTER ROLE "guest" CREATEDB CREATEROLE'
    error = run(refusal(server, READER))
    assert isinstance(error, NotUsable)
    assert str(error) == f"reader@{where} is a standby or read-only"
    assert "default_transaction_read_only" in error.advice[0]
    error = run(refusal(server, "stranger", password="wrong"))  # noqa: S106 - it is
    assert isinstance(error, Unreachable)
    assert "password authentication failed" in str(error)


@pytest.mark.parametrize(
    ("rule", "is_usable"),
    [
        (f"host all {APP} all trust\nhost all all all reject", True),  # but a new role is not
        (f"host postgres {APP} all trust\nhost all all all reject", False),
    ],
)
def test_who_is_not_let_in(rule: str, *, is_usable: bool) -> None:
    hba = f"host all postgres all trust\n{rule}"
    with running_server(binaries("system"), hba=hba) as server:
        set_up(server)
        before = server.databases(), server.roles()

        async def go() -> str:
            async with opened(server) as shared:
                given = await shared.give(1, [])
                await script(given, "CREATE TABLE t (i int)")
                return given.address.user

        if is_usable:
            assert run(go()) == APP
        else:
            with pytest.raises(NotUsable, match="user app is not let into new databases: ") as met:
                run(go())
            assert "pg_hba.conf" in met.value.advice[0]
        assert (server.databases(), server.roles()) == before


def test_a_server_that_crashes_and_one_that_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server(binaries("system"), hba=HBA) as server:
        set_up(server)

        notes: list[str] = []

        async def go() -> None:
            async with opened(server, notes=notes) as shared:
                given = await shared.give(1, [])
                async with connected(server.address()) as victim:
                    os.kill(victim.get_server_pid(), signal.SIGKILL)  # ends all sessions
                    await until(lambda: len(notes) == 1, "the lease was taken again")
                assert "taken again" in notes[0]
                await shared.give(2, [])
                assert await shared.left_behind(given) == ()
                assert await shared.take_back(given, keep=False) == ()
                monkeypatch.setattr("e2e_runner.postgres.shared._LEASE_PATIENCE", 2.0)
                os.kill(server.pid, signal.SIGINT)
                await until(lambda: not is_up(server), "the server had stopped")
                with pytest.raises(NotGiven, match="lease"):
                    await shared.give(3, [])

        run(go())
        assert notes[-1].startswith("what the run made may still be there, for e2e-run sweep-dbs: ")


def is_up(server: Server) -> bool:
    return (server.data / "postmaster.pid").exists()


# --- templates -----------------------------------------------------------------------------------

SCHEMA = """\
CREATE SCHEMA market;
CREATE TABLE market.bars (id serial PRIMARY KEY, symbol text NOT NULL);
CREATE VIEW market.symbols AS SELECT DISTINCT symbol FROM market.bars;
CREATE FUNCTION market.one() RETURNS int LANGUAGE sql AS 'SELECT 1';
COPY market.bars (symbol) FROM stdin;
AAPL
MSFT
\\.
"""


@pytest.mark.parametrize("user", ["postgres", APP, MAKER])
@pytest.mark.usefixtures("unchanged")
def test_a_template_is_filled_once_and_its_clones_are_the_scripts_own(
    server: Server, tmp_path: Path, user: str
) -> None:
    file = tmp_path / "schema.sql"
    file.write_text(SCHEMA)
    filled = []
    really = real_fill(server, tmp_path)

    async def once(address: ServerAddress, definition: DatabaseDefinition) -> None:
        filled.append(address.database)
        await really(address, definition)

    wanted = [DatabaseDefinition(name="orm"), DatabaseDefinition(name="bars", template=(file,))]
    trusted = "SELECT 1 FROM pg_available_extensions WHERE name = 'pgcrypto'"
    extension = ["CREATE EXTENSION pgcrypto SCHEMA market"] if server.sql(trusted) else []

    async def go() -> None:
        async with opened(server, user=user, fill=once) as shared:
            given = await asyncio.gather(*(shared.give(number, wanted) for number in range(1, 4)))
            assert len(filled) == 1
            assert filled[0] in server.databases()
            for each in given:
                assert each.names == {"orm": each.base, "bars": f"{each.base}_bars"}
                assert each.address.database == each.base
                await script(
                    each,
                    "INSERT INTO market.bars (symbol) VALUES ('TSLA')",
                    "ALTER TABLE market.bars ADD COLUMN price numeric",
                    "CREATE INDEX ON market.bars (symbol)",
                    "GRANT SELECT ON market.bars TO PUBLIC",
                    "CREATE OR REPLACE FUNCTION market.one() RETURNS int LANGUAGE sql AS 'SELECT 2'",
                    "TRUNCATE market.bars",
                    "ALTER TABLE market.bars OWNER TO CURRENT_USER",
                    "DROP VIEW market.symbols",
                    "CREATE TABLE market.more (i int)",
                    *extension,
                    "DROP SCHEMA market CASCADE",
                    "DROP SCHEMA public CASCADE",
                    "CREATE SCHEMA public",
                    database=each.names["bars"],
                )
            async with connected(given[0].address, database="postgres") as connection:
                if shared.exact:
                    with pytest.raises(Exception, match="must be owner"):
                        await connection.execute(f"DROP DATABASE {filled[0]}")
            for each in given:
                assert await shared.left_behind(each) == ()
                assert await shared.take_back(each, keep=False) == ()

    run(go())


@one_version
@pytest.mark.usefixtures("unchanged")
def test_a_template_that_cannot_be_filled_fails_all_who_want_it_alike(server: Server) -> None:
    filled = []

    async def failing(address: ServerAddress, definition: DatabaseDefinition) -> None:
        filled.append(address.database)
        raise FillFailed(f"template of {definition.name}: line 3: no")

    async def go() -> None:
        async with opened(server, fill=failing) as shared:
            wanted = [DatabaseDefinition(name="bars", command=("false",))]
            reasons = await asyncio.gather(
                *(shared.give(number, wanted) for number in (1, 2)), return_exceptions=True
            )
            assert [str(each) for each in reasons] == ["template of bars: line 3: no"] * 2
            assert all(isinstance(each, NotGiven) for each in reasons)
            assert len(filled) == 1
            await shared.give(3, [])

    run(go())


# --- through a pooler ----------------------------------------------------------------------------


@pytest.mark.parametrize("with_admin", [True, False])
def test_through_a_pooler(with_admin: bool, tmp_path: Path) -> None:  # noqa: FBT001
    file = tmp_path / "schema.sql"
    file.write_text(SCHEMA)
    with running_server(binaries("system")) as server, running_pgbouncer(server) as bouncer:
        set_up(server)
        before = server.databases(), server.roles()

        async def go() -> None:
            token = new_token()
            notes: list[str] = []
            async with opened(
                server,
                notes=notes,
                address=bouncer.address(),
                admin=server.address() if with_admin else None,
                token=token,
                fill=real_fill(server, tmp_path),
            ) as shared:
                assert shared.pooled
                assert shared.exact
                assert shared.facts.pooled is not with_admin
                assert len(notes) == (0 if with_admin else 1)
                given = await shared.give(1, [DatabaseDefinition(name="bars", template=(file,))])
                assert given.address.port == bouncer.port
                assert given.base == f"test_e2e_{token}_{'r1' if with_admin else '1'}"
                await script(given, "DELETE FROM market.bars", "CREATE DATABASE leak")
                assert [each.name for each in await shared.left_behind(given)] == ["leak"]
                assert await shared.take_back(given, keep=False) == ()

        run(go())
        assert (server.databases(), server.roles()) == before
